"""Which metadata of a file may be given to anybody, and which tells of a person, a machine or the pictures.

What is known to be harmless stays: how the weights are built and what they were trained with, which loaders and web
interfaces read, and the texts that an author writes for readers (title, licence ...). Everything else goes, what is not
known as well, since it can hold anything. A value in which the path of a file stands goes whatever its name, and so
does a title that is only the name of the output file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from library.checkpoint.metadata import RECORDED_OPTIONS

_TITLE = "modelspec.title"
TEXTS = tuple(  # that an author writes for readers
    f"modelspec.{name}"
    for name in ("title", "author", "description", "license", "tags", "trigger_phrase", "usage_hint", "preprocessor")
)
_PERSONAL_OPTIONS = {"output_name", "training_comment"}
_FACTS = (  # that are no options, as ss_<name>
    *("base_model_version", "num_train_images", "num_reg_images", "num_validation_images", "num_batches_per_epoch"),
    *("num_epochs", "epoch", "steps", "optimizer", "ema_weights", "sd_scripts_commit_hash"),
    *("sd_model_hash", "new_sd_model_hash", "vae_hash", "new_vae_hash"),
    *("batch_size_per_device", "total_batch_size", "resolution", "bucket_info"),
    *("color_aug", "flip_aug", "random_crop", "shuffle_caption", "keep_tokens"),
    *("enable_bucket", "bucket_no_upscale", "min_bucket_reso", "max_bucket_reso"),
    *("apply_lg_attn_mask", "apply_t5_attn_mask", "t5xxl_max_token_length", "training_shift", "weighting_scheme"),
    *("logit_mean", "logit_std", "mode_scale", "clip_l_dropout_rate", "clip_g_dropout_rate", "t5_dropout_rate"),
    *("pos_emb_random_crop_rate", "enable_scaled_pos_embed", "sdxl_crop_compat"),
)
_SPECIFICATION = (  # as modelspec.<name>; a thumbnail is a whole file, with whatever a camera wrote into it
    *("sai_model_spec", "architecture", "implementation", "implementation_version", "resolution", "prediction_type"),
    *("timestep_range", "encoder_layer", "is_negative_embedding", "hash_sha256", "unet_dtype", "vae_dtype"),
)
_OF_LOADERS = ("format", "config", "lora_adapter_metadata", "_quantization_metadata")
_HASHES = ("sshs_model_hash", "sshs_legacy_hash")
KEPT = frozenset(
    (
        *(f"ss_{name}" for name in RECORDED_OPTIONS if name not in _PERSONAL_OPTIONS),
        *(f"ss_{name}" for name in _FACTS),
        *(f"modelspec.{name}" for name in _SPECIFICATION),
        *(*TEXTS, *_OF_LOADERS, *_HASHES),
    )
)
_MADE_TITLE = re.compile(r"\w+@\d{9,}")  # of a file that was given no name: when it was saved
_URL = re.compile(r"""\bhttps?://[^\s"'(),]+""")
_BEFORE = r"""(?:^|[\s"'=(,\[:])"""
_ENDINGS = "safetensors|ckpt|pth?|bin|gguf|toml|ya?ml|jsonl?|txt|csv|png|jpe?g|webp"
_PATHS = (
    rf"{_BEFORE}(?:~?[\\/](?![\\/\s])|[A-Za-z]:[\\/]|\\\\)\S",  # absolute, or in a home folder
    rf"file://|(?<!\.)\.\.[\\/]|{_BEFORE}\.[\\/]",
    r"""[^\s"'=(,\[:\\/][\\/][^\s"'\\/]*\w\.[A-Za-z]\w{0,11}\b""",  # folder/name.ending
)
_PATHS_IN_OPTIONS = (*_PATHS, r"[\w.-][\\/][\w.-]", rf"\w\.(?i:{_ENDINGS})\b")  # these values are no prose
_PATH, _PATH_IN_OPTION = (re.compile("|".join(patterns)) for patterns in (_PATHS, _PATHS_IN_OPTIONS))
_NAME_OF_FILE = "name_or_path"  # how keys end in which the configurations of models say where they came from


@dataclass(frozen=True)
class Scrubbed:
    """Metadata without what is personal.

    Attributes:
        metadata: What is left.
        removed: Names of what is gone.
        shortened: {name: what is gone out of its JSON}.
    """

    metadata: dict[str, str]
    removed: tuple[str, ...]
    shortened: dict[str, tuple[str, ...]]


def scrub(metadata: Mapping[str, str], *, keep: Collection[str] = (), remove: Collection[str] = ()) -> Scrubbed:
    """Take out what is personal. Hashes are left as they were.

    Args:
        metadata: Of a file.
        keep: Names that stay as they are, whatever they hold.
        remove: Names that go too.
    """
    removed = {*remove, *_made_titles(metadata)}
    left, shortened = {}, {}
    for name, value in metadata.items():
        if name in keep:
            left[name] = value
        elif name in KEPT and name not in removed:
            cleaned, gone = _without_paths(value, _PATH_IN_OPTION if name.startswith("ss_") else _PATH)
            if cleaned is not None:
                left[name] = cleaned
            if cleaned is not None and gone:
                shortened[name] = gone
    return Scrubbed(left, tuple(sorted(set(metadata) - set(left))), shortened)


def _made_titles(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The name of the title where nobody wrote it: it is the name of the output file, or a time."""
    title = metadata.get(_TITLE, "")
    is_made = title == metadata.get("ss_output_name") or _MADE_TITLE.fullmatch(title)
    return (_TITLE,) if is_made else ()


def _without_paths(value: str, path: re.Pattern[str]) -> tuple[str | None, tuple[str, ...]]:
    """A value without paths: of JSON, what holds none, and the names of what is gone; of a text, all or nothing."""
    if value[:1] in ("{", "["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if found is not None:
            gone: list[str] = []
            cleaned = _cleaned(found, path, gone)
            return (json.dumps(cleaned), tuple(gone)) if gone else (value, ())
    return (None if _is_path(value, path) else value), ()


def _cleaned(found: Any, path: re.Pattern[str], gone: list[str]) -> Any:
    """A JSON value without entries that name files; their names are added to `gone`."""
    if isinstance(found, dict):
        entries = {}
        for key, value in found.items():
            is_name = key.endswith(_NAME_OF_FILE) and value is not None
            if is_name or _is_path(key, path) or _is_path(value, path):
                gone.append(key)
            else:
                entries[key] = _cleaned(value, path, gone)
        return entries
    if isinstance(found, list):
        kept = [value for value in found if not _is_path(value, path)]
        gone += ["an entry of a list"] * (len(found) - len(kept))
        return [_cleaned(value, path, gone) for value in kept]
    return found


def _is_path(value: object, path: re.Pattern[str]) -> bool:
    return isinstance(value, str) and path.search(_URL.sub("", value)) is not None
