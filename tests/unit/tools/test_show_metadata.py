"""tools/show_metadata.py: what is shown, and copies without what is personal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.checkpoint.metadata import tensor_hashes
from library.checkpoint.metadata_copy import stored_hashes
from library.preparing.metadata_scrub import scrub
from library.tensorfile import read_header
from tools.show_metadata import main

UNREADABLE = Path("/proc/self/mem")  # its first bytes are no memory
PERSONAL = {
    "ss_output_name": "joe_face",
    "ss_training_comment": "for Joe",
    "ss_session_id": "123",
    "ss_training_started_at": "1700000000.0",
    "ss_training_finished_at": "1700000001.0",
    "ss_dataset_dirs": '{"10_joe": {"n_repeats": 10, "img_count": 2}}',
    "ss_tag_frequency": '{"10_joe": {"joe": 2, "a hat": 1}, "5_joe": {"joe": 3}}',
    "ss_datasets": '[{"tag_frequency": {"10_joe": {"joe": 2}}}]',
    "ss_sd_model_name": "joes_base.safetensors",
    "modelspec.date": "2024-01-01T12:00:00",
    "modelspec.merged_from": "joe_a, joe_b",
    "modelspec.thumbnail": "data:image/jpeg;base64,/9j/4AAQ",
    "workflow": '{"nodes": ["C:/Users/joe/pictures"]}',
}
NEEDED = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "ss_network_alpha": "2.0",
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_steps": "100",
    "ss_text_encoder_lr": "[1e-05]",
    "ss_new_sd_model_hash": "ab" * 32,
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    "modelspec.title": "A face",
    "modelspec.author": "Joe",
    "format": "pt",
}
TENSORS = {
    "lora_unet_x.alpha": torch.tensor(2.0, dtype=torch.bfloat16),
    "lora_unet_x.lora_down.weight": torch.arange(4 * 70000, dtype=torch.float16).reshape(4, -1),
    "lora_unet_x.lora_up.weight": torch.arange(1200000, dtype=torch.float32).reshape(-1, 4),
    "steps": torch.tensor([1, 2], dtype=torch.int64),
}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A file of a few MB with hashes as a training writes them."""
    path = tmp_path_factory.mktemp("models") / "lora.safetensors"
    metadata = PERSONAL | NEEDED | {"ss_network_args": '{"conv_dim": 4, "preset": "/home/joe/preset.toml"}'}
    model, legacy = tensor_hashes(TENSORS, metadata)
    save_file(TENSORS, path, {**metadata, "sshs_model_hash": model, "sshs_legacy_hash": legacy})
    return path


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


# Showing


