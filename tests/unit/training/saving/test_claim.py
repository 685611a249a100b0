"""One run at a time writes to a folder, and what another run has made is not overwritten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.checkpoint.state_folder import write_folder
from library.errors import OptionError
from library.training.saving.claim import CLAIM, OutputClaim, files_of_another_run

ROOT = Path(__file__).resolve().parents[4]
HOLD = "import sys; from pathlib import Path; from library.training.saving.claim import OutputClaim; "
HOLD += "claim = OutputClaim(Path(sys.argv[1])); claim.take(); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(OptionError, match=f"in use by another run \\(process {holder.pid} on .* since 2") as refusal:
        OutputClaim(tmp_path).take()
    assert str(tmp_path) in str(refusal.value) and refusal.value.exit_code == 2


def test_a_killed_run_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    claim = OutputClaim(tmp_path)
    claim.take()
    claim.release()


def test_what_a_run_has_written_is_remembered_by_name(tmp_path):
    first = OutputClaim(tmp_path)
    first.take()
    assert first.run_of("x") is None
    first.remember("x", "mark")
    first.remember(None, "other")
    first.release()
    second = OutputClaim(tmp_path)
    second.take()
    assert (second.run_of("x"), second.run_of(None), second.run_of("y")) == ("mark", "other", None)
    second.release()
    assert json.loads((tmp_path / CLAIM).read_text())["holder"] is None


def test_a_claim_that_was_half_written_is_no_obstacle(tmp_path):
    (tmp_path / CLAIM).write_text('{"holder": {"proc')
    claim = OutputClaim(tmp_path)
    claim.take()
    assert claim.run_of("x") is None
    claim.release()


def test_taking_a_folder_settles_what_a_killed_run_has_left(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    from library.tensorfile import temporary_name

    torso = tmp_path / temporary_name(int(dead.stdout))
    torso.write_bytes(b"half")
    write_folder(tmp_path / "m-state", {"a": lambda p: p.write_text("x")}, {"current_step": 3})
    os.replace(tmp_path / "m-state", tmp_path / f".m-state{temporary_name(int(dead.stdout))}")
    claim = OutputClaim(tmp_path)
    claim.take()
    claim.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [CLAIM, "m-state"]


@pytest.mark.parametrize("reason", ["is_same_run", "is_resumed"])
def test_files_are_overwritten_for_a_reason_only(tmp_path, reason):
    (tmp_path / "x.safetensors").touch()
    reasons = {"is_same_run": False, "is_resumed": False}
    names = ["x.safetensors", "x-000001.safetensors"]
    with pytest.raises(OptionError, match="already has x.safetensors of another run") as refusal:
        files_of_another_run(tmp_path, names, **reasons)
    for word in ("--output_name", "--resume", "--overwrite"):
        assert word in str(refusal.value)
    files_of_another_run(tmp_path, names, **{**reasons, reason: True})
    files_of_another_run(tmp_path, ["y.safetensors"], **reasons)
