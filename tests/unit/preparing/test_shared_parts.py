"""What all tools share that go through a folder of pictures."""

import os
import threading
from pathlib import Path

import pytest
from hub_server import point_client_to, running_hub
from PIL import Image

from library.data.findings import Fault
from library.errors import CheckpointError, DatasetError, OutputError
from library.preparing.decode_ahead import decoded_batches
from library.preparing.hub_files import model_folder
from library.preparing.outcome import Outcome, raise_faults
from library.preparing.pictures import find_pictures, is_blank, shared_text_files, text_file_faults, text_file_of
from library.preparing.shares import Shares
from library.preparing.text_writing import TextWriter, write_text
from library.writable_folders import check_folders


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def number_of(path: Path) -> int:
    """A stand-in for decoding: the number in the name; names with "bad" cannot be used."""
    if "bad" in path.name:
        raise DatasetError(f"{path} is broken; remove it.")
    return int(path.stem)


@pytest.mark.parametrize("num_threads", [0, 1, 3, None])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batches_are_full_in_order_and_without_what_is_broken(num_threads, batch_size):
    paths = [Path(f"{number}.png") for number in range(20)]
    paths.insert(5, Path("bad.png"))
    faults = []
    batches = list(
        decoded_batches(paths, number_of, batch_size=batch_size, num_threads=num_threads, on_fault=faults.append)
    )
    assert [item for batch in batches for item in batch] == [(Path(f"{n}.png"), n) for n in range(20)]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert faults == [Fault(Path("bad.png"), "is broken; remove it")]


def test_the_next_pictures_are_decoded_while_a_batch_is_worked_on():
    decoded = [threading.Event() for _ in range(4)]

    def prepare(path: Path) -> int:
        decoded[int(path.stem)].set()
        return int(path.stem)

    paths = [Path(f"{number}.png") for number in range(4)]
    batches = decoded_batches(paths, prepare, batch_size=1, num_threads=1, on_fault=lambda fault: None)
    next(batches)
    assert decoded[1].wait(60)
    batches.close()


def test_an_error_that_is_no_fault_of_a_picture_ends_the_work():
    def prepare(path: Path) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(decoded_batches([Path("1.png")], prepare, batch_size=1, on_fault=lambda fault: None))


