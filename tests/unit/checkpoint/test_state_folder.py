"""State folders: complete or not there, whatever happens while they are written."""

import json
import os
import shutil

import pytest

from library.checkpoint import state_folder
from library.checkpoint.state_folder import MANIFEST, glance, open_folder, recover_folders, write_folder
from library.errors import CheckpointError, OutputError

ABOUT = {"step": 7, "name": "日本 é"}


def writers(text="x"):
    return {"a.txt": lambda p: p.write_text(text), "b.bin": lambda p: p.write_bytes(b"\0" * 1000)}


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "m-state"
    write_folder(path, writers(), ABOUT)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_written_whole_and_says_what_it_was_told(state):
    assert names(state) == ["a.txt", "b.bin", MANIFEST]
    opened = open_folder(state)
    assert opened.path == state and opened.about == ABOUT == glance(state)
    assert names(state.parent) == ["m-state"]


def test_writing_again_replaces_the_folder(state):
    write_folder(state, writers("new"), {"step": 8})
    assert (state / "a.txt").read_text() == "new" and open_folder(state).about == {"step": 8}
    assert names(state.parent) == ["m-state"]


def test_a_writer_that_fails_leaves_the_old_folder_and_nothing_else(state):
    def full(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_folder(state, {"a.txt": lambda p: p.write_text("new"), "b.bin": full}, ABOUT)
    assert open_folder(state).about == ABOUT and (state / "a.txt").read_text() == "x"
    assert names(state.parent) == ["m-state"]


def test_too_little_space_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(OutputError, match="needs 1,000,000"):
        write_folder(tmp_path / "s", writers(), ABOUT, num_bytes=10**18)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["a.txt", "b.bin", MANIFEST])
@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped", "empty"])
def test_a_damaged_folder_is_refused_and_the_file_named(state, name, harm):
    path = state / name
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        changed = {"truncated": content[:-1], "flipped": bytes([content[0] ^ 1]) + content[1:], "empty": b""}
        path.write_bytes(changed[harm])
    with pytest.raises(CheckpointError, match=name):
        open_folder(state)


def test_a_folder_that_is_not_there_names_the_states_nearby(state):
    with pytest.raises(CheckpointError, match="m-state"):
        open_folder(state.parent / "other-state")


def test_a_later_format_is_told(state):
    content = json.loads((state / MANIFEST).read_text())
    (state / MANIFEST).write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        open_folder(state)


class Killed(BaseException):
    """In place of SIGKILL: nothing is caught, nothing is tidied."""


@pytest.mark.parametrize("is_second", [False, True], ids=["first", "over another"])
def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new_state(tmp_path, monkeypatch, is_second):
    """Every fsync and rename in turn is the last thing that happens."""
    monkeypatch.setattr(state_folder.shutil, "rmtree", lambda *_, **__: None)  # what a kill cannot do any more
    reached, number = True, 0
    while reached:
        folder = tmp_path / str(number)
        folder.mkdir()
        if is_second:
            write_folder(folder / "m-state", writers("old"), {"step": 1})
        reached = _kill_at(number, lambda folder=folder: write_folder(folder / "m-state", writers("new"), {"step": 2}))
        with monkeypatch.context() as context:
            context.setattr(state_folder, "is_abandoned", lambda path, name: True)  # this process still lives
            context.setattr(state_folder.shutil, "rmtree", REAL_RMTREE)
            recover_folders(folder)
        if (folder / "m-state").exists():
            text = (folder / "m-state" / "a.txt").read_text()
            assert open_folder(folder / "m-state").about["step"] == {"old": 1, "new": 2}[text]
        else:
            assert not is_second
        assert set(names(folder)) <= {"m-state"}
        number += 1
    assert number > 6


REAL_RMTREE = shutil.rmtree


def _kill_at(number, act):
    """Whether the operation was reached."""
    left = [number]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "replace"):
            real = getattr(os, name)

            def counted(*args, real=real):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*args)

            patch.setattr(os, name, counted)
        try:
            act()
        except Killed:
            return True
    return False


def test_of_two_complete_states_the_new_one_gets_the_name(state, monkeypatch):
    """A kill between the two renames has left neither under it."""
    write_folder(state.with_name("new"), writers("new"), {"step": 8})
    os.replace(state, state.with_name(".m-state.replaced"))
    os.replace(state.with_name("new"), state.with_name(f".m-state.{os.getpid()}-{'0' * 12}.tmp"))
    monkeypatch.setattr(state_folder, "is_abandoned", lambda path, name: True)
    recover_folders(state.parent)
    assert names(state.parent) == ["m-state"] and open_folder(state).about == {"step": 8}


def test_a_removal_that_was_cut_short_is_finished(state):
    aside = state.with_name(".m-state.removed")
    os.replace(state, aside)
    (aside / "a.txt").unlink()
    recover_folders(state.parent)
    assert names(state.parent) == []


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    torso = tmp_path / f".m-state.{os.getpid()}-{'0' * 12}.tmp"
    torso.mkdir()
    told = recover_folders(tmp_path)
    assert torso.exists() and told == []
