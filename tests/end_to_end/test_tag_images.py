"""The tagger from its command line, on graphs of which it is known what they find."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_taggers import BLACK, BLUE, CSV_ROWS, GREEN, RED, WHITE, make_pictures, make_tagger

from finetune.tag_images_by_wd14_tagger import main
from library.data.config.specs import SubsetSpec
from library.data.files.metadata_file import read_metadata
from tests.hub_server import running_hub

ROOT = Path(__file__).resolve().parents[2]
RED_TAGS = "red_hat, ruby_(gems)\n"


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    return make_tagger(tmp_path_factory.mktemp("csv"))


@pytest.fixture(scope="module")
def mapped_tagger(tmp_path_factory):
    return make_tagger(tmp_path_factory.mktemp("json"), "json")


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "pictures")


def texts(folder):
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.txt"))}


def test_tags_follow_what_is_seen(tagger, pictures):
    assert main([str(pictures), "--model_dir", str(tagger)]) == 0
    expected = {"red": RED_TAGS, "green": "green_tree\n", "blue": "blue_sky\n", "white": "^_^\n"}
    assert texts(pictures) == expected


def test_both_formats_of_taggers_find_the_same(mapped_tagger, tagger, pictures):
    rest = ["--copyright_threshold", "1", "--artist_threshold", "1", "--meta_threshold", "1", "--model_threshold", "1"]
    assert main([str(pictures), "--repo_id", str(mapped_tagger), *rest]) == 0
    found = texts(pictures)
    assert main([str(pictures), "--repo_id", str(tagger), "--overwrite"]) == 0
    assert texts(pictures) == found


def test_every_option_about_words_and_order_acts_together(mapped_tagger, pictures):
    asked = ["--use_rating_tags", "--use_quality_tags_as_last_tag", "--character_tags_first", "--character_tag_expand"]
    asked += ["--remove_underscore", "--undesired_tags", "painter;some model", "--caption_separator", "; "]
    asked += ["--always_first_tags", "gems;highres", "--tag_replacement", r"red hat,hat\, red;sensitive,nsfw"]
    assert main([str(pictures), "--repo_id", str(mapped_tagger), *asked]) == 0
    assert texts(pictures)["red"] == "gems; highres; nsfw; ruby; hat, red; best quality\n"
    assert texts(pictures)["white"] == "general; ^_^; best quality\n"


@pytest.mark.parametrize("asked", [["--batch_size", "3"], ["--max_data_loader_n_workers", "0"], ["--batch_size", "99"]])
def test_batches_and_threads_change_nothing(tagger, pictures, asked):
    assert main([str(pictures), "--model_dir", str(tagger)]) == 0
    one_by_one = texts(pictures)
    assert main([str(pictures), "--model_dir", str(tagger), "--overwrite", *asked]) == 0
    assert texts(pictures) == one_by_one


def test_a_graph_of_one_picture_tags_one_by_one_and_says_so(tmp_path, pictures, capsys):
    folder = make_tagger(tmp_path / "fixed", batch=1)
    assert main([str(pictures), "--model_dir", str(folder), "--batch_size", "3"]) == 0
    assert texts(pictures)["red"] == RED_TAGS
    assert "one by one: --batch_size 3 has no effect" in capsys.readouterr().err


def test_what_a_person_wrote_stays(tagger, pictures, capsys):
    (pictures / "red.txt").write_text("mine")
    (pictures / "blue.txt").write_text("")
    assert main([str(pictures), "--model_dir", str(tagger)]) == 0
    assert (texts(pictures)["red"], texts(pictures)["blue"]) == ("mine", "")
    told = capsys.readouterr().err
    assert "wrote 2, kept 2 that were there" in told
    assert "text files that stay empty: 1;" in told


def test_append_adds_what_is_new_and_changes_nothing_the_second_time(tagger, pictures):
    (pictures / "red.txt").write_text("a person,red hat")
    for _ in range(2):
        assert main([str(pictures), "--model_dir", str(tagger), "--append_tags"]) == 0
        assert texts(pictures)["red"] == "a person, red hat, ruby_(gems)\n"
    assert texts(pictures)["blue"] == "blue_sky\n"


def test_append_leaves_texts_that_it_cannot_add_to(tagger, pictures, capsys):
    (pictures / "red.txt").write_text("one\ntwo")
    (pictures / "blue.txt").write_bytes("ü".encode("cp1252"))
    assert main([str(pictures), "--model_dir", str(tagger), "--append_tags"]) == 2
    assert (pictures / "red.txt").read_text() == "one\ntwo"
    assert (pictures / "blue.txt").read_bytes() == "ü".encode("cp1252")
    told = capsys.readouterr().err
    assert "red.txt has 2 lines" in told and "blue.txt is not UTF-8" in told
    assert (pictures / "green.txt").read_text() == "green_tree\n"


def test_broken_pictures_are_listed_and_the_rest_is_tagged(tagger, pictures, capsys):
    (pictures / "bad.png").write_bytes((pictures / "red.png").read_bytes()[:40])
    (pictures / "none.jpg").write_bytes(b"")
    assert main([str(pictures), "--model_dir", str(tagger), "--batch_size", "2"]) == 2
    assert set(texts(pictures)) == {"red", "green", "blue", "white"}
    told = capsys.readouterr().err
    assert "2 pictures were passed over" in told
    assert f"{pictures / 'bad.png'} " in told and f"{pictures / 'none.jpg'} " in told


def test_pictures_that_share_a_text_file_get_none(tagger, pictures, capsys):
    Image.new("RGB", (8, 8), BLUE).save(pictures / "red.jpg")
    assert main([str(pictures), "--model_dir", str(tagger)]) == 2
    assert set(texts(pictures)) == {"green", "blue", "white"}
    assert "shares the text file red.txt" in capsys.readouterr().err


def test_recursive_takes_sub_folders(tagger, pictures):
    make_pictures(pictures / "inner", deep=RED)
    assert main([str(pictures), "--model_dir", str(tagger), "--recursive", "--caption_extention", ".tags"]) == 0
    assert (pictures / "inner" / "deep.tags").read_text() == RED_TAGS


def test_the_table_of_frequencies_counts_each_picture(tagger, pictures, capsys):
    make_pictures(pictures, red2=RED)
    assert main([str(pictures), "--model_dir", str(tagger), "--frequency_tags"]) == 0
    told = capsys.readouterr().err
    assert told.index("red_hat: 2") < told.index("ruby_(gems): 2") < told.index("blue_sky: 1")


def test_debug_tells_scores(tagger, pictures, capsys):
    assert main([str(pictures), "--model_dir", str(tagger), "--debug"]) == 0
    assert f"{pictures / 'white.png'}: ^_^ 0.998" in capsys.readouterr().err


def test_what_has_no_effect_is_told(tagger, pictures, capsys):
    asked = ["--onnx", "--use_quality_tags", "--artist_threshold", "0.5", "--undesired_tags", "red_hta"]
    assert main([str(pictures), "--model_dir", str(tagger), *asked]) == 0
    told = capsys.readouterr().err
    for words in ("--onnx (taggers always", "--use_quality_tags (the model has no quality", "--artist_threshold (the"):
        assert words in told
    assert "--undesired_tags: the model never gives red_hta" in told


def test_pictures_without_any_tag_are_named(tagger, tmp_path, capsys):
    folder = make_pictures(tmp_path / "dark", dark=BLACK)
    assert main([str(folder), "--model_dir", str(tagger)]) == 0
    assert "No tag for 1 picture (dark.png)" in capsys.readouterr().err


# Metadata files


def read_with_training(file, root):
    reading = read_metadata(SubsetSpec(image_dir=root, metadata_file=file))
    assert not reading.findings.problems and not reading.findings.faults
    return {entry.path.relative_to(root).as_posix(): (entry.caption, entry.size) for entry in reading.entries}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_training_reads_the_metadata_file(tagger, pictures, tmp_path, ending):
    make_pictures(pictures / "in ner", red=RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), GREEN).save(pictures / "turned.jpg", exif=exif)
    file = tmp_path / f"tags.{ending}"
    assert main([str(pictures), "--model_dir", str(tagger), "--output_path", str(file), "--recursive"]) == 0
    found = read_with_training(file, pictures)
    assert found["in ner/red.png"] == ("red_hat, ruby_(gems)", (20, 20))
    assert found["turned.jpg"][1] == (20, 30)
    assert len(found) == 6
    assert not texts(pictures) and sorted(path.name for path in tmp_path.iterdir()) == ["pictures", file.name]


def test_the_two_forms_of_entries(tagger, tmp_path):
    folder = make_pictures(tmp_path / "pictures", red=RED)
    for name in ("tags.json", "tags.jsonl"):
        assert main([str(folder), "--model_dir", str(tagger), "--output_path", str(tmp_path / name)]) == 0
    tags, size = "red_hat, ruby_(gems)", [20, 20]
    assert json.loads((tmp_path / "tags.json").read_text()) == {"red.png": {"tags": tags, "image_size": size}}
    line = {"image_path": "red.png", "caption": tags, "image_size": size}
    assert [json.loads(text) for text in (tmp_path / "tags.jsonl").read_text().splitlines()] == [line]


def test_append_adds_to_entries_and_keeps_all_else(tagger, pictures, tmp_path):
    file = tmp_path / "tags.json"
    old = {"other.png": {"caption": "x"}, "red": {"caption": "a hat", "tags": "mine"}, "blue.png": {"rating": 5}}
    file.write_text(json.dumps(old))
    assert main([str(pictures), "--model_dir", str(tagger), "--output_path", str(file), "--append_tags"]) == 0
    new = json.loads(file.read_text())
    assert list(new) == ["other.png", "red", "blue.png", "green.png", "white.png"]
    assert new["other.png"] == {"caption": "x"}
    assert new["red"] == {"caption": "a hat", "tags": "mine, red_hat, ruby_(gems)", "image_size": [20, 20]}
    assert new["blue.png"] == {"rating": 5, "tags": "blue_sky", "image_size": [20, 20]}


def test_a_metadata_file_is_replaced_only_if_that_is_asked_for(tagger, pictures, tmp_path, capsys):
    file = tmp_path / "tags.json"
    file.write_text('{"mine.png": {}}')
    command = [str(pictures), "--model_dir", str(tagger), "--output_path", str(file)]
    assert main(command) == 2
    assert file.read_text() == '{"mine.png": {}}'
    assert "--append_tags to add to what it holds, --overwrite to replace" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert len(json.loads(file.read_text())) == 4


@pytest.mark.parametrize("content", ["{", '{"a.png": {"tags": 5}}', '{"a.png": {}, "a.png": {}}', "[]"])
def test_a_damaged_metadata_file_is_not_added_to(tagger, pictures, tmp_path, content):
    file = tmp_path / "tags.json"
    file.write_text(content)
    assert main([str(pictures), "--model_dir", str(tagger), "--output_path", str(file), "--append_tags"]) == 2
    assert file.read_text() == content


# Runs that are killed

KILLED = """
import os, signal, sys, time
from pathlib import Path
from library.preparing.tagging.onnx_model import OnnxTagger
real, calls = OnnxTagger.scores, []
def scores(self, pixels):
    calls.append(1)
    if len(calls) == 3:
        while not any(Path(sys.argv[1]).glob("*.txt")) and "--output_path" not in sys.argv:
            time.sleep(0.01)  # files are written by a thread
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, pixels)
OnnxTagger.scores = scores
from finetune.tag_images_by_wd14_tagger import main
sys.exit(main(sys.argv[1:]))
"""


def killed(arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True).returncode
    assert code == -signal.SIGKILL


def counted_scores(monkeypatch):
    from library.preparing.tagging.onnx_model import OnnxTagger

    numbers, real = [], OnnxTagger.scores

    def scores(self, pixels):
        numbers.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(OnnxTagger, "scores", scores)
    return numbers


def test_a_killed_run_goes_on_with_text_files(tagger, pictures, tmp_path, monkeypatch):
    other = make_pictures(tmp_path / "other")
    killed([str(pictures), "--model_dir", str(tagger)])
    done = len(texts(pictures))
    assert 1 <= done < 3
    numbers = counted_scores(monkeypatch)
    assert main([str(pictures), "--model_dir", str(tagger)]) == 0
    assert sum(numbers) == 4 - done
    assert main([str(other), "--model_dir", str(tagger)]) == 0
    assert texts(pictures) == texts(other)


def test_a_killed_run_goes_on_with_a_metadata_file(tagger, pictures, tmp_path, monkeypatch):
    file, other = tmp_path / "tags.json", tmp_path / "other.json"
    killed([str(pictures), "--model_dir", str(tagger), "--output_path", str(file)])
    with (tmp_path / "tags.json.0.part").open("a") as journal:
        journal.write('{"run": "cut o')
    Image.new("RGB", (20, 20), WHITE).save(pictures / "blue.png")  # tagged already, and changed since
    numbers = counted_scores(monkeypatch)
    assert main([str(pictures), "--model_dir", str(tagger), "--output_path", str(file)]) == 0
    assert sum(numbers) == 3
    assert main([str(pictures), "--model_dir", str(tagger), "--output_path", str(other)]) == 0
    assert file.read_text() == other.read_text()
    assert not list(tmp_path.glob("*.part"))


def test_other_settings_do_not_go_on_with_what_was_found(tagger, pictures, tmp_path):
    file = tmp_path / "tags.json"
    killed([str(pictures), "--model_dir", str(tagger), "--output_path", str(file)])
    command = [str(pictures), "--model_dir", str(tagger), "--output_path", str(file), "--remove_underscore"]
    assert main(command) == 0
    assert json.loads(file.read_text())["blue.png"]["tags"] == "blue sky"


def test_processes_share_the_work(tagger, pictures, monkeypatch):
    monkeypatch.setattr("library.preparing.shares.Shares.gathered", lambda self, value: [value])
    monkeypatch.setenv("WORLD_SIZE", "2")
    written = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        before = set(texts(pictures))
        assert main([str(pictures), "--model_dir", str(tagger)]) == 0
        written.append(set(texts(pictures)) - before)
    assert [len(names) for names in written] == [2, 2]
    assert texts(pictures)["red"] == RED_TAGS


# Models of the hub


def test_a_tagger_of_the_hub_is_copied_into_model_dir_once(tmp_path, pictures, tagger, monkeypatch):
    command = [str(pictures), "--repo_id", "owner/name", "--model_dir", str(tmp_path / "models"), "--overwrite"]
    with running_hub(monkeypatch) as hub:
        hub.files = {name: (tagger / name).read_bytes() for name in ("model.onnx", "selected_tags.csv")}
        assert main(command) == 0
        assert (tmp_path / "models" / "owner_name" / "model.onnx").is_file()
        asked = len(hub.requests)
        assert main(command) == 0
        assert len(hub.requests) == asked
        assert main([*command, "--force_download"]) == 0
        assert len(hub.requests) > asked
    assert texts(pictures)["red"] == RED_TAGS


def test_a_tagger_in_a_folder_of_a_repository(tmp_path, pictures, mapped_tagger, monkeypatch):
    with running_hub(monkeypatch) as hub:
        hub.files = {f"v1/{name}": (mapped_tagger / name).read_bytes() for name in ("model.onnx", "tag_mapping.json")}
        models = str(tmp_path / "models")
        assert main([str(pictures), "--repo_id", "owner/name/v1", "--model_dir", models, "--thresh", "0.9"]) == 0
    assert texts(pictures)["blue"] == "blue_sky\n"


def test_a_repository_without_a_tagger_is_refused(tmp_path, pictures, monkeypatch, capsys):
    with running_hub(monkeypatch) as hub:
        hub.files = {"v1/model.onnx": b"", "v1/tag_mapping.json": b""}
        assert main([str(pictures), "--repo_id", "owner/name", "--model_dir", str(tmp_path / "models")]) == 2
    assert "for instance owner/name/v1" in capsys.readouterr().err


# What is refused


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--thresh", "1.5"], "--thresh"),
        (["--general_threshold", "-0.1"], "--general_threshold"),
        (["--batch_size", "0"], "--batch_size"),
        (["--tag_replacement", "a,b,c"], "--tag_replacement needs pairs"),
        (["--caption_separator="], "--caption_separator"),
        (["--caption_extension", "txt"], "--caption_extension begins with a dot"),
        (["--caption_extension", ".PNG"], "is what pictures end with"),
        (["--append_tags", "--overwrite"], "exclude each other"),
        (["--output_path", "tags.txt"], "ends with .json or .jsonl"),
        (["--output_path", "nowhere/tags.json"], "the folder nowhere does not exist"),
        (["--repo_id", "nowhere"], "the folder nowhere does not exist"),
        (["--repo_id", "owner/other"], "the hub cannot be reached. Get it where there is a connection"),
        (["--repo_id", "owner/other", "--force_download"], "--force_download: the hub cannot be reached"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(tagger, pictures, capsys, asked, words):
    assert main([str(pictures), "--model_dir", str(tagger), *asked]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("error:") == 1 and len(told.strip().splitlines()) == 1
    assert len(list(pictures.iterdir())) == 4


def test_a_missing_onnxruntime_is_one_sentence(tagger, pictures, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([str(pictures), "--model_dir", str(tagger)]) == 3
    assert "pip install onnxruntime" in capsys.readouterr().err


def test_a_folder_without_pictures_is_one_sentence(tagger, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--model_dir", str(tagger)]) == 2
    assert "TRAIN_DATA_DIR" in capsys.readouterr().err


def test_tables_and_graphs_are_checked_before_pictures(tmp_path, pictures, capsys):
    folder = make_tagger(tmp_path / "tagger")
    (pictures / "red.png").write_bytes(b"")
    (folder / "selected_tags.csv").write_text("\n".join(["name,category", *(f"{row[0]},0" for row in CSV_ROWS[:3])]))
    assert main([str(pictures), "--model_dir", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "its table has 3 tags" in told and "red.png" not in told
