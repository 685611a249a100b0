"""Build a tiny SD3 checkpoint with random weights, in the layout of the published files.

    python -m examples.tiny_sd3.make FOLDER [--variant medium|5-medium|5-large] [--separate] [--dtype fp16]

The names, the shapes' relations and the tokenizers are those of a real model; only the sizes are small. The weights
are drawn so that signals keep a size near 1 on their way and every path is alive: a LoRA can learn on it, but the
pictures mean nothing. The same seed gives the same file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if __package__ in (None, ""):  # run as a file: the project is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from examples.tiny_sd3.tokenizers import CLIP_LENGTH, write_tokenizers
from library.rng import torch_stream
from library.tensorfile import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

CLIP_L_WIDTH = 32
CLIP_G_WIDTH = 48  # must differ from CLIP-L's: diffusers tells the two apart by it
POOLED_WIDTH = CLIP_L_WIDTH + CLIP_G_WIDTH
CONTEXT_WIDTH = 96
LATENT_CHANNELS = 16
HEAD_WIDTH = 64
POSITIONS = 24  # a side of the position table, in patches: pictures up to 384 px
T5_HEADS, T5_HEAD_WIDTH, T5_BUCKETS = 4, 16, 32
VAE_WIDTHS = (16, 16, 32, 32)


class Variant(NamedTuple):
    """What distinguishes the three published shapes. The width is 64 * depth, as other tools expect."""

    depth: int
    has_qk_norm: bool
    dual_blocks: tuple[int, ...]  # blocks with a second attention over the image tokens
    architecture: str


VARIANTS = {
    "medium": Variant(2, False, (), "stable-diffusion-3-medium"),
    "5-medium": Variant(3, True, (0, 1), "stable-diffusion-3-5-medium"),
    "5-large": Variant(2, True, (), "stable-diffusion-3-5-large"),
}


@dataclass(frozen=True)
class TinySd3:
    """Where the files of a tiny model are. Parts that are bundled in `model` have no file of their own."""

    model: Path
    clip_l: Path | None = None
    clip_g: Path | None = None
    t5xxl: Path | None = None
    vae: Path | None = None


class Init(NamedTuple):
    """A tensor to draw: normal numbers of this shape, deviation and mean."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


def build_tiny_sd3(
    folder: str | Path, *, variant: str = "medium", seed: int = 0, bundle: bool = True, dtype: str = "fp16"
) -> TinySd3:
    """Write the model and, beside it, the folders tokenizer, tokenizer_2 and tokenizer_3.

    Args:
        folder: Made if it does not exist.
        variant: A key of VARIANTS.
        seed: Of the weights.
        bundle: One file with everything; otherwise the MMDiT and each of the other four parts in its own file.
        dtype: "fp16", "bf16" or "fp32".
    """
    folder = Path(folder)
    clip_vocab, t5_vocab = write_tokenizers(folder)
    parts = {
        "mmdit": draw_tensors(mmdit_plan(VARIANTS[variant]), seed, "mmdit") | position_table(VARIANTS[variant].depth),
        "vae": _with_small_variance(draw_tensors(vae_plan(), seed, "vae")),
        "clip_l": draw_tensors(clip_plan(CLIP_L_WIDTH, clip_vocab, has_projection=False), seed, "clip_l"),
        "clip_g": draw_tensors(clip_plan(CLIP_G_WIDTH, clip_vocab, has_projection=True), seed, "clip_g"),
        "t5xxl": with_both_embeddings(draw_tensors(t5_plan(t5_vocab), seed, "t5xxl")),
    }
    parts = {name: _cast(tensors, dtype) for name, tensors in parts.items()}
    model = folder / "sd3.safetensors"
    metadata = {"modelspec.architecture": VARIANTS[variant].architecture}  # one entry: safetensors shuffles several
    bundled = parts if bundle else {"mmdit": parts["mmdit"]}
    write_tensors(model, {PREFIXES[part] + name: t for part in bundled for name, t in parts[part].items()}, metadata)
    if bundle:
        return TinySd3(model)
    files = {part: folder / f"{part}.safetensors" for part in parts if part != "mmdit"}
    for part, path in files.items():
        write_tensors(path, parts[part], {"format": "pt"})
    return TinySd3(model, **files)


PREFIXES = {
    "mmdit": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "clip_l": "text_encoders.clip_l.transformer.",
    "clip_g": "text_encoders.clip_g.transformer.",
    "t5xxl": "text_encoders.t5xxl.transformer.",
}


# ---------------------------------------------------------------- MMDiT