def test_text_is_written_whole_with_a_line_end(tmp_path):
    write_text(tmp_path / "a.txt", "ein Bär")
    write_text(tmp_path / "b.txt", "")
    assert (tmp_path / "a.txt").read_bytes() == "ein Bär\n".encode()
    assert (tmp_path / "b.txt").read_bytes() == b""


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("a.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "a.txt").read_text() == "new\n"


def test_a_file_that_says_the_same_is_left_alone(tmp_path):
    write_text(tmp_path / "a.txt", "text")
    before = (tmp_path / "a.txt").stat()
    write_text(tmp_path / "a.txt", "text")
    after = (tmp_path / "a.txt").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_text(tmp_path / "a.txt", "tent")
    assert (tmp_path / "a.txt").read_text() == "tent\n"


def test_the_writer_has_written_everything_at_its_end(tmp_path):
    with TextWriter() as writer:
        for number in range(600):
            writer.write(tmp_path / f"{number}.txt", str(number))
    assert len(list(tmp_path.iterdir())) == 600
    assert (tmp_path / "599.txt").read_text() == "599\n"


def test_the_writer_tells_what_could_not_be_written(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(OutputError, match="folder.txt: cannot be written"), TextWriter() as writer:
        writer.write(tmp_path / "folder.txt", "text")
    assert os.listdir(tmp_path) == ["folder.txt"]


def test_every_item_is_the_share_of_one_process():
    items = list(range(11))
    shares = [Shares(rank, 3).own(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert Shares().own(items) == items


def test_the_launch_says_which_process_this_is(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert Shares.of_launch() == Shares(2, 4)
    assert not Shares.of_launch().is_first


def test_pictures_are_found_in_natural_order_with_names_below_the_folder(tmp_path):
    for name in ("img10.png", "img2.PNG", "more/img1.png", "movie.mp4"):
        picture(tmp_path / name) if not name.endswith("mp4") else (tmp_path / name).write_bytes(b"x")
    found = find_pictures(tmp_path, is_recursive=True)
    assert found.names == ("img2.PNG", "img10.png", "more/img1.png")
    assert find_pictures(tmp_path, is_recursive=False).names == ("img2.PNG", "img10.png")
    assert [fault.path.name for fault in found.left_out] == ["movie.mp4"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "TRAIN_DATA_DIR .*gone does not exist"),
        ("empty", "TRAIN_DATA_DIR .*empty has no images, it is empty; put pictures into it"),
        ("parent", r"has no images, only folders \(child\): name one of them, or give --recursive"),
        ("file.png", "is a file; name the folder it is in"),
    ],
)
def test_a_folder_without_pictures_is_one_sentence(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "parent/child").mkdir(parents=True)
    picture(tmp_path / "file.png")
    with pytest.raises(DatasetError, match=message):
        find_pictures(tmp_path / name, is_recursive=False)


def test_pictures_of_one_stem_share_their_text_file():
    pictures = [Path("a/1.png"), Path("a/1.jpg"), Path("b/1.png"), Path("a/1.b.png")]
    assert text_file_of(pictures[3], ".txt") == Path("a/1.b.txt")
    shared = shared_text_files(pictures, ".txt")
    told = f"{Path('a/1.png')} shares the text file 1.txt with 1.jpg; rename all but one of them"
    assert {picture: str(fault) for picture, fault in shared.items()} == dict.fromkeys(pictures[:2], told)
    assert {fault.picture for fault in shared.values()} == set(pictures[:2])


def test_a_line_about_several_pictures_is_listed_once():
    shared = shared_text_files([Path("1.png"), Path("1.jpg")], ".txt")
    with pytest.raises(DatasetError) as caught:
        raise_faults([*shared.values(), Fault(Path("b.png"), "is cut off; replace it")])
    first, *lines = str(caught.value).splitlines()
    assert first == "everything else is done: 2 faults, for which 3 pictures were passed over:"
    assert [line.split()[0] for line in lines] == ["1.png", "b.png"]


def test_the_end_counts_and_then_lists_what_was_passed_over(caplog):
    outcome = Outcome(written=3, kept=2, faults=[Fault(Path("b.png"), "is cut off; replace it")], seconds=1.5)
    with caplog.at_level("INFO"), pytest.raises(DatasetError, match="b.png is cut off; replace it"):
        outcome.tell("captions", Shares())
    assert "captions: wrote 3, kept 2 that were there, passed over 1 picture; 2.0 pictures/s" in caplog.text


def test_faults_are_told_without_advice_about_what_was_kept(caplog):
    with caplog.at_level("INFO"), pytest.raises(DatasetError):
        Outcome(kept=2, faults=[Fault(Path("b.png"), "is cut off")]).tell("captions", Shares(), if_all_kept="give it")
    assert "kept 2" in caplog.text and "give it" not in caplog.text


@pytest.mark.parametrize("written", [0, 1])
def test_where_nothing_was_written_it_is_told_how_it_would_be(caplog, written):
    with caplog.at_level("INFO"):
        Outcome(written=written, kept=2).tell("captions", Shares(), if_all_kept="give --overwrite")
    assert ("kept 2 that were there; give --overwrite" in caplog.text) == (not written)


def test_folders_that_take_files_are_left_as_they_are(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    check_folders([tmp_path / "a.txt", tmp_path / "new/folder/b.txt", tmp_path / "link.txt"])
    assert [path.name for path in tmp_path.iterdir()] == ["link.txt"]


@pytest.mark.parametrize("place", ["file/a.txt", "link.txt"])
def test_a_folder_that_takes_no_files_is_one_sentence(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link.txt").symlink_to(tmp_path / "file/a.txt")
    with pytest.raises(OutputError, match=r"file: no file can be written there .* Make the folder writable, or use an"):
        check_folders([tmp_path / place])


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A new cache of the hub's client, and everything that ends with this test."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
    return monkeypatch


def test_a_model_is_a_folder(tmp_path):
    assert model_folder(str(tmp_path), "--model", ["*.json"]) == tmp_path
    with pytest.raises(CheckpointError, match="--model: the folder .*gone does not exist. Check the path"):
        model_folder(str(tmp_path / "gone"), "--model", ["*.json"])
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file. Name the folder"):
        model_folder(str(tmp_path / "model.onnx"), "--model", ["*.json"])


@pytest.mark.parametrize("name", ["./models/blip", "models/blip/", "models//blip", "a--b/c", "a/b..c", "models/blip."])
def test_a_path_that_is_mistyped_is_no_name_of_the_hub(name):
    with pytest.raises(CheckpointError, match="--model: the folder .* does not exist. Check the path"):
        model_folder(name, "--model", ["*.json"])


def test_text_files_that_cannot_be_had_or_read(tmp_path):
    (tmp_path / "a.txt").mkdir()
    faults = text_file_faults([tmp_path / "a.png", tmp_path / "b.png"], ".txt")
    assert [fault.problem for fault in faults.values()] == [
        "cannot have a text file, a.txt is a folder; rename the folder"
    ]
    (tmp_path / "b.txt").write_text(" \n")
    assert is_blank(tmp_path / "b.txt", 2) and not is_blank(tmp_path / "b.txt", 1)
    assert not is_blank(Path("/proc/self/mem"), 64)  # which even root cannot read


def test_what_is_needed_of_a_model_is_downloaded_once(hub_cache):
    with running_hub(hub_cache) as hub:
        hub.files |= {"config.json": b"{}", "big.bin": b"weights"}
        folder = model_folder("owner/name", "--model", ["*.json"])
        assert os.listdir(folder) == ["config.json"]
        with pytest.raises(CheckpointError, match="--model: owner/missing is no file or folder here, and the hub"):
            model_folder("owner/missing", "--model", ["*.json"])
    point_client_to("http://127.0.0.1:1", hub_cache)  # the hub is gone
    assert model_folder("owner/name", "--model", ["*.json"]) == folder


def test_without_a_hub_a_model_that_is_not_here_is_one_sentence_with_the_way_out(hub_cache):
    with pytest.raises(CheckpointError) as caught:
        model_folder("owner/name", "--model", ["*.json"])
    assert str(caught.value) == (
        "--model: owner/name is no folder here, it was not downloaded before, and the hub cannot be reached. "
        "Download it where there is a connection (hf download owner/name --local-dir FOLDER) and give the folder, or "
        "start once with a connection and without HF_HUB_OFFLINE."
    )
