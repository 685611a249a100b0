"""States from the hub: which folder is meant, and what comes down."""

from pathlib import PurePosixPath

import pytest
from hub_server import COMMIT, point_client_to, running_hub

from library.errors import EnvironmentFault, OptionError
from library.training.saving.hub_state import StateReference, download_state, read_state_reference

TOKEN = "hf_secretsecretsecret"
FILES = {
    "run/lora-state-1/manifest.json": b"{}",
    "run/lora-state-1/inner/a.bin": b"\0\1",
    "run/lora-state-10/manifest.json": b"ten",
    "lora.safetensors": b"weights",
}


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch) as hub:
        hub.files = dict(FILES)
        yield hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b/c", StateReference("a/b", PurePosixPath("c"))),
        ("a/b/c/d/", StateReference("a/b", PurePosixPath("c/d"))),
        ("a/b/c:v1", StateReference("a/b", PurePosixPath("c"), "v1")),
        ("a/b/c:v1:dataset", StateReference("a/b", PurePosixPath("c"), "v1", "dataset")),
        ("a/b/c::dataset", StateReference("a/b", PurePosixPath("c"), "main", "dataset")),
    ],
)
def test_references_are_read(text, expected):
    assert read_state_reference(text) == expected


@pytest.mark.parametrize("text", ["", "state", "a/b", "a/b/../c", "a/b/c:v1:modell", "a/b/c:1:model:x"])
def test_other_forms_are_refused(text):
    with pytest.raises(OptionError, match="owner/repo/path"):
        read_state_reference(text)


def test_whole_names_are_compared_and_the_files_keep_their_places(hub, tmp_path):
    state = download_state(read_state_reference("owner/name/run/lora-state-1"), TOKEN, tmp_path)
    assert state == tmp_path / "run" / "lora-state-1"
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in state.rglob("*") if path.is_file()}
    assert found == {name: content for name, content in FILES.items() if "lora-state-1/" in name}
    assert not (tmp_path / "run" / "lora-state-10").exists()
    assert f"Bearer {TOKEN}" in hub.tokens


def test_all_files_are_of_the_revision_that_was_looked_up(hub, tmp_path):
    download_state(read_state_reference("owner/name/run/lora-state-1:v1"), TOKEN, tmp_path)
    assert any(request.split("?")[0].endswith("/api/models/owner/name/revision/v1") for request in hub.requests)
    resolved = [request for request in hub.requests if "/resolve/" in request]
    assert resolved
    assert all(f"/resolve/{COMMIT}/" in request for request in resolved)


@pytest.mark.parametrize("path", ["run/lora-state", "lora", "run/lora-state-1/manifest.json"])
def test_a_path_without_files_below_it_is_an_error_that_names_folders(hub, tmp_path, path):
    with pytest.raises(OptionError, match="It has run/lora-state-1, "):
        download_state(read_state_reference(f"owner/name/{path}"), TOKEN, tmp_path)


def test_a_repository_that_is_not_there_is_an_error(hub, tmp_path):
    with pytest.raises(OptionError, match="the hub refuses owner/missing") as caught:
        download_state(read_state_reference("owner/missing/state"), TOKEN, tmp_path)
    assert TOKEN not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_a_fault_of_the_environment(monkeypatch, tmp_path):
    point_client_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(EnvironmentFault, match="cannot be downloaded"):
        download_state(read_state_reference("owner/name/state"), TOKEN, tmp_path)
