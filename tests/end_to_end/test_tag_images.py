"""The tagger from its command line, on graphs of which it is known what they find."""

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tiny_taggers import BLACK, BLUE, CSV_ROWS, GREEN, RED, WHITE, make_pictures, make_tagger

from finetune.tag_images_by_wd14_tagger import main
from library.data.config.specs import SubsetSpec
from library.data.files.metadata_file import read_metadata
from library.preparing.outcome import Outcome
from library.preparing.tagging.text_output import TextOutput
from library.preparing.text_writing import TextWriter
from tests.hub_server import running_hub

ROOT = Path(__file__).resolve().parents[2]
UNREADABLE = Path("/proc/self/mem")  # its first bytes are no memory
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
    assert "text files that stay empty: 1; delete them" in told


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


@pytest.mark.parametrize(("is_appended", "text"), [(False, "by hand\n"), (True, "by hand, red_hat\n")])
def test_a_text_that_appears_while_the_model_works_is_not_lost(pictures, is_appended, text):
    outcome, waiting = Outcome(), [pictures / "blue.png", pictures / "red.png"]
    with TextWriter() as writer:
        output = TextOutput(writer, outcome, ".txt", ", ", is_appended=is_appended)
        assert not output.kept(waiting)
        (pictures / "red.txt").write_text("by hand\n")
        for picture in waiting:
            output.put(picture, ["red_hat"])
    assert texts(pictures) == {"blue": "red_hat\n", "red": text}
    assert (outcome.written, outcome.kept) == ((2, 0) if is_appended else (1, 1))


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


def test_words_that_would_be_read_as_several_are_told_with_where_they_come_from(tagger, pictures, capsys):
    assert main([str(pictures), "--model_dir", str(tagger), "--tag_replacement", r"red hat,hat\, red"]) == 0
    told = capsys.readouterr().err
    assert "--tag_replacement: tags that hold ',' will be read as several (hat, red)" in told
    assert "selected_tags.csv: tags that hold" not in told


def test_where_all_is_kept_it_is_told_how_tags_would_be_written(tagger, pictures, capsys):
    for colour in ("red", "green", "blue", "white"):
        (pictures / f"{colour}.txt").write_text("a sentence")
    assert main([str(pictures), "--model_dir", str(tagger)]) == 0
    advice = "give --append_tags, --overwrite or another --caption_extension to have tags written"
    assert f"wrote 0, kept 4 that were there; {advice}" in capsys.readouterr().err


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


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_entries_in_other_spellings_are_added_to_and_trained(tagger, pictures, tmp_path, capsys, ending):
    make_pictures(pictures / "sub", **{"a": RED, "ü": BLUE})
    file = tmp_path / f"tags.{ending}"
    names = ["./red.png", "sub\\a.png", "green", str(pictures / "blue.png"), "sub/u\u0308.png"]
    entries = {name: {"tags": f"mine {number}"} for number, name in enumerate(names)}
    lines = (json.dumps({"image_path": name, **entry}) for name, entry in entries.items())
    file.write_text(json.dumps(entries) if ending == "json" else "\n".join(lines))
    command = [str(pictures), "--model_dir", str(tagger), "--output_path", str(file), "--append_tags", "--recursive"]
    assert main(command) == 0
    found = {name: caption for name, (caption, _) in read_with_training(file, pictures).items()}
    assert found["red.png"] == "mine 0, red_hat, ruby_(gems)"
    assert found["sub/a.png"] == "mine 1, red_hat, ruby_(gems)"
    assert (found["green.png"], found["blue.png"]) == ("mine 2, green_tree", "mine 3, blue_sky")
    assert found["sub/ü.png"] == "mine 4, blue_sky"
    assert len(found) == 6
    assert '"sub\\a.png" is now "sub/a.png"' in capsys.readouterr().err
    before = file.read_text()
    assert main(command) == 0
    assert file.read_text() == before


def test_entries_of_one_picture_are_refused_before_any_is_tagged(tagger, pictures, tmp_path, capsys):
    file = tmp_path / "tags.json"
    file.write_text('{"red.png": {"tags": "a"}, "./red.png": {"tags": "b"}}')
    before = file.read_text()
    assert main([str(pictures), "--model_dir", str(tagger), "--output_path", str(file), "--append_tags"]) == 2
    told = capsys.readouterr().err
    assert 'the entries "red.png" and "./red.png" are both of' in told and "takes 16x16" not in told
    assert file.read_text() == before