def mmdit_plan(variant: Variant) -> dict[str, Init]:
    """The MMDiT without its position table."""
    width = HEAD_WIDTH * variant.depth
    patch = LATENT_CHANNELS * 2 * 2
    plan = {
        "x_embedder.proj.weight": Init((width, LATENT_CHANNELS, 2, 2), patch**-0.5),
        "x_embedder.proj.bias": Init((width,), 0.02),
        **_linear("context_embedder", width, CONTEXT_WIDTH),
        **_linear("t_embedder.mlp.0", width, 256, gain=1.4),
        **_linear("t_embedder.mlp.2", width, width, gain=1.4),
        **_linear("y_embedder.mlp.0", width, POOLED_WIDTH),
        **_linear("y_embedder.mlp.2", width, width),
        **_linear("final_layer.linear", patch, width, gain=1.4),  # too much: something for a LoRA to put right
        **_linear("final_layer.adaLN_modulation.1", 2 * width, width, gain=0.5),
    }
    for index in range(variant.depth):
        is_dual, is_last = index in variant.dual_blocks, index == variant.depth - 1
        block = f"joint_blocks.{index}"
        plan |= _mmdit_half(f"{block}.x_block", width, variant.has_qk_norm, has_second_attention=is_dual)
        plan |= _mmdit_half(f"{block}.context_block", width, variant.has_qk_norm, is_last_context=is_last)
    return plan


def _mmdit_half(
    name: str, width: int, has_qk_norm: bool, *, has_second_attention: bool = False, is_last_context: bool = False
) -> dict[str, Init]:
    num_modulations = 2 if is_last_context else 9 if has_second_attention else 6
    plan = _linear(f"{name}.adaLN_modulation.1", num_modulations * width, width)
    for attention in ("attn", "attn2") if has_second_attention else ("attn",):
        plan |= _linear(f"{name}.{attention}.qkv", 3 * width, width)
        if has_qk_norm:
            plan |= {f"{name}.{attention}.{norm}.weight": Init((HEAD_WIDTH,), 0.1, 1.0) for norm in ("ln_q", "ln_k")}
        if not is_last_context:
            plan |= _linear(f"{name}.{attention}.proj", width, width, gain=1.4)
    if not is_last_context:
        plan |= _linear(f"{name}.mlp.fc1", 4 * width, width)
        plan |= _linear(f"{name}.mlp.fc2", width, 4 * width, gain=1.4)
    return plan


