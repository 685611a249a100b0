"""Failure catalogue, section D: models, their parts and LoRA files. Each row has a test that starts with its number.

What is refused ends with exit code 2 and one error that names every bad file and a way out. It comes from headers:
every number in these files is NaN, and reading one would end with a message about that. No file is touched, and
nothing in a file is executed. What is odd but good is trained.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bad_models
import pytest
import torch
from bad_models import (
    BAD_MODELS,
    CLIP_G,
    CLIP_LORA,
    OPEN_CLIP,
    SD3_LORA,
    SDXL,
    SDXL_LORA,
    SDXL_VAE,
    T5,
    part_of,
    payload,
    weights,
    with_number,
)
from safetensors.torch import load_file, save_file

from library.checkpoint.state_folder import write_folder
from library.errors import CheckpointError
from library.families.sd3.key_map import mmdit_to_diffusers
from library.models.vae_key_map import vae_to_diffusers

MODEL = "--pretrained_model_name_or_path"
UNET_ONLY = "--network_train_unet_only"
STEP = "--max_train_steps=1"
NO_RANKS = tuple(f"{half}_{layer}_dim=0" for half in ("context", "x") for layer in ("attn", "mlp", "mod"))
# what SD3_LORA was trained with
X_ATTENTION = ("--network_args", "train_block_indices=0", *(rank for rank in NO_RANKS if rank != "x_attn_dim=0"))
CLIP_L, CLIP_BIG, VAE, T5XXL = (
    *("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."),
    *("first_stage_model.", "text_encoders.t5xxl.transformer."),
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Bad:
    """Files that cannot be used.

    Attributes:
        files: {name: content, made from the bytes of a good model}.
        flags: That give them. FOLDER stands for the folder with the files, MODEL for the good model.
        words: What the error says: the file, what is wrong, and what to do.
    """

    files: dict[str, Callable[[bytes], bytes]]
    flags: tuple[str, ...]
    words: tuple[str, ...]


def model(name: str, *words: str) -> Bad:
    """A file of the corpus given as the model."""
    return Bad({name: BAD_MODELS[name]}, (f"{MODEL}=FOLDER/{name}",), (f"FOLDER/{name}", *words))


def part(flag: str, content: Callable[[bytes], bytes], *words: str) -> Bad:
    """A file given as a part of the model."""
    return Bad(
        {"part.safetensors": content}, (f"--{flag}=FOLDER/part.safetensors",), ("FOLDER/part.safetensors", *words)
    )


def lora(shapes: bad_models.Shapes, flags: tuple[str, ...], *words: str) -> Bad:
    """A LoRA file given as --network_weights."""
    name = "l.safetensors"
    return Bad(
        {name: lambda _: weights(shapes)}, (*flags, f"--network_weights=FOLDER/{name}"), (f"FOLDER/{name}", *words)
    )


BAD = {
    # damaged
    "D1 model": model("cut.safetensors", "is truncated", "of", "Download or copy the file again"),
    "D1 header": model("cut_header.safetensors", "is truncated: 400", "again"),
    "D1 longer": model("longer.safetensors", "1,000 bytes more", "again"),
    "D1 read without mapping": Bad(
        {"cut.safetensors": BAD_MODELS["cut.safetensors"]},
        (f"{MODEL}=FOLDER/cut.safetensors", "--disable_mmap_load_safetensors"),
        ("FOLDER/cut.safetensors is truncated", "Download"),
    ),
    "D1 LoRA": Bad(
        {"l.safetensors": lambda _: weights({"lora_unet_x.lora_down.weight": (4, 4)})[:-3]},
        ("--network_weights=FOLDER/l.safetensors",),
        ("--network_weights: FOLDER/l.safetensors is truncated", "again"),
    ),
    "D1 base weights": Bad(
        {"l.safetensors": lambda _: weights({"lora_unet_x.lora_down.weight": (4, 4)})[:-3]},
        ("--base_weights", "FOLDER/l.safetensors"),
        ("--base_weights: FOLDER/l.safetensors is truncated", "again"),
    ),
    "D1 several": Bad(
        {"v.safetensors": lambda good: good[:-9], "t.safetensors": lambda _: b""},
        ("--vae=FOLDER/v.safetensors", "--clip_l=FOLDER/gone.safetensors", "--t5xxl=FOLDER/t.safetensors"),
        (
            *("--vae: FOLDER/v.safetensors is truncated", "--clip_l: FOLDER/gone.safetensors does not exist"),
            *("--t5xxl: FOLDER/t.safetensors is empty", "has t.safetensors, v.safetensors"),
        ),
    ),
    "D2 empty": model("empty.safetensors", "is empty", "Download"),
    "D2 web page": model("page.safetensors", "is a web page", "login"),
    "D2 git-lfs": model("lfs.safetensors", "git-lfs pointer", "git lfs pull"),
    "D2 another format": model("gguf.safetensors", "is not a safetensors file", "Check the download"),
    "D2 missing": Bad(
        {}, (f"{MODEL}=FOLDER/no/sd3.safetensors",), ("sd3.safetensors does not exist", "nearest folder")
    ),
    "D2 hub name": Bad({}, (f"{MODEL}=someone/sd3",), ("someone/sd3 does not exist", "not downloaded", "give a file")),
    "D2 nothing": Bad({}, (f"{MODEL}=",), (f"{MODEL} is needed",)),
    "D2 folder": Bad({}, (f"{MODEL}=FOLDER",), ("FOLDER is a folder without", "Give the .safetensors file")),
    "D2 flags glued": Bad(
        {},
        (f"{MODEL}=sd3.safetensors--save_precision=fp16",),
        ("a space is missing", f"{MODEL}=sd3.safetensors and --save_precision=fp16"),
    ),
    # of another kind
    "D3 SDXL": model("xl.safetensors", "is an SDXL model", "sdxl_train_network.py"),
    "D3 SD 1": model("sd1.safetensors", "is a Stable Diffusion 1.x model", "with train_network.py"),
    "D3 SD 2": model("sd2.safetensors", "is a Stable Diffusion 2.x model", "--v2"),
    "D3 FLUX": model("flux.safetensors", "is a FLUX model", "cannot be trained here"),
    "D3 ControlNet": model("controlnet.safetensors", "is a ControlNet", "Give the base model"),
    "D3 unknown": model("unknown.safetensors", "no model that is known here", "Check the path"),
    "D3 LoRA": model("lora.safetensors", "is a LoRA", "--network_weights"),
    "D3 VAE": model("vae.safetensors", "is a VAE alone", "--vae"),
    "D4 incomplete": Bad(
        {
            "d.safetensors": lambda _: weights(
                {"transformer_blocks.0.attn.add_q_proj.weight": (4, 4), "pos_embed.proj.weight": (4, 4, 2, 2)}
            )
        },
        (f"{MODEL}=FOLDER/d.safetensors",),
        ("FOLDER/d.safetensors", "has no tensor", "incomplete"),
    ),
    # parts
    "D5 CLIP-G as CLIP-L": part(
        "clip_l", lambda _: weights(CLIP_G), "has a CLIP of width 48", "Give the right file as --clip_l"
    ),
    "D5 T5 as CLIP-L": part("clip_l", lambda _: weights(T5), "has no CLIP-L text encoder", "T5", "Give"),
    "D5 CLIP as T5": part("t5xxl", lambda _: weights(CLIP_G), "has no T5 text encoder", "CLIP", "Give"),
    "D5 open_clip": part("clip_g", lambda _: weights(OPEN_CLIP), "open_clip", "Hugging Face names"),
    "D5 half a CLIP-L": part(
        "clip_l",
        lambda good: part_of(good, CLIP_L, leave_out="layers.1.mlp"),
        "4 tensors are missing",
        "layers.1.mlp.fc1.weight",
        "again",
    ),
    "D5 half a CLIP-G": part(
        "clip_g",
        lambda good: part_of(good, CLIP_BIG, leave_out="layers.0.self_attn.q_proj"),
        "2 tensors are missing",
        "q_proj.weight",
        "again",
    ),
    "D5 half a T5": part(
        "t5xxl",
        lambda good: part_of(good, T5XXL, leave_out="block.1.layer.1"),
        "4 tensors are missing",
        "encoder.block.1.layer.1.DenseReluDense.wi_0.weight",
        "again",
    ),
    "D6 no VAE": model("without_vae.safetensors", "has no VAE inside", "--vae"),
    "D6 no CLIP": model(
        "without_clip.safetensors", "no CLIP-L text encoder and no CLIP-G text encoder", "--clip_l and --clip_g"
    ),
    "D6 half an MMDiT": model("half.safetensors", "4 missing", "joint_blocks.1.x_block.mlp.fc1.weight", "again"),
    "D6 VAE of SDXL": part("vae", lambda _: weights(SDXL_VAE), "--vae: ", "has the VAE of SDXL", "Give an SD3 VAE"),
    "D6 VAE in an SDXL": part("vae", lambda _: weights(SDXL), "has the VAE of SDXL,", "Give"),
    "D6 half a VAE": part(
        "vae",
        lambda good: part_of(good, VAE, leave_out="encoder.mid"),
        "tensors are missing",
        "encoder.mid.block_1.norm1.weight",
        "again",
    ),
    # LoRA files
    "D7 SDXL": lora(SDXL_LORA, (), "is a LoRA for SDXL, the model is SD3", "Give a LoRA"),
    "D7 SDXL with its ranks": lora(SDXL_LORA, ("--dim_from_weights",), "is a LoRA for SDXL", "Give a LoRA"),
    "D7 no text encoders": lora(
        SD3_LORA, (*X_ATTENTION, "--network_dim=4"), "has no modules for text encoders", f"Add {UNET_ONLY}"
    ),
    "D7 text encoders": lora(
        {**SD3_LORA, **CLIP_LORA}, (*X_ATTENTION, UNET_ONLY), "has modules for text encoders", f"{UNET_ONLY} leaves out"
    ),
    "D7 other arguments": lora(
        SD3_LORA, (UNET_ONLY,), "is a LoRA for SD3", "modules of the network are not in it", "same --network_args"
    ),
    "D7 a model": Bad({}, ("--network_weights=MODEL",), ("MODEL is a whole checkpoint", "Give a LoRA")),
    "D7 missing": Bad(
        {}, ("--network_weights=FOLDER/l.safetensors",), ("--network_weights: FOLDER/l.safetensors does not exist",)
    ),
    "D7 base weights": Bad(
        {"xl.safetensors": lambda _: weights(SDXL_LORA)},
        ("--base_weights", "FOLDER/xl.safetensors"),
        ("--base_weights FOLDER/xl.safetensors is a LoRA for SDXL", "Give a LoRA"),
    ),
    "D8 rank": lora(
        SD3_LORA,
        (*X_ATTENTION, UNET_ONLY, "--network_dim=8"),
        *("does not fit: each of the 2 modules has rank 4 in the file and 8 here", "--dim_from_weights"),
    ),
}


@pytest.fixture
def dataset(training: Any) -> Path:
    return training.dataset(training.examples)


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_files_are_named_before_weights_are_read(case, training, dataset, nan_model, refused):
    folder = training.folder / "models"
    folder.mkdir()
    for name, content in case.files.items():
        (folder / name).write_bytes(content(nan_model.read_bytes()))
    before = contents(folder)

    def placed(text: str) -> str:
        return text.replace("FOLDER", str(folder)).replace("MODEL", str(nan_model))

    ended = refused(dataset, STEP, *map(placed, case.flags))
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert [word for word in map(placed, case.words) if word not in ended.error] == [], ended.error
    assert contents(folder) == before


def test_d1_a_file_that_shrinks_after_its_header_was_read_is_named(training, dataset, tmp_path):
    model = Path(shutil.copytree(training.model.parent, tmp_path / "model")) / training.model.name
    whole = model.read_bytes()
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        training.run(dataset, STEP, model=model, after={"start": lambda: model.write_bytes(whole[:-1000])})
    assert str(model) in str(caught.value) and "Download or copy the file again" in str(caught.value)


# D4: another layout of the right model


def in_diffusers_layout(model: Path, folder: Path) -> None:
    """A diffusers folder with everything that is in a file."""
    tensors = load_file(model)

    def of(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    parts = {
        "transformer/diffusion_pytorch_model": mmdit_to_diffusers(of("model.diffusion_model.")),
        "vae/diffusion_pytorch_model": vae_to_diffusers(of(VAE)),
        "text_encoder/model": of(CLIP_L),
        "text_encoder_2/model": of(CLIP_BIG),
        "text_encoder_3/model": of(T5XXL),
    }
    for name, part in parts.items():
        (folder / name).parent.mkdir(parents=True)
        save_file({key: tensor.contiguous() for key, tensor in part.items()}, folder / f"{name}.safetensors")
    for tokenizer in model.parent.glob("tokenizer*"):
        shutil.copytree(tokenizer, folder / tokenizer.name)


def test_d4_a_diffusers_folder_trains_what_the_single_file_trains(training, dataset, tmp_path):
    in_diffusers_layout(training.model, tmp_path / "folder")
    run = training.unet_only(dataset, STEP, model=tmp_path / "folder")
    assert run.losses == pytest.approx(training.unet_only(dataset, STEP).losses, rel=1e-5)


def test_d4_a_transformer_alone_is_told_what_else_it_needs(training, dataset, refused, tmp_path):
    in_diffusers_layout(training.model, tmp_path / "folder")
    file = tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors"
    ended = refused(dataset, STEP, model=file)
    assert ended.code == 2 and f"{file} has no VAE" in ended.error
    assert "--vae and --clip_l and --clip_g" in ended.error


# D5, D6: parts in files of their own


def test_d5_no_weight_is_left_without_a_value(training, dataset, tiny_sd3_factory):
    files = tiny_sd3_factory(bundle=False)
    given = [f"--{name}={getattr(files, name)}" for name in ("clip_l", "clip_g", "t5xxl", "vae")]
    run = training.run(dataset, STEP, *given, model=files.model)
    models = [run.trainer.denoiser, *run.trainer.text.encoders.values(), run.trainer.encoders.vae()]
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    assert tensors and not any(tensor.is_meta for tensor in tensors)


def test_d5_all_incomplete_parts_are_named_at_once(training, dataset, nan_model, refused):
    good, flags = nan_model.read_bytes(), []
    for name, prefix, left_out in (("clip_l", CLIP_L, "final_layer_norm"), ("vae", VAE, "decoder.up.1.upsample")):
        path = training.folder / f"{name}.safetensors"
        path.write_bytes(part_of(good, prefix, leave_out=left_out))
        flags.append(f"--{name}={path}")
    ended = refused(dataset, STEP, *flags)
    assert ended.code == 2 and not ended.has_read_weights
    for name, lacks in (("clip_l", "text_model.final_layer_norm.weight"), ("vae", "decoder.up.1.upsample.conv.weight")):
        assert f"--{name}: {training.folder / name}.safetensors" in ended.error and lacks in ended.error


# D7, D8: LoRA files

ALPHA = ("--network_dim=4", "--network_alpha=2")


def test_d8_another_alpha_is_refused_and_that_of_the_file_can_be_used(training, dataset, refused):
    file = training.unet_only(dataset, STEP).file  # of rank and alpha 4
    given = f"--network_weights={file}"
    before = file.read_bytes()
    ended = refused(dataset, STEP, UNET_ONLY, *ALPHA, given, model=training.model)
    assert ended.code == 2, ended.shown
    assert str(file) in ended.error and "--dim_from_weights" in ended.error
    assert "alpha 4 in the file and 2 here" in ended.error
    run = training.unet_only(dataset, STEP, *ALPHA, given, "--dim_from_weights")
    assert {float(tensor) for name, tensor in run.weights.items() if name.endswith(".alpha")} == {4.0}
    assert file.read_bytes() == before


# D9: nothing is executed


def zipped(content: bytes) -> bytes:
    """What torch.save makes of a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "wrap"), [("model.ckpt", bytes), ("model.safetensors", zipped)])