def test_entries_of_a_metadata_file_stay_unless_it_shall_be_replaced(tagger, pictures, tmp_path, capsys):
    file = tmp_path / "tags.json"
    mine = {
        "red.png": {"tags": "mine", "rating": 5},
        "gone.png": {},
        "blue": {"caption": "a sky"},
        "white": {"tags": ""},
    }
    file.write_text(json.dumps(mine))
    command = [str(pictures), "--model_dir", str(tagger), "--output_path", str(file)]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "wrote 2, kept 2 that were there" in told and 'entries that stay empty: 1; take "tags" out of them' in told
    entry = {"caption": "a sky", "tags": "blue_sky", "image_size": [20, 20]}
    new = {"green.png": {"tags": "green_tree", "image_size": [20, 20]}}
    assert json.loads(file.read_text()) == {**mine, "blue": entry, **new}
    assert main([*command, "--overwrite"]) == 0
    assert list(json.loads(file.read_text())) == ["blue.png", "green.png", "red.png", "white.png"]


def test_the_same_command_tags_the_pictures_that_were_mended(tagger, pictures, tmp_path, capsys):
    file, other = tmp_path / "tags.json", tmp_path / "other.json"
    whole = (pictures / "red.png").read_bytes()
    (pictures / "red.png").write_bytes(whole[:40])
    command = [str(pictures), "--model_dir", str(tagger), "--debug"]
    assert main([*command, "--output_path", str(file)]) == 2
    assert "red.png" not in file.read_text()
    (pictures / "red.png").write_bytes(whole)
    capsys.readouterr()
    assert main([*command, "--output_path", str(file)]) == 0
    assert tagged_in(capsys.readouterr().err) == ["red.png"]
    assert main([*command, "--output_path", str(other)]) == 0
    assert json.loads(file.read_text()) == json.loads(other.read_text())


@pytest.mark.parametrize(
    "content", ["{", '{"a.png": {"tags": 5}}', '{"a.png": {"score": NaN}}', '{"a.png": {}, "a.png": {}}', "[]"]
)
def test_a_damaged_metadata_file_is_not_added_to(tagger, pictures, tmp_path, content):
    file = tmp_path / "tags.json"
    file.write_text(content)
    assert main([str(pictures), "--model_dir", str(tagger), "--output_path", str(file), "--append_tags"]) == 2
    assert file.read_text() == content


# Runs that are stopped in the middle, and runs of several processes

MANY = 120


def tagged_in(log):
    """Names of the pictures that a run with --debug has put through the model, in its order."""
    lines = (line.partition(".png: ") for line in log.splitlines())
    return [f"{Path(start).name}.png" for start, sign, tags in lines if sign and not tags.startswith("cannot")]


