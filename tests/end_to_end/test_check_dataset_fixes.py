"""What tools/check_dataset.py --fix must leave alone, and where it must not write."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import bad_corpus
import pytest
import toml
from PIL import Image

from library.data.files.fixing import FOLDER
from tools.check_dataset import main
from tools.preview_dataset import main as preview_main

SMALL = ("--resolution=64", "--bucket_reso_steps=32")


@pytest.fixture
def fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[set[str], dict[str, dict]]]:
    """fix(*arguments) runs --fix and gives the names of the files that were mended, and the findings by code."""

    def run(*arguments: object) -> tuple[set[str], dict[str, dict]]:
        file = tmp_path / "found" / "findings.json"
        file.parent.mkdir(exist_ok=True)
        code = main([*map(str, arguments), *SMALL, "--fix", f"--json={file}"])
        assert code in (0, 2), capsys.readouterr()
        content = json.loads(file.read_text(encoding="utf-8"))
        found = {each["code"]: each for each in content["findings"]}
        return {Path(each["file"]).name for each in content["mended"]}, found

    return run


def picture(path: Path, seed: int = 0, text: str = "a dog") -> Path:
    """A picture of its own colour, with a caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (seed * 40 % 256, seed * 90 % 256, 77)).save(path)
    path.with_suffix(".txt").write_text(text)
    return path


def dataset(tmp_path: Path, *subsets: dict) -> str:
    own = [{"caption_extension": ".txt", **{key: str(value) for key, value in subset.items()}} for subset in subsets]
    file = tmp_path / "dataset.toml"
    file.write_text(toml.dumps({"datasets": [{"subsets": own}]}), encoding="utf-8")
    return f"--dataset_config={file}"


def test_a_copy_that_another_subset_needs_stays(tmp_path, fix):
    picture(tmp_path / "p" / "1.png")
    picture(tmp_path / "p" / "sub" / "only.png")
    subsets = [{"image_dir": str(tmp_path / "p"), "recursive": True}, {"image_dir": str(tmp_path / "p" / "sub")}]
    file = tmp_path / "dataset.toml"
    content = {"datasets": [{"subsets": [{**subset, "caption_extension": ".txt"}]} for subset in subsets]}
    file.write_text(toml.dumps(content), encoding="utf-8")
    mended, found = fix(f"--dataset_config={file}")
    assert mended == set()
    assert found["exact-duplicate"]["cases"][0]["detail"] == "in several subsets"
    assert (tmp_path / "p" / "sub" / "only.png").is_file()


def test_a_copy_that_a_link_points_to_stays(tmp_path, fix):
    picture(tmp_path / "p" / "a.png")
    picture(tmp_path / "p" / "b.png")
    (tmp_path / "p" / "link.png").symlink_to("b.png")
    (tmp_path / "p" / "link.txt").write_text("a dog")
    mended, found = fix(tmp_path / "p")
    assert mended == set()
    assert found["exact-duplicate"]["cases"][0]["detail"] == "named by a metadata file or a link"


@pytest.mark.parametrize("is_link", [False, True])
def test_what_a_metadata_file_names_in_another_way_stays(tmp_path, fix, monkeypatch, is_link):
    monkeypatch.chdir(tmp_path)
    picture(Path("p/a.png"))
    picture(Path("p/b.png"))
    bad_corpus.write(Path("p"), "zero.png")
    (tmp_path / "names").symlink_to(tmp_path / "p")
    named = tmp_path / ("names" if is_link else "p")
    (tmp_path / "m.json").write_text(json.dumps({name: {"caption": "a dog"} for name in ("b.png", "zero.png")}))
    content = {
        "datasets": [
            {"subsets": [{"image_dir": "p", "caption_extension": ".txt"}]},
            {"subsets": [{"image_dir": str(named), "metadata_file": str(tmp_path / "m.json")}]},
        ]
    }
    Path("dataset.toml").write_text(toml.dumps(content))
    mended, found = fix("--dataset_config=dataset.toml")
    assert mended == set()
    assert {"exact-duplicate", "broken-picture"} <= found.keys()


