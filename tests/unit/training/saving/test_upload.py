"""Uploads with the hub's own client against a server on this machine."""

import logging
import threading

import pytest
from hub_server import point_client_to, running_hub

from library.errors import OptionError
from library.options.groups import HubOptions
from library.training.saving.hub_faults import fault_words
from library.training.saving.upload import FINISH_SECONDS, Target, Uploader, make_uploader, patience

TOKEN = "hf_secretsecretsecret"
FAST = (0.01, 0.01, 0.01)
TARGET = Target("owner/name")


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "lora-000001.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.DEBUG, logger="easel")


def test_a_file_is_uploaded_into_a_new_private_repository(hub, saved):
    uploader = Uploader(TARGET, TOKEN)
    uploader.submit(saved)
    assert uploader.finish(60) == ["uploaded to owner/name: lora-000001.safetensors"]
    assert hub.files == {"lora-000001.safetensors": b"weights"}
    assert [(new["organization"], new["name"]) for new in hub.created] == [("owner", "name")]
    assert hub.visibilities == ["private"]
    assert f"Bearer {TOKEN}" in hub.tokens


def test_a_public_repository_a_type_and_a_folder_can_be_chosen(hub, saved):
    uploader = Uploader(Target("owner/name", "dataset", "/loras/cat/", is_private=False), TOKEN)
    uploader.submit(saved)
    uploader.finish(60)
    assert list(hub.files) == ["loras/cat/lora-000001.safetensors"]
    assert (hub.visibilities, hub.created[0]["type"]) == (["public"], "dataset")
    assert any(request.startswith("POST /api/datasets/owner/name/commit/") for request in hub.requests)


def test_an_existing_repository_is_used(hub, saved):
    hub.create_status = 409
    uploader = Uploader(TARGET, TOKEN)
    uploader.submit(saved)
    uploader.finish(60)
    assert list(hub.files) == [saved.name]


def test_a_folder_is_one_commit_and_the_repository_is_made_once(hub, saved, tmp_path):
    state = tmp_path / "lora-state"
    (state / "inner").mkdir(parents=True)
    (state / "manifest.json").write_text("{}")
    (state / "inner" / "a.bin").write_bytes(b"\0\1")
    uploader = Uploader(Target("owner/name", folder="run"), TOKEN)
    uploader.submit(saved)
    uploader.submit(state)
    assert uploader.finish(60) == ["uploaded to owner/name: lora-000001.safetensors, lora-state"]
    assert hub.commits == [
        ["run/lora-000001.safetensors"],
        ["run/lora-state/inner/a.bin", "run/lora-state/manifest.json"],
    ]
    assert hub.files["run/lora-state/inner/a.bin"] == b"\0\1"
    assert len(hub.created) == 1


def test_a_large_model_is_waited_for_as_long_as_a_slow_line_takes(saved, tmp_path):
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    for path in (folder / "shard", folder / "inner" / "shard"):
        with open(path, "wb") as file:
            file.truncate(5_000_000_000)  # takes no room
    assert patience([saved, tmp_path / "gone"]) == patience([]) == FINISH_SECONDS
    assert patience([saved, folder]) == pytest.approx(5000, abs=1)