@pytest.mark.parametrize(
    "flag", [MODEL, "--vae", "--clip_l", "--clip_g", "--t5xxl", "--network_weights", "--base_weights"]
)
def test_d9_a_pickle_is_refused_and_not_executed(flag, wrap, name, training, dataset, refused):
    mark, file = training.folder / "was_executed", training.folder / name
    file.write_bytes(wrap(payload(mark)))
    given = (flag, str(file)) if flag == "--base_weights" else (f"{flag}={file}",)
    ended = refused(dataset, STEP, *given)
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert f"{flag}: {file} is a pickle" in ended.error and "Convert it to .safetensors" in ended.error
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_d9_pickles_of_every_protocol_are_known(protocol, training, dataset, refused):
    file = training.folder / "model.ckpt"
    file.write_bytes(payload(training.folder / "mark", protocol))
    assert f"{file} is a pickle" in refused(dataset, STEP, model=file).error


@pytest.mark.parametrize("wrap", [bytes, zipped])
def test_d9_a_pickle_in_a_state_is_refused_and_not_executed(wrap, training, dataset, refused):
    mark = training.folder / "was_executed"
    saved = training.unet_only(dataset, STEP, "--save_state", "--output_name=a").trainer.folder / "a-state"
    files = {path.name: path.read_bytes() for path in saved.iterdir() if path.name != "manifest.json"}
    content = {**files, "training.pt": wrap(payload(mark))}
    state = training.folder / "state"
    about = json.loads((saved / "manifest.json").read_text())["about"]
    write_folder(state, {name: partial(_write, own) for name, own in content.items()}, about)  # its hashes are right
    ended = refused(
        *(dataset, "--max_train_steps=2", UNET_ONLY, "--cache_latents", "--cache_text_encoder_outputs"),
        *(f"--resume={state}", "--allow_changed"),
        model=training.model,
    )
    assert ended.code == 2, ended.shown
    assert str(state) in ended.error and "Continue from another state" in ended.error
    assert not mark.exists()