def test_only_what_is_plainly_an_orphan_is_moved(tmp_path, fix):
    folder = tmp_path / "p"
    picture(folder / "dog_1.png", 1, "one")
    picture(folder / "dog_2.png", 2, "two")
    picture(folder / "d.png", 3, "three")
    (folder / "d.txt").rename(folder / "d.png.txt")
    composed = unicodedata.normalize("NFC", "grün")
    picture(folder / f"{unicodedata.normalize('NFD', composed)}.png", 4)
    (folder / f"{unicodedata.normalize('NFD', composed)}.txt").rename(folder / f"{composed}.txt")
    texts = ("README", "sample_prompts", "LICENSE", "draw_3", "my words", "dog_3")
    for name in texts:
        (folder / f"{name}.txt").write_text(name)
    (folder / "dog_4.caption").write_text("of another ending")
    mended, found = fix(folder, f"--sample_prompts={folder / 'draw_3.txt'}")
    assert mended == {"dog_3.txt", "d.png.txt", f"{composed}.txt"}
    assert (folder / "d.txt").read_text() == "three"
    assert (folder / f"{unicodedata.normalize('NFD', composed)}.txt").read_text() == "a dog"
    left = {Path(case["files"][0]).name for case in found["orphan-caption"]["cases"]}
    assert left == {"README.txt", "sample_prompts.txt", "LICENSE.txt", "draw_3.txt", "my words.txt", "dog_4.caption"}
    assert not any(case["fix"] for case in found["orphan-caption"]["cases"])


def test_all_texts_of_a_broken_picture_go_with_it(tmp_path, fix):
    folder = tmp_path / "p"
    picture(folder / "a.png")
    bad_corpus.write(folder, "zero.png")
    for ending in (".txt", ".caption"):
        (folder / f"zero{ending}").write_text("by hand")
    assert fix(folder)[0] == {"zero.png", "zero.txt", "zero.caption"}
    assert fix(folder)[0] == set()


@pytest.mark.parametrize("ending", [".caption", ".TXT"])
def test_a_copy_with_another_text_beside_it_stays(tmp_path, fix, ending):
    folder = tmp_path / "p"
    for name in ("e.png", "f.png"):
        picture(folder / name)
        if ending == ".TXT":
            (folder / name).with_suffix(".txt").unlink()
        (folder / name).with_suffix(ending).write_text(f"{name} by hand")
    mended, found = fix(folder, "--caption_extension=.txt")
    assert "f.png" not in mended
    assert found["exact-duplicate"]["cases"][0]["detail"] == "with different captions"


@pytest.mark.parametrize("names", [("a.png.txt", "b.png.txt"), ("a.TXT", "b.TXT")])
def test_whose_caption_is_whose_is_settled_before_copies_go(tmp_path, fix, names):
    folder = tmp_path / "p"
    for name, stem in zip(names, "ab", strict=True):
        picture(folder / f"{stem}.png").with_suffix(".txt").unlink()
        (folder / name).write_text(f"by hand, of {stem}")
    assert fix(folder, "--caption_extension=.txt")[0] == set(names)
    assert (folder / "b.txt").read_text() == "by hand, of b"
    assert fix(folder)[0] == set()


def test_one_run_mends_all(tmp_path, fix):
    folder = tmp_path / "p"
    for name in ("dog.png", "dog - Copy.png"):
        picture(folder / name)
    (folder / "dog.txt").rename(folder / "dog.TXT")
    assert fix(folder, "--caption_extension=.txt")[0] == {"dog.TXT", "dog - Copy.png", "dog - Copy.txt"}
    assert fix(folder)[0] == set()


def test_a_link_that_leads_nowhere_is_not_written_over(tmp_path, fix):
    folder = tmp_path / "p"
    for name in ("a.png", "a (1).png"):
        picture(folder / name)
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "a (1).png").symlink_to("nowhere")
    assert "a (1).png" in fix(folder)[0]
    assert (folder / FOLDER / "a (1).png").is_symlink() and not (folder / "a (1).png").exists()


def test_what_options_name_stays_with_its_picture(tmp_path, fix):
    folder = tmp_path / "p"
    for name in ("a.png", "a (1).png", "b.png", "b (1).png"):
        picture(folder / name, ord(name[0]))
        (folder / name).with_suffix(".json").write_text('{"prompt": "a dog"}')
    assert fix(folder, f"--sample_prompts={folder / 'b (1).json'}")[0] == {"a (1).png", "a (1).txt", "a (1).json"}


def test_what_the_plan_warns_of_is_told_once(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "p" / name)
    assert main([str(tmp_path / "p"), *SMALL, "--min_bucket_reso=64", "--max_bucket_reso=100", "--fix"]) == 0
    shown = capsys.readouterr()
    assert "MENDED" in shown.out and shown.err.count("multiples of bucket_reso_steps") == 1