def position_table(depth: int) -> dict[str, Tensor]:
    """Sines and cosines of the column, then of the row, at a third of a unit per patch. Shape [1, 24 * 24, width]."""
    import torch

    half = HEAD_WIDTH * depth // 2
    frequencies = 10000.0 ** -(torch.arange(half // 2, dtype=torch.float64) / (half // 2))
    angles = torch.arange(POSITIONS, dtype=torch.float64)[:, None] / 3 * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [24, half]
    column = axis[None].expand(POSITIONS, -1, -1)
    row = axis[:, None].expand(-1, POSITIONS, -1)
    return {"pos_embed": torch.cat([column, row], dim=2).reshape(1, POSITIONS**2, 2 * half).float()}


# ---------------------------------------------------------------- text encoders


def clip_plan(width: int, vocab: int, *, has_projection: bool) -> dict[str, Init]:
    """A CLIP text encoder of two layers. CLIP-L files have no projection, CLIP-G files have."""
    model = "text_model"
    plan = {
        f"{model}.embeddings.token_embedding.weight": Init((vocab, width), 0.7),
        f"{model}.embeddings.position_embedding.weight": Init((CLIP_LENGTH, width), 0.3),
        **_norm(f"{model}.final_layer_norm", width),
    }
    for layer in (f"{model}.encoder.layers.{index}" for index in range(2)):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            plan |= _linear(f"{layer}.self_attn.{projection}", width, width)
        plan |= _linear(f"{layer}.mlp.fc1", 4 * width, width) | _linear(f"{layer}.mlp.fc2", width, 4 * width)
        plan |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    if has_projection:
        plan["text_projection.weight"] = Init((width, width), width**-0.5)
    return plan


def t5_plan(vocab: int) -> dict[str, Init]:
    """A T5 encoder of two layers. T5 does not scale attention scores, so the queries are small."""
    width, inner, wide = CONTEXT_WIDTH, T5_HEADS * T5_HEAD_WIDTH, 2 * CONTEXT_WIDTH
    plan = {"shared.weight": Init((vocab, width), 1.0), "encoder.final_layer_norm.weight": Init((width,), 0.05, 1.0)}
    for index in range(2):
        attention, dense = (f"encoder.block.{index}.layer.{sublayer}" for sublayer in range(2))
        plan |= {
            f"{attention}.SelfAttention.q.weight": Init((inner, width), (width * T5_HEAD_WIDTH) ** -0.5),
            f"{attention}.SelfAttention.k.weight": Init((inner, width), width**-0.5),
            f"{attention}.SelfAttention.v.weight": Init((inner, width), width**-0.5),
            f"{attention}.SelfAttention.o.weight": Init((width, inner), inner**-0.5),
            f"{attention}.layer_norm.weight": Init((width,), 0.05, 1.0),
            f"{dense}.DenseReluDense.wi_0.weight": Init((wide, width), width**-0.5),
            f"{dense}.DenseReluDense.wi_1.weight": Init((wide, width), width**-0.5),
            f"{dense}.DenseReluDense.wo.weight": Init((width, wide), wide**-0.5),
            f"{dense}.layer_norm.weight": Init((width,), 0.05, 1.0),
        }
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return plan | {bias: Init((T5_BUCKETS, T5_HEADS), 0.5)}


def with_both_embeddings(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Single files hold the token table of T5 under two names."""
    return {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"].clone()}


# ---------------------------------------------------------------- VAE


def vae_plan() -> dict[str, Init]:
    """The autoencoder in the names of the original files: four levels, 8 pixels per latent, no quant convolutions."""
    first, last = VAE_WIDTHS[0], VAE_WIDTHS[-1]
    plan = _conv("encoder.conv_in", first, 3) | _conv("decoder.conv_in", last, LATENT_CHANNELS)
    before = first
    for level, width in enumerate(VAE_WIDTHS):
        plan |= _vae_level(f"encoder.down.{level}", "downsample", before, width, 2, has_resampling=level < 3)
        before = width
    for level, width in reversed(list(enumerate(VAE_WIDTHS))):
        plan |= _vae_level(f"decoder.up.{level}", "upsample", before, width, 3, has_resampling=level > 0)
        before = width
    for part, end, channels in (("encoder", last, 2 * LATENT_CHANNELS), ("decoder", first, 3)):
        plan |= _resnet(f"{part}.mid.block_1", last, last) | _resnet(f"{part}.mid.block_2", last, last)
        plan |= _norm(f"{part}.mid.attn_1.norm", last)
        for name in ("q", "k", "v", "proj_out"):
            plan |= _conv(f"{part}.mid.attn_1.{name}", last, last, kernel=1, gain=0.3 if name == "proj_out" else 1.0)
        plan |= _norm(f"{part}.norm_out", end) | _conv(f"{part}.conv_out", channels, end)
    return plan


def _vae_level(
    name: str, resampling: str, before: int, width: int, num_blocks: int, *, has_resampling: bool
) -> dict[str, Init]:
    plan: dict[str, Init] = {}
    for index in range(num_blocks):
        plan |= _resnet(f"{name}.block.{index}", before if index == 0 else width, width)
    return plan | (_conv(f"{name}.{resampling}.conv", width, width) if has_resampling else {})


def _resnet(name: str, before: int, width: int) -> dict[str, Init]:
    plan = _norm(f"{name}.norm1", before) | _conv(f"{name}.conv1", width, before, gain=1.4)
    plan |= _norm(f"{name}.norm2", width) | _conv(f"{name}.conv2", width, width, gain=0.3)
    return plan if before == width else plan | _conv(f"{name}.nin_shortcut", width, before, kernel=1)


def _with_small_variance(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The second half of the encoder's output is the logarithm of the variance: make it about -6."""
    weight, bias = tensors["encoder.conv_out.weight"].clone(), tensors["encoder.conv_out.bias"].clone()
    weight[LATENT_CHANNELS:] *= 0.1
    bias[LATENT_CHANNELS:] -= 6
    return {**tensors, "encoder.conv_out.weight": weight, "encoder.conv_out.bias": bias}


# ---------------------------------------------------------------- tensors


def _linear(name: str, outputs: int, inputs: int, gain: float = 1.0) -> dict[str, Init]:
    return {f"{name}.weight": Init((outputs, inputs), gain * inputs**-0.5), f"{name}.bias": Init((outputs,), 0.02)}


def _conv(name: str, outputs: int, inputs: int, *, kernel: int = 3, gain: float = 1.0) -> dict[str, Init]:
    weight = Init((outputs, inputs, kernel, kernel), gain * (inputs * kernel**2) ** -0.5)
    return {f"{name}.weight": weight, f"{name}.bias": Init((outputs,), 0.02)}


def _norm(name: str, width: int) -> dict[str, Init]:
    return {f"{name}.weight": Init((width,), 0.05, 1.0), f"{name}.bias": Init((width,), 0.05)}


def draw_tensors(plan: dict[str, Init], seed: int, part: str) -> dict[str, Tensor]:
    """Each tensor from its own stream: neither order nor what else is in the model changes it."""
    import torch

    return {
        name: torch.randn(init.shape, generator=torch_stream(seed, "tiny_sd3", part, name)) * init.std + init.mean
        for name, init in plan.items()
    }


def _cast(tensors: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    import torch

    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    return {name: tensor.to(wanted) for name, tensor in tensors.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description="Build a tiny SD3 checkpoint with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", choices=list(VARIANTS), default="medium")
    parser.add_argument("--separate", action="store_true", help="text encoders and VAE as files of their own")
    parser.add_argument("--dtype", choices=["fp16", "bf16", "fp32"], default="fp16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    options = {"variant": args.variant, "seed": args.seed, "bundle": not args.separate, "dtype": args.dtype}
    print(build_tiny_sd3(args.folder, **options).model)


if __name__ == "__main__":
    main()