def _write(content: bytes, place: Path) -> None:
    place.write_bytes(content)


# D10: numbers

TENSORS = {
    "MMDiT": "model.diffusion_model.joint_blocks.1.x_block.mlp.fc1.weight",
    "VAE": f"{VAE}encoder.mid.block_1.conv1.weight",
    "CLIP-L": f"{CLIP_L}text_model.encoder.layers.1.mlp.fc1.weight",
    "CLIP-G": f"{CLIP_BIG}text_projection.weight",
    "T5": f"{T5XXL}encoder.block.1.layer.0.SelfAttention.q.weight",
}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", TENSORS.values(), ids=TENSORS)
def test_d10_one_number_that_is_not_finite_is_named(name, number, training, dataset, refused):
    model = damaged_copy(training, name, number)
    ended = refused(dataset, STEP, model=model)
    assert ended.code == 2
    assert f"{model}: {name} has NaN or infinite values" in ended.error and "Use an intact file" in ended.error
    assert not list(training.folder.glob("out*/*.safetensors"))


def damaged_copy(training: Any, name: str, number: float, model: Path | None = None) -> Path:
    """A copy of a model, and of its tokenizers, with one number changed."""
    model = model or training.model
    folder = Path(shutil.copytree(model.parent, training.folder / "model"))
    path = folder / model.name
    path.write_bytes(with_number(path.read_bytes(), name, number))
    return path


