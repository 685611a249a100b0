"""Models named as the hub names them: which names, which files come down, and what is said when they do not."""

from pathlib import Path

import pytest
from hub_server import point_client_to, running_hub

from library.errors import CheckpointError
from library.families.hub_model import hub_folder, hub_vae, is_hub_name, needed_files

WHAT = "--pretrained_model_name_or_path"
FILES = {
    "model_index.json": b"{}",
    "README.md": b"words",
    "big.safetensors": b"all of it",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"unet",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"only half",
    "text_encoder/config.json": b"{}",
    "text_encoder/model-00001-of-00002.safetensors": b"one",
    "text_encoder/model-00002-of-00002.safetensors": b"second",
    "text_encoder/model.safetensors.index.json": b"{}",
    "text_encoder/model.fp16-00001-of-00001.safetensors": b"half",
    "text_encoder/model.onnx": b"other",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"",
    "scheduler/scheduler_config.json": b"{}",
    "safety_checker/model.safetensors": b"not needed",
}
NEEDED = {
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with running_hub(monkeypatch) as hub:
        hub.files = dict(FILES)
        yield hub


def test_names_of_the_hub_are_two_words_and_no_path_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_hub_name(Path("owner/some-model-1.5"))
    for path in (
        "models/mine",
        "model",
        "a/b/c",
        "/owner/name",
        "../name",
        "owner/file.safetensors",
        "owner/file.ckpt",
    ):
        assert not is_hub_name(Path(path)), path


def test_of_each_part_one_form_is_needed():
    assert set(needed_files(FILES)) == NEEDED
    assert needed_files(["big.safetensors", "vae/diffusion_pytorch_model.safetensors", "unet/config.json"]) == []


def test_what_is_needed_comes_down_and_is_there_without_the_hub(hub, monkeypatch):
    folder = hub_folder(Path("owner/name"), WHAT)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: content for name, content in FILES.items() if name in NEEDED}
    point_client_to("http://127.0.0.1:9", monkeypatch)
    assert hub_folder(Path("owner/name"), WHAT) == folder


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (FILES, "diffusion_pytorch_model.fp16.safetensors"),
        (
            {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"vae", "vae.safetensors": b"other form"},
            "diffusion_pytorch_model.safetensors",
        ),
    ],
    ids=["in a model", "alone"],
)
def test_only_the_vae_comes_down_and_is_there_without_the_hub(hub, monkeypatch, files, weights):
    hub.files = files
    folder = hub_vae(Path("owner/name"), "--vae")
    assert {path.name for path in folder.iterdir()} == {"config.json", weights}
    point_client_to("http://127.0.0.1:9", monkeypatch)
    assert hub_vae(Path("owner/name"), "--vae") == folder
    with pytest.raises(CheckpointError, match=r"^--vae: owner/other is no file or folder here, .* cannot be reached\."):
        hub_vae(Path("owner/other"), "--vae")


def test_what_was_never_downloaded_is_not_there_without_the_hub(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"owner/name is no file or folder here, .*without HF_HUB_OFFLINE\.$"):
        hub_folder(Path("owner/name"), WHAT)
    assert hub.requests == []


def test_unknown_and_unfit_models_are_refused_in_one_sentence(hub):
    with pytest.raises(CheckpointError, match=r"owner/missing is no file or folder here, and the hub shows no such"):
        hub_folder(Path("owner/missing"), WHAT)
    hub.files = {"big.safetensors": b"", "other.safetensors": b""}
    with pytest.raises(CheckpointError, match=r"Download one of its files \(big\.safetensors, other\.safetensors\)"):
        hub_folder(Path("owner/name"), WHAT)