@contextlib.contextmanager
def in_the_middle(arguments):
    """A run that stands still after some of MANY pictures: what it tells fills a pipe that nobody reads."""
    command = [sys.executable, "finetune/tag_images_by_wd14_tagger.py", *map(str, arguments), "--debug"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    with process:
        try:
            yield process
        finally:
            process.kill()


def many_pictures(folder):
    return make_pictures(folder, **{f"{number:03}_{'with_a_long_name_' * 4}": BLUE for number in range(MANY)})


def wait_for(is_so):
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it has not come in a minute")


def lines_of(file):
    return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0


def killed(arguments, is_begun):
    with in_the_middle(arguments) as process:
        wait_for(is_begun)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_with_text_files(tagger, tmp_path, capsys):
    folder, other = many_pictures(tmp_path / "pictures"), many_pictures(tmp_path / "other")
    killed([folder, "--model_dir", tagger], lambda: len(texts(folder)) >= 2)
    done = texts(folder)
    assert 2 <= len(done) < MANY
    assert main([str(folder), "--model_dir", str(tagger), "--debug"]) == 0
    names = sorted(path.name for path in folder.glob("*.png"))
    assert tagged_in(capsys.readouterr().err) == [name for name in names if name[:-4] not in done]
    assert main([str(other), "--model_dir", str(tagger)]) == 0
    assert texts(folder) == texts(other)


def test_a_killed_run_goes_on_with_a_metadata_file(tagger, tmp_path, capsys):
    folder, file, other = many_pictures(tmp_path / "pictures"), tmp_path / "tags.json", tmp_path / "other.json"
    journal = tmp_path / "tags.json.0.part"
    killed([folder, "--model_dir", tagger, "--output_path", file], lambda: lines_of(journal) >= 4)
    assert not file.exists()
    done = {json.loads(line)["name"] for line in journal.read_text().splitlines() if line.endswith("}")}
    with journal.open("a") as opened:
        opened.write('{"run": "cut o')
    changed = min(done)
    Image.new("RGB", (20, 20), WHITE).save(folder / changed)  # tagged already, and changed since
    command = [str(folder), "--model_dir", str(tagger), "--debug"]
    assert main([*command, "--output_path", str(file)]) == 0
    names = sorted(path.name for path in folder.glob("*.png"))
    assert tagged_in(capsys.readouterr().err) == [name for name in names if name not in done - {changed}]
    assert main([*command, "--output_path", str(other)]) == 0
    assert file.read_text() == other.read_text()
    assert not list(tmp_path.glob("*.part"))


def test_other_settings_do_not_go_on_with_what_was_found(tagger, tmp_path):
    folder, file = many_pictures(tmp_path / "pictures"), tmp_path / "tags.json"
    asked = [folder, "--model_dir", tagger, "--output_path", file]
    killed(asked, lambda: lines_of(tmp_path / "tags.json.0.part") >= 4)
    assert main([*map(str, asked), "--remove_underscore"]) == 0
    assert {entry["tags"] for entry in json.loads(file.read_text()).values()} == {"blue sky"}


def test_what_a_person_writes_during_a_run_stays(tagger, tmp_path):
    folder = many_pictures(tmp_path / "pictures")
    last = max(folder.glob("*.png")).with_suffix(".txt")
    with in_the_middle([folder, "--model_dir", tagger]) as process:
        wait_for(lambda: any(folder.glob("*.txt")))
        last.write_text("by hand")
        told = process.communicate()[1].decode()
    assert process.returncode == 0
    assert last.read_text() == "by hand" and len(texts(folder)) == MANY
    assert f"wrote {MANY - 1}, kept 1 that were there" in told


def test_what_a_person_writes_into_a_metadata_file_during_a_run_stays(tagger, tmp_path):
    folder, file = many_pictures(tmp_path / "pictures"), tmp_path / "tags.json"
    name = max(path.name for path in folder.iterdir())
    with in_the_middle([folder, "--model_dir", tagger, "--output_path", file]) as process:
        wait_for(lambda: lines_of(tmp_path / "tags.json.0.part") >= 2)
        file.write_text(json.dumps({"other.png": {"caption": "x"}, name: {"tags": "by hand"}}))
        told = process.communicate()[1].decode()
    assert process.returncode == 0
    new = json.loads(file.read_text())
    assert (new["other.png"], new[name]) == ({"caption": "x"}, {"tags": "by hand"})
    assert len(new) == MANY + 1
    assert f"wrote {MANY - 1}, kept 1 that were there" in told


def test_processes_share_the_work(tagger, pictures, tmp_path, launch_pair):
    make_pictures(pictures, fifth=RED)
    script = {"script": "finetune/tag_images_by_wd14_tagger", "is_watched": False}
    asked = [str(pictures), f"--model_dir={tagger}", "--debug"]
    done = launch_pair(asked, **script)
    assert done.code == 0, done.output
    assert "wrote 5, kept 0 that were there" in done.output
    assert texts(pictures)["red"] == texts(pictures)["fifth"] == RED_TAGS
    file, other = tmp_path / "tags.json", tmp_path / "other.json"
    done = launch_pair([*asked, f"--output_path={file}"], **script)
    assert done.code == 0, done.output
    assert tagged_in(done.output) == ["blue.png", "green.png", "white.png"]  # by the first, which tells of itself
    assert main([*asked, f"--output_path={other}"]) == 0
    assert file.read_text() == other.read_text()


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
        (["--caption_separator", ",\n"], "--caption_separator must be a text without line breaks"),
        (["--tag_replacement", "a,b\nc"], "--tag_replacement must be a text without line breaks"),
        (["--caption_extension", "a/txt"], "--caption_extension needs the ending of text files"),
        (["--caption_extension", ".PNG"], "--caption_extension needs the ending of text files"),
        (["--caption_extension", ".safetensors"], "--caption_extension needs the ending of text files"),
        (["--caption_extension", ".npz"], "--caption_extension needs the ending of text files"),
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


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that even the superuser cannot read")
def test_a_graph_that_cannot_be_read_is_one_sentence(tmp_path, pictures, capsys):
    folder = make_tagger(tmp_path / "tagger")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(UNREADABLE)
    assert main([str(pictures), "--model_dir", str(folder)]) == 2
    assert "model.onnx cannot be read (Input/output error). Make it readable" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "flags"), [("red.txt", []), ("tags.json", ["--output_path=tags.json"])])
def test_a_folder_that_takes_no_files_is_told_before_the_model_is_looked_for(
    pictures, capsys, monkeypatch, name, flags
):
    (pictures / name).symlink_to("/proc/tags")
    monkeypatch.chdir(pictures)
    assert main([str(pictures), "--repo_id", "owner/other", *flags]) == 5
    assert ": no file can be written there (" in capsys.readouterr().err


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
