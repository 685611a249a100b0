"""What `--dry_run` foretells for models of the published sizes: `python -m benchmarks.fit_table`.

The model files have the headers of the real ones, in fp16, and nothing in them: a forecast reads headers only. They are
sparse, so that they take no room on disks of Linux and macOS. One picture of 1024 x 1024 a step, adapters of rank 16 in
the MMDiT alone. Every figure is computed for a GPU; none has to be there, and none was measured on one.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.forecast_check import make_trainer
from benchmarks.memory_table import GIB, MODELS
from library.errors import OptionError
from library.models.mmdit import MMDiT, MMDiTConfig
from library.training.forecast.fitting import Fitting, flags_of
from library.training.forecast.forecast import Forecaster

SIDE = 1024  # pixels
LORA, FULL = "sd3_train_network", "sd3_train"
BF16 = ("--mixed_precision=bf16",)
CACHED = (*BF16, "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")
CHECKPOINTED = (*CACHED, "--gradient_checkpointing")
EVERY_SECOND = (*CHECKPOINTED, "--gradient_checkpointing_every_n_blocks=2")
LORA_SETTINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("`--mixed_precision=bf16` alone", BF16),
    ("caches", CACHED),
    ("caches, `--gradient_checkpointing` with `--gradient_checkpointing_every_n_blocks=2`", EVERY_SECOND),
    ("caches, `--gradient_checkpointing`", CHECKPOINTED),
    ("... and `--base_weights_dtype=int8`", (*CHECKPOINTED, "--base_weights_dtype=int8")),
    ("... and `--base_weights_dtype=nf4`", (*CHECKPOINTED, "--base_weights_dtype=nf4")),
    ("... and half of the blocks swapped", (*CHECKPOINTED, "--blocks_to_swap=HALF")),
    ("... and all blocks swapped", (*CHECKPOINTED, "--blocks_to_swap=100")),
    ("... and both: `int8`, half swapped", (*CHECKPOINTED, "--blocks_to_swap=HALF", "--base_weights_dtype=int8")),
)
LEAN = (*BF16, "--full_bf16", "--optimizer_type=Adafactor", "--fused_backward_pass", "--max_grad_norm=0")
CARDS = ("6GB", "8GB", "10GB", "12GB", "16GB", "24GB")
_CLIPS = {"clip_l": (768, 12, 12), "clip_g": (1280, 32, 20)}  # width, layers, heads
_VAE_WIDTHS = (128, 256, 512, 512)


def write_empty(path: Path, shapes: Mapping[str, Sequence[int]]) -> Path:
    """Write a weights file in fp16 that is a header and a hole."""
    table, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return path


def _shapes(model: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def write_models(folder: Path, config: MMDiTConfig) -> list[str]:
    """All parts of a model; returns the flags that name them."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    level = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    no_quant = {"use_quant_conv": False, "use_post_quant_conv": False}
    t5 = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    )
    with torch.device("meta"):
        vae = AutoencoderKL(**level, **no_quant, block_out_channels=_VAE_WIDTHS, layers_per_block=2, latent_channels=16)
        base = {**_shapes(MMDiT(config), "model.diffusion_model."), **_shapes(vae, "first_stage_model.")}
        files = {"pretrained_model_name_or_path": base, "t5xxl": _shapes(T5EncoderModel(t5))}
        del files["t5xxl"]["encoder.embed_tokens.weight"]  # the same as shared.weight
        for name, (width, layers, heads) in _CLIPS.items():
            clip = CLIPTextConfig(
                hidden_size=width,
                projection_dim=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
            )
            files[name] = _shapes(CLIPTextModelWithProjection(clip))
    return [f"--{name}={write_empty(folder / f'{name}.safetensors', shapes)}" for name, shapes in files.items()]


def write_data(folder: Path) -> list[str]:
    """A picture with a caption, and the flags of every run."""
    from PIL import Image

    pictures = folder / "pictures"
    pictures.mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(pictures / "gray.png")
    (pictures / "gray.txt").write_text("gray", encoding="utf-8")
    subset = f"[[datasets.subsets]]\nimage_dir = '{pictures.as_posix()}'\n"
    config = folder / "data.toml"
    config.write_text(f"[[datasets]]\nresolution = {SIDE}\ncaption_extension = '.txt'\n{subset}", encoding="utf-8")
    return [f"--dataset_config={config}", f"--output_dir={folder / 'out'}", "--max_train_steps=10", "--seed=1"]


def forecaster_of(common: Sequence[str], flags: Sequence[str], config: MMDiTConfig, script: str = LORA) -> Forecaster:
    """The forecast of a command, on a GPU."""
    own = ("--network_module=networks.lora", "--network_dim=16", "--network_train_unet_only") if script == LORA else ()
    half = [flag.replace("HALF", str(config.depth // 2)) for flag in flags]
    return Forecaster(make_trainer(script, [*common, *own, *half]), torch.device("cuda"))


def settings_table(models: Mapping[str, list[str]]) -> Iterator[str]:
    """GiB of the GPU, and of the host, by setting and model."""
    yield f"| setting | {' | '.join(models)} |"
    yield "| --- " * (1 + len(models)) + "|"
    for words, flags in LORA_SETTINGS:
        cells = []
        for name, common in models.items():
            forecaster = forecaster_of(common, flags, MODELS[name])
            found = forecaster.of(forecaster.trainer.options)
            cells.append(f"{found.training.device / GIB:.1f}")
        yield f"| {words} | {' | '.join(cells)} |"


def fitting_table(models: Mapping[str, list[str]], script: str, flags: Sequence[str]) -> Iterator[str]:
    """What `--fit` chooses, by model and card; cards for which it chooses the same share a row."""
    yield "| model | `--fit` | adds | GPU, GiB | host, GiB |"
    yield "| --- | --- | --- | --- | --- |"
    for name, common in models.items():
        found = [(card, _fitted(common, [*flags, f"--fit={card}"], name, script)) for card in CARDS]
        for cells, group in groupby(found, key=lambda pair: pair[1]):
            yield f"| {name} | {', '.join(f'`{card}`' for card, _ in group)} | {' | '.join(cells)} |"


def _fitted(common: Sequence[str], flags: Sequence[str], name: str, script: str) -> tuple[str, str, str]:
    forecaster = forecaster_of(common, flags, MODELS[name], script)
    options: Any = forecaster.trainer.options
    fitting = Fitting.of(forecaster)
    assert fitting is not None
    try:
        chosen, _ = fitting.fit(options)
    except OptionError:
        return "does not fit", "", ""
    found = forecaster.of(chosen)
    added = [flag for flag in flags_of(options, chosen) if not flag.startswith("--cache_")]
    caches = ["caches"] if chosen.cache != options.cache else []
    words = ", ".join([*caches, *(f"`{flag}`" for flag in added)]) or "nothing"
    return words, f"{found.peak.device / GIB:.1f}", f"{found.host / GIB:.1f}"


def main(argv: Iterable[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    chosen = parser.parse_args(None if argv is None else list(argv))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        models = {}
        for name in chosen.models:
            (folder := Path(place) / name).mkdir()
            models[name] = [*write_models(folder, MODELS[name]), *write_data(folder)]
        for line in settings_table(models):
            print(line, flush=True)
        for script, flags in ((LORA, BF16), (FULL, LEAN)):
            print(f"\n{script} {' '.join(flags)}\n", flush=True)
            for line in fitting_table(models, script, flags):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
