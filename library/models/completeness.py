"""Which tensors a text encoder or an autoencoder lacks, told from a header before any weight is read.

Levels and layers are counted in the file itself: a file without its last layer is a smaller model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from library.models.assign import count_levels

Shapes = Mapping[str, tuple[int, ...]]

_CLIP_LAYERS = "text_model.encoder.layers."
_CLIP_LAYER = (
    *(f"self_attn.{projection}_proj" for projection in "qkv"),
    *("self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"),
)
_T5_BLOCKS = "encoder.block."
_T5_BLOCK = (
    *(f"layer.0.SelfAttention.{projection}" for projection in "qkvo"),
    *(f"layer.1.DenseReluDense.{projection}" for projection in ("wi_0", "wi_1", "wo")),
    *("layer.0.layer_norm", "layer.1.layer_norm"),
)
_RESNET = ("norm1", "conv1", "norm2", "conv2")
_ATTENTION = ("norm", "q", "k", "v", "proj_out")


def missing_of_clip(shapes: Shapes) -> list[str]:
    """Tensors that a CLIP text encoder lacks. Names have the prefix "text_model."."""
    modules = [f"{_CLIP_LAYERS}{layer}.{module}" for layer in _indices(shapes, _CLIP_LAYERS) for module in _CLIP_LAYER]
    needed = [f"text_model.embeddings.{kind}_embedding.weight" for kind in ("token", "position")]
    return _missing(shapes, [*needed, *_weights_and_biases([*modules, "text_model.final_layer_norm"])])


def missing_of_t5(shapes: Shapes) -> list[str]:
    """Tensors that a T5 v1.1 encoder lacks. Its embedding may have either of two names."""
    blocks = [f"{_T5_BLOCKS}{block}.{module}.weight" for block in _indices(shapes, _T5_BLOCKS) for module in _T5_BLOCK]
    bias = f"{_T5_BLOCKS}0.layer.0.SelfAttention.relative_attention_bias.weight"
    embedding = () if "encoder.embed_tokens.weight" in shapes else ("shared.weight",)
    return _missing(shapes, [*embedding, bias, *blocks, "encoder.final_layer_norm.weight"])


def missing_of_vae(shapes: Shapes) -> list[str]:
    """Tensors that an AutoencoderKL lacks. Names are the published ones, without prefix."""
    return _missing(shapes, _weights_and_biases(_vae_modules(shapes)))


def _vae_modules(shapes: Shapes) -> Iterator[str]:
    levels = _indices(shapes, "encoder.down.")
    num_resnets = count_levels(shapes, "encoder.down.0.block.")
    for side in ("encoder", "decoder"):
        yield from (f"{side}.{name}" for name in ("conv_in", "norm_out", "conv_out"))
        yield from (f"{side}.mid.block_{number}.{name}" for number in (1, 2) for name in _RESNET)
        if any(name.startswith(f"{side}.mid.attn_1.") for name in shapes):
            yield from (f"{side}.mid.attn_1.{name}" for name in _ATTENTION)
    for level in levels:
        yield from _resnets(shapes, f"encoder.down.{level}", num_resnets)
        yield from _resnets(shapes, f"decoder.up.{level}", num_resnets + 1)
        if level < levels[-1]:
            yield f"encoder.down.{level}.downsample.conv"
        if level > 0:
            yield f"decoder.up.{level}.upsample.conv"
    yield from (name for name in ("quant_conv", "post_quant_conv") if any(key.startswith(f"{name}.") for key in shapes))


def _resnets(shapes: Shapes, level: str, number: int) -> Iterator[str]:
    for index in range(number):
        block = f"{level}.block.{index}"
        yield from (f"{block}.{name}" for name in _RESNET)
        outputs, inputs = shapes.get(f"{block}.conv1.weight", (0, 0))[:2]
        if outputs != inputs:
            yield f"{block}.nin_shortcut"


def _indices(shapes: Shapes, prefix: str) -> range:
    """Up to the greatest number behind a prefix, so that a gap is a gap."""
    found = [name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)]
    return range(1 + max((int(index) for index in found if index.isdigit()), default=0))


def _weights_and_biases(modules: Iterable[str]) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def _missing(shapes: Shapes, names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in shapes]