def test_json_on_stdout_is_sorted_and_decoded(lora, capsys):
    assert main(["--model", str(lora)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == sorted(metadata_of(lora))
    assert shown["ss_tag_frequency"]["10_joe"] == {"joe": 2, "a hat": 1}
    assert shown["ss_steps"] == "100" and shown["ss_text_encoder_lr"] == [1e-05]


def test_raw_values_are_what_the_file_has(lora, capsys):
    assert main(["--model", str(lora), "--raw"]) == 0
    assert json.loads(capsys.readouterr().out) == metadata_of(lora)


@pytest.mark.parametrize("value", ['{"a": 1, "a": 2}', "[NaN]", "{not json", "[" * 5000])
def test_what_json_would_change_stays_text(tmp_path, capsys, value):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"x": value})
    assert main(["--model", str(tmp_path / "a.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out) == {"x": value}


def test_no_metadata_is_an_empty_object_and_a_line(tmp_path, capsys):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert main(["--model", str(tmp_path / "a.safetensors")]) == 0
    output = capsys.readouterr()
    assert output.out == "{}\n" and "has no metadata" in output.err


def test_the_summary_is_a_few_lines(lora, capsys):
    assert main(["--model", str(lora), "--summary"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "file: lora.safetensors",
        "weights: 4 tensors, 5.4 MB, BF16, F16, F32, I64",
        "model: stable-diffusion-xl-v1-base/lora, sdxl_base_v1-0",
        "title: A face, by Joe",
        "network: networks.lora, rank 4, alpha 2.0, conv_dim 4, preset /home/joe/preset.toml",
        "base: joes_base.safetensors, hash ababababab",
        "trained: steps 100",
        "most frequent tags: joe (5), a hat (1)",
        "comment: for Joe",
    ]


def test_the_summary_takes_the_rank_of_the_weights_and_obeys_no_file(tmp_path, capsys):
    tensors = {f"x{rank}.lora_A.weight": torch.zeros(rank, 3) for rank in (2, 8)}
    save_file(tensors, tmp_path / "a.safetensors", {"ss_training_comment": "\x1b[2Jgone"})
    assert main(["--model", str(tmp_path / "a.safetensors"), "--summary"]) == 0
    shown = capsys.readouterr().out
    assert "network: rank 2 to 8\n" in shown and "comment: ?[2Jgone\n" in shown


def test_signs_that_the_console_lacks_are_escapes(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"x": "猫"})
    script = Path(__file__).parents[3] / "tools" / "show_metadata.py"
    done = subprocess.run(
        [sys.executable, str(script), "--model", str(tmp_path / "a.safetensors")],
        capture_output=True, env={"PYTHONIOENCODING": "ascii"}, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {"x": "猫"}


# Scrubbing


def test_what_is_personal_goes_and_what_loaders_need_stays(lora, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert main(["--model", str(lora), "--scrub", "--output", str(target)]) == 0
    left = metadata_of(target)
    assert {name: left[name] for name in NEEDED} == NEEDED
    assert set(left) - set(NEEDED) == {"ss_network_args", "sshs_model_hash", "sshs_legacy_hash"}
    assert json.loads(left["ss_network_args"]) == {"conv_dim": 4}
    told = capsys.readouterr()
    assert "removed: modelspec.date, " in told.err and "removed out of ss_network_args: preset" in told.err
    assert "--remove takes them out): modelspec.title, modelspec.author" in told.err
    assert json.loads(told.out).keys() == left.keys()
    assert b"joe" not in target.read_bytes()


def test_weights_are_the_same_bytes_and_hashes_are_those_of_the_copy(lora, tmp_path):
    target = tmp_path / "out.safetensors"
    main(["--model", str(lora), "--scrub", "--output", str(target)])
    start = {path: 8 + int.from_bytes(path.read_bytes()[:8], "little") for path in (lora, target)}
    assert lora.read_bytes()[start[lora] :] == target.read_bytes()[start[target] :]
    left = metadata_of(target)
    assert (left["sshs_model_hash"], left["sshs_legacy_hash"]) == tensor_hashes(load_file(target), left)
    assert left["sshs_legacy_hash"] != metadata_of(lora)["sshs_legacy_hash"]


@pytest.mark.parametrize("metadata", [{}, {"ss_a": "猫\n\x01é"}, {"ss_a": "x" * 2000, "other": "y"}])
def test_streamed_hashes_are_those_of_the_package(tmp_path, metadata):
    tensors = TENSORS | {"b": torch.ones(3, dtype=torch.bool), "f": torch.ones(5).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = stored_hashes(read_header(tmp_path / "a.safetensors"), metadata)
    assert found == tensor_hashes(tensors, metadata)


def test_small_files_have_the_hash_of_nothing(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert stored_hashes(read_header(tmp_path / "a.safetensors"), {})[1] == "e3b0c442"


def test_keep_and_remove_decide(lora, tmp_path):
    target = tmp_path / "out.safetensors"
    flags = ["--keep", "ss_tag_frequency", "workflow", "--remove", "modelspec.author"]
    assert main(["--model", str(lora), "--scrub", "--output", str(target), *flags]) == 0
    left = metadata_of(target)
    assert left["ss_tag_frequency"] == PERSONAL["ss_tag_frequency"] and left["workflow"] == PERSONAL["workflow"]
    assert "modelspec.author" not in left and "modelspec.title" in left


@pytest.mark.parametrize(
    "value",
    [
        *("/home/joe/a", "see C:\\joe", "D:/joe", "\\\\server\\joe", "~/joe", "x=/mnt/joe", "file:///joe", "in ../joe"),
        *("./joe", "of joe/face.safetensors", "joe\\face.png", "a (x=joe/2024.07/face.pt)"),
    ],
)
def test_a_value_with_a_path_goes_whatever_its_name(value):
    assert scrub({"modelspec.description": value}).metadata == {}


@pytest.mark.parametrize(
    "value",
    [
        *("https://joe.example/a", "(see https://joe.example/a/b.html)", "he/she and / or 16:9", "use it at 0.8..."),
        *("v3.5-large/lora", "for v1/v1.5", "lamps etc./no hats", "with negative.safetensors", ""),
    ],
)
def test_what_only_looks_like_a_path_stays(value):
    assert scrub({"modelspec.description": value}).metadata == {"modelspec.description": value}


def test_options_name_no_file_at_all():
    arguments = {"weights": "joe/pre", "preset": "joe.toml", "bases": ["joe/a", "b"], "conv_dim": 4, "algo": "lora"}
    optimizer = "torch.optim.adamw.AdamW(betas=(0.9, 0.99))"
    given = {
        "ss_network_args": json.dumps(arguments),
        "ss_optimizer": optimizer,
        "ss_lr_scheduler": "my.Schedule(state=joe/x.pt)",
        "config": '{"repo": "./private/x", "layers": 2}',
    }
    scrubbed = scrub(given)
    assert scrubbed.removed == ("ss_lr_scheduler",) and scrubbed.metadata["ss_optimizer"] == optimizer
    left = {name: json.loads(scrubbed.metadata[name]) for name in ("ss_network_args", "config")}
    assert left == {"ss_network_args": {"bases": ["b"], "conv_dim": 4, "algo": "lora"}, "config": {"layers": 2}}


@pytest.mark.parametrize(
    ("title", "is_left"), [("joe_face", False), ("LoRA@1700000000", False), ("joe_face of mine", True)]
)
def test_a_title_that_nobody_wrote_goes_as_the_name_of_the_file_does(title, is_left):
    given = {"ss_output_name": "joe_face", "modelspec.title": title}
    assert ("modelspec.title" in scrub(given).metadata) == is_left
    assert scrub(given, keep=["modelspec.title"]).metadata == {"modelspec.title": title}


def test_notes_of_peft_stay_without_the_name_of_the_base():
    notes = {"unet.lora_alpha": 8, "unet.base_model_name_or_path": "joe/base", "unet.target_modules": ["to_k"]}
    scrubbed = scrub({"lora_adapter_metadata": json.dumps(notes)})
    assert json.loads(scrubbed.metadata["lora_adapter_metadata"]) == {
        "unet.lora_alpha": 8,
        "unet.target_modules": ["to_k"],
    }


def test_a_file_is_replaced_only_when_told(lora, tmp_path, capsys):
    own = tmp_path / "own.safetensors"
    own.write_bytes(lora.read_bytes())
    assert main(["--model", str(own), "--scrub", "--output", str(own)]) == 2
    assert "is there already. Give another name, or --overwrite" in capsys.readouterr().err
    assert own.read_bytes() == lora.read_bytes()
    assert main(["--model", str(own), "--scrub", "--output", str(own), "--overwrite"]) == 0
    assert "ss_tag_frequency" not in metadata_of(own)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(own).items())
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]


def test_a_link_stays_a_link(lora, tmp_path):
    own, link = tmp_path / "own.safetensors", tmp_path / "link.safetensors"
    own.write_bytes(lora.read_bytes())
    link.symlink_to(own.name)
    assert main(["--model", str(link), "--scrub", "--output", str(link), "--overwrite"]) == 0
    assert link.is_symlink() and "ss_tag_frequency" not in metadata_of(own)


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that even the superuser cannot read")
def test_a_file_that_cannot_be_read_is_one_line(capsys):
    assert main(["--model", str(UNREADABLE)]) == 2
    assert capsys.readouterr().err == f"error: --model: {UNREADABLE} cannot be read (Input/output error).\n"


def pickled(path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model is needed"),
        (["a.safetensors"], "every option of tools/show_metadata.py begins with two hyphens, such as --model."),
        (["--model", "picture.png"], "picture.png is a PNG picture. `gen_img.py --from_png` reads"),
        (["--model", "no.safetensors"], "--model: no.safetensors does not exist"),
        (["--model", "old.ckpt"], "--model: old.ckpt is a pickle (.ckpt, .pt), and such files hold no metadata"),
        (["--model", "page.safetensors"], "is a web page"),
        (["--model", "a.safetensors", "--raw", "--summary"], "exclude each other"),
        (["--model", "a.safetensors", "--scrub"], "--scrub needs --output"),
        (["--model", "a.safetensors", "--output", "b.safetensors"], "--output: only for --scrub"),
        (["--model", "a.safetensors", "--scrub", "--output", "b.ckpt"], "must end in .safetensors"),
        (
            ["--model", "a.safetensors", "--scrub", "--output", "b.safetensors", "--keep", "ss_tepochs"],
            "Did you mean ss_epochs?",
        ),
        (
            ["--model", "a.safetensors", "--scrub", "--output", "b.safetensors", "--keep", "x", "--remove", "x"],
            "x is in --keep and in --remove",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.zeros(1)}, "a.safetensors", {"ss_epochs": "1"})
    pickled("old.ckpt")
    Path("picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    Path("page.safetensors").write_text("<!DOCTYPE html><html>", encoding="utf-8")
    assert main(flags) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert not Path("b.safetensors").exists()