def test_d10_weights_beyond_fp16_are_named_with_the_way_out(training, dataset, refused, tiny_sd3_factory):
    model = damaged_copy(training, TENSORS["MMDiT"], 1e6, tiny_sd3_factory(dtype="fp32").model)
    ended = refused(dataset, STEP, "--mixed_precision=fp16", model=model)
    assert ended.code == 2 and f"{model}: {TENSORS['MMDiT']}" in ended.error
    assert "as float16" in ended.error and "bf16" in ended.error


def test_d10_latents_that_overflow_end_the_run_and_are_not_cached(training, refused, tiny_sd3_factory):
    pictures = training.pictures()
    before = contents(pictures)
    model = damaged_copy(training, f"{VAE}encoder.conv_out.bias", 3e38, tiny_sd3_factory(dtype="fp32").model)
    ended = refused(training.dataset(pictures), STEP, "--cache_latents_to_disk", model=model)
    assert ended.code == 2 and "latents that are not finite" in ended.error
    assert "--no_half_vae" in ended.error and str(model) in ended.error
    assert contents(pictures) == before


@pytest.mark.parametrize("flag", ["--network_weights", "--base_weights"])
def test_d10_a_lora_that_is_not_finite_is_refused_before_the_model_is_read(flag, training, dataset, refused):
    good = training.unet_only(dataset, STEP).file
    name = next(name for name in load_file(good) if name.endswith("lora_up.weight"))
    file = training.folder / "ruined.safetensors"
    file.write_bytes(with_number(good.read_bytes(), name, float("nan")))
    ended = refused(dataset, STEP, UNET_ONLY, "--network_dim=4", "--network_alpha=4", flag, str(file))
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert f"{flag} {file} is damaged: {name}" in ended.error and "Give an earlier file" in ended.error


def test_a_model_with_nan_weights_is_named(dataset, nan_model, refused):
    """The tests above rest on this: with nothing else wrong, the weights are what ends the run."""
    ended = refused(dataset, STEP)
    assert (ended.code, ended.has_read_weights) == (2, True)
    assert str(nan_model) in ended.error


def test_every_row_has_a_test():
    names = [name.split("_")[1] for name in globals() if name.startswith("test_d")]
    rows = {name.split()[0].lower() for name in BAD} | set(names)
    assert {f"d{number}" for number in range(1, 11)} <= rows
    used = {name for case in BAD.values() for name in case.files}
    assert BAD_MODELS.keys() <= used
