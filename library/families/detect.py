"""What a weights file holds, told from the names and shapes of its tensors.

Used to say of a file that does not fit which model it is and which script takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FileKind:
    """A kind of weights file.

    Attributes:
        name: Short and stable.
        title: As a sentence calls it, with its article.
        advice: What to do with it instead.
    """

    name: str
    title: str
    advice: str


SD3 = FileKind("sd3", "an SD3 / SD3.5 model", "Train it with sd3_train_network.py or sd3_train.py.")
SD3_DIFFUSERS = FileKind("sd3_diffusers", "an SD3 / SD3.5 transformer in diffusers' layout", SD3.advice)
SDXL = FileKind("sdxl", "an SDXL model", "Train it with sdxl_train_network.py or sdxl_train.py.")
SDXL_REFINER = FileKind("sdxl_refiner", "an SDXL refiner", "It cannot be trained here.")
SD1 = FileKind("sd1", "a Stable Diffusion 1.x model", "Train it with train_network.py, fine_tune.py or train_db.py.")
SD2 = FileKind(
    "sd2", "a Stable Diffusion 2.x model", "Train it with train_network.py, fine_tune.py or train_db.py, and --v2."
)
FLUX = FileKind("flux", "a FLUX model", "It cannot be trained here.")
CONTROLNET = FileKind("controlnet", "a ControlNet", "Give the base model.")
LORA = FileKind("lora", "a LoRA or another adapter", "Give the base model here, and this file as --network_weights.")
VAE = FileKind("vae", "a VAE alone", "Give it as --vae.")
CLIP = FileKind("clip", "a CLIP text encoder alone", "Give it as --clip_l or --clip_g.")
OPEN_CLIP = FileKind("open_clip", "a text encoder in open_clip's layout", "Use a file with Hugging Face names.")
T5 = FileKind("t5", "a T5 text encoder alone", "Give it as --t5xxl.")
UNKNOWN = FileKind("unknown", "no model that is known here", "Check the path.")

LEARN_THE_WORD: Mapping[str, str] = {
    **dict.fromkeys(("sd1", "sd2"), "Learn the word with train_textual_inversion.py."),
    "sdxl": "Learn the word with sdxl_train_textual_inversion.py.",
    **dict.fromkeys(("sd3", "sd3_diffusers"), "Learn the word with sd3_train_textual_inversion.py."),
}
"""{kind of a file: what to do with it where a script for textual inversion does not take it}"""
FOLLOW_PICTURES: Mapping[str, str] = dict.fromkeys(
    ("sd1", "sd2", "sd3", "sd3_diffusers"), "ControlNet-LLLite is for SDXL only."
)
"""The same of the script for ControlNet-LLLite."""

_ANY_SD = "a Stable Diffusion 1.x or 2.x model"
_ENCODERS = (CLIP, OPEN_CLIP, T5)

_ADAPTER_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".hada_w1", ".lokr_w")
_CONTROL_MARKS = ("controlnet_blocks.", "control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.")
_ENDINGS = (  # in this order: a single file also holds what comes later
    ("joint_blocks.0.context_block.attn.qkv.weight", SD3),
    ("double_blocks.0.img_attn.qkv.weight", FLUX),
    ("single_transformer_blocks.0.attn.to_q.weight", FLUX),
    ("transformer_blocks.0.attn.add_q_proj.weight", SD3_DIFFUSERS),
    ("decoder.conv_in.weight", VAE),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", T5),
    ("embeddings.token_embedding.weight", CLIP),
    ("transformer.resblocks.0.ln_1.weight", OPEN_CLIP),
)
_UNET_ENDINGS = ("input_blocks.0.0.weight", "down_blocks.0.resnets.0.time_emb_proj.weight")
_DENOISER_ROOMS = ("unet", "transformer")
_CROSS_ATTENTION = "transformer_blocks.0.attn2.to_k.weight"
_UNET_BY_CONTEXT = {768: SD1, 1024: SD2, 1280: SDXL_REFINER, 2048: SDXL}


def denoiser_place(model: Path) -> Path:
    """Where the denoiser of a model lies: a room of a diffusers folder, of whatever family, or the file itself."""
    return next((model / room for room in _DENOISER_ROOMS if (model / room).is_dir()), model)


def file_kind(shapes: Shapes) -> FileKind:
    """Tell what a file holds.

    Args:
        shapes: {name in the file: shape}.
    """
    if any(mark in name for name in shapes for mark in _ADAPTER_MARKS):
        return LORA
    if any(mark in name for name in shapes for mark in _CONTROL_MARKS):
        return CONTROLNET
    if any(name.endswith(_UNET_ENDINGS) for name in shapes):
        return _unet_kind(shapes)
    endings = [(ending, kind) for ending, kind in _ENDINGS if any(name.endswith(ending) for name in shapes)]
    if not endings:
        return UNKNOWN
    kind = endings[0][1]
    if kind == SD3_DIFFUSERS and not any(name.endswith("pos_embed.proj.weight") for name in shapes):
        return UNKNOWN  # other models of diffusers have such blocks too
    return kind


def refuse_other_kind(
    path: Path, kind: FileKind, wanted: Sequence[FileKind], instead: Mapping[str, str] | None = None
) -> None:
    """Refuse a model's file that is none of the kinds that are wanted.

    Args:
        path: The file, or what holds its denoiser.
        kind: What it holds.
        wanted: What it may hold.
        instead: {name of a kind: what to do with it, in place of its advice}.

    Raises:
        CheckpointError: It is another one.
    """
    if kind in wanted:
        return
    titles = [each.title for each in wanted if each != SD3_DIFFUSERS]
    title = _ANY_SD if titles == [SD1.title, SD2.title] else " or ".join(titles)
    advice = "Give the whole model." if kind in _ENCODERS and SD3 not in wanted else kind.advice
    advice = (instead or {}).get(kind.name, advice)
    raise CheckpointError(f"--pretrained_model_name_or_path: {path} is {kind.title}, not {title}. {advice}")


def _unet_kind(shapes: Shapes) -> FileKind:
    contexts = {shape[1] for name, shape in shapes.items() if name.endswith(_CROSS_ATTENTION)}
    for context in contexts & set(_UNET_BY_CONTEXT):
        return _UNET_BY_CONTEXT[context]
    if any(name.endswith(("label_emb.0.0.weight", "add_embedding.linear_1.weight")) for name in shapes):
        return SDXL
    is_linear = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
    return SD2 if is_linear else SD1