def test_a_metadata_entry_without_picture_is_not_told_as_broken(tmp_path, fix):
    picture(tmp_path / "p" / "a.png")
    (tmp_path / "m.json").write_text(json.dumps({name: {"caption": "a dog"} for name in ("a.png", "gone.png")}))
    _, found = fix(f"--in_json={tmp_path / 'm.json'}", f"--train_data_dir={tmp_path / 'p'}")
    assert "broken-picture" not in found
    assert "does not exist" in found["unusable-file"]["cases"][0]["detail"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--json=p/m.json",), "--json: p/m.json is there already and was not written by this tool"),
        (("--output=p/a.png",), "--output: p/a.png"),
        (("--json=p/new.txt",), "--json: p/new.txt ends like a caption"),
        (("--output=x.html", "--json=./x.html"), "--json and --output both name"),
    ],
)
def test_what_was_not_written_here_is_not_overwritten(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    picture(Path("p/a.png"))
    Path("p/m.json").write_text('{"a": {"caption": "by hand"}}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["p", *SMALL, *flags]) == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_preview_does_not_overwrite_either(tmp_path, capsys):
    picture(tmp_path / "p" / "a.png")
    (tmp_path / "page.html").write_text("<html>by hand")
    flags = [f"--output={tmp_path / 'page.html'}", "--resolution=64", f"--train_data_dir={tmp_path / 'p'}"]
    assert preview_main(flags) == 2
    assert "page.html is there already" in capsys.readouterr().err
    assert (tmp_path / "page.html").read_text() == "<html>by hand"


def test_what_was_written_here_is_written_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(Path("p/a.png"))
    arguments = ["p", *SMALL, "--json=found.json", "--output=page.html"]
    assert [main(arguments), main(arguments)] == [0, 0]


def test_each_picture_is_judged_by_its_worst_dataset(tmp_path, fix):
    picture(tmp_path / "p" / "a.png")
    for sides in ((64, 256), (256, 64)):
        content = {
            "datasets": [
                {"resolution": side, "subsets": [{"image_dir": str(tmp_path / "p"), "caption_extension": ".txt"}]}
                for side in sides
            ]
        }
        (tmp_path / "dataset.toml").write_text(toml.dumps(content))
        _, found = fix(f"--dataset_config={tmp_path / 'dataset.toml'}")
        (case,) = found["tiny-picture"]["cases"]
        assert case["detail"] == f"64x64, enlarged 4.0 times to 256x256 in dataset {sides.index(256) + 1}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data.toml", "FOLDER data.toml is a file: give it as --dataset_config data.toml"),
        ("m.json", "FOLDER m.json is a file: give it as --in_json m.json"),
        ("a.png", "FOLDER a.png is a file: name the folder it is in"),
        ("nowhere", "FOLDER nowhere does not exist"),
    ],
)
def test_a_folder_that_is_none_is_refused_by_its_name(tmp_path, monkeypatch, capsys, name, said):
    monkeypatch.chdir(tmp_path)
    for file in ("data.toml", "m.json", "a.png"):
        Path(file).write_text("")
    assert main([name]) == 2
    assert said in capsys.readouterr().err


def test_a_caption_that_a_link_points_to_keeps_its_copy(tmp_path, fix):
    picture(tmp_path / "p" / "e.png")
    picture(tmp_path / "p" / "f.png")
    picture(tmp_path / "q" / "c.png", 1).with_suffix(".txt").unlink()
    os.symlink(tmp_path / "p" / "f.txt", tmp_path / "q" / "c.txt")
    mended, found = fix(dataset(tmp_path, {"image_dir": tmp_path / "p"}, {"image_dir": tmp_path / "q"}))
    assert mended == set()
    assert found["exact-duplicate"]["cases"][0]["detail"] == "named by a metadata file or a link"


def test_a_caption_file_that_a_link_points_to_stays(tmp_path, fix):
    picture(tmp_path / "p" / "dog_1.png")
    (tmp_path / "p" / "dog_2.txt").write_text("of a picture elsewhere")
    picture(tmp_path / "q" / "c.png", 1).with_suffix(".txt").unlink()
    os.symlink(tmp_path / "p" / "dog_2.txt", tmp_path / "q" / "c.txt")
    mended, _ = fix(dataset(tmp_path, {"image_dir": tmp_path / "p"}, {"image_dir": tmp_path / "q"}))
    assert mended == set()
    assert not (tmp_path / "p" / FOLDER).exists()