def test_what_fails_twice_is_uploaded_by_the_third_try(hub, saved, caplog):
    hub.failures = [500, 503]
    uploader = Uploader(TARGET, TOKEN, delays=FAST)
    uploader.submit(saved)
    assert uploader.finish(60) == ["uploaded to owner/name: lora-000001.safetensors"]
    assert hub.files == {saved.name: b"weights"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_fails_every_time_is_one_warning_and_the_next_file_is_uploaded(hub, saved, caplog):
    other = saved.with_name("lora.safetensors")
    other.write_bytes(b"later")
    hub.failures = [500] * 4
    uploader = Uploader(TARGET, TOKEN, delays=FAST)
    uploader.submit(saved)
    uploader.submit(other)
    lines = uploader.finish(60)
    assert lines[0] == "uploaded to owner/name: lora.safetensors"
    assert lines[1].startswith("not uploaded: lora-000001.safetensors (")
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "lora-000001.safetensors is not uploaded to owner/name" in warnings[0]


def test_a_refusal_is_not_asked_for_again(hub, saved):
    hub.failures = [403, 403]
    uploader = Uploader(TARGET, TOKEN, delays=FAST)
    uploader.submit(saved)
    (line,) = uploader.finish(60)
    assert "403" in line
    assert hub.failures == [403]


def test_a_dead_endpoint_is_reported_at_the_end(saved, monkeypatch):
    point_client_to("http://127.0.0.1:9", monkeypatch)
    uploader = Uploader(TARGET, TOKEN, delays=FAST)
    uploader.submit(saved)
    (line,) = uploader.finish(60)
    assert line.startswith("not uploaded: lora-000001.safetensors (")


def test_the_end_of_a_run_does_not_wait_longer_than_it_is_told(saved, monkeypatch):
    point_client_to("http://127.0.0.1:9", monkeypatch)
    uploader = Uploader(TARGET, TOKEN, delays=(1000.0,))
    uploader.submit(saved)
    assert uploader.finish(0.2) == ["not uploaded in time: lora-000001.safetensors; this machine has it"]


def test_a_file_that_is_gone_is_no_error(hub, saved, caplog):
    saved.unlink()
    uploader = Uploader(TARGET, TOKEN)
    uploader.submit(saved)
    assert uploader.finish(60) == ["removed before it was uploaded: lora-000001.safetensors"]
    assert hub.requests == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_state_that_is_removed_between_two_tries_is_no_error(hub, tmp_path):
    state = tmp_path / "lora-state"
    state.mkdir()
    (state / "manifest.json").write_text("{}")
    hub.failures = [500]
    uploader = Uploader(TARGET, TOKEN, delays=(0.5,))
    uploader.submit(state)
    while hub.failures:
        threading.Event().wait(0.01)
    (state / "manifest.json").unlink()
    state.rmdir()
    assert uploader.finish(60) == ["removed before it was uploaded: lora-state"]


def test_nothing_submitted_nothing_said(hub):
    assert Uploader(TARGET, TOKEN).finish(60) == []
    assert hub.requests == []


def test_many_names_are_counted(hub, tmp_path):
    uploader = Uploader(TARGET, TOKEN)
    for number in range(7):
        (tmp_path / f"{number}.safetensors").write_bytes(b"")
        uploader.submit(tmp_path / f"{number}.safetensors")
    (line,) = uploader.finish(60)
    assert line.endswith("0.safetensors, 1.safetensors, 2.safetensors, 3.safetensors, 4.safetensors and 2 more")


def test_a_reason_is_one_short_line_without_the_token():
    assert fault_words(OSError(f"refused:\n  {TOKEN} is no token."), TOKEN) == "refused: *** is no token"
    assert fault_words(TimeoutError(), None) == "TimeoutError"
    assert TOKEN[:8] not in fault_words(OSError("x" * 230 + TOKEN), TOKEN)
    assert len(fault_words(OSError("x" * 10_000), TOKEN)) < 300


def test_a_token_of_the_environment_is_hidden_too(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ofthismachine")
    assert fault_words(OSError("hf_ofthismachine is no token"), None) == "*** is no token"
    assert fault_words(OSError(f"hf_ofthismachine or {TOKEN}"), TOKEN) == "*** or ***"


# Options


@pytest.mark.parametrize("name", ["owner", "owner/", "/name", "a/b/c", "owner/na me", "owner/-x", "a/b--c", "a/b.git"])
def test_a_repository_that_the_hub_would_not_take_is_refused_at_once(name):
    with pytest.raises(OptionError, match="--huggingface_repo_id is owner/name"):
        HubOptions(huggingface_repo_id=name)


def test_the_hub_s_client_takes_the_same_names():
    from huggingface_hub.utils import validate_repo_id

    for name in ("owner/name", "o/n", "My_Name/sd3.5-lora_v2", "0/1"):
        HubOptions(huggingface_repo_id=name)
        validate_repo_id(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"huggingface_repo_visibility": "secret"}, "--huggingface_repo_visibility is one of public, private"),
        ({"huggingface_repo_type": "models"}, "--huggingface_repo_type is one of model, dataset, space"),
        ({"huggingface_path_in_repo": "../x"}, "--huggingface_path_in_repo is a folder"),
        ({"huggingface_repo_id": None, "save_state_to_huggingface": True}, "needs --huggingface_repo_id"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        HubOptions(**{"huggingface_repo_id": "owner/name", **options})


def test_without_a_repository_there_is_no_uploader():
    assert make_uploader(HubOptions()) is None


def test_without_a_token_the_run_does_not_start(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(OptionError, match="there is no access token"):
        make_uploader(HubOptions(huggingface_repo_id="owner/name"))


def test_options_become_an_uploader_and_the_login_of_the_client_is_used(hub, saved, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_fromlogin")
    uploader = make_uploader(HubOptions(huggingface_repo_id="owner/name", huggingface_path_in_repo="loras"))
    uploader.submit(saved)
    uploader.finish(60)
    assert list(hub.files) == ["loras/lora-000001.safetensors"]
    assert "Bearer hf_fromlogin" in hub.tokens


def test_the_token_is_not_shown_with_the_options():
    assert TOKEN not in repr(HubOptions(huggingface_repo_id="owner/name", huggingface_token=TOKEN))
