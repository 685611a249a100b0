"""The keys of a dataset file: what each may hold and where it may stand.

One table; the checks, the messages and the table of the user guide follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from library.records import INTERPOLATIONS

Level = Literal["top", "general", "dataset", "subset"]
Kind = Literal["int", "num", "bool", "str", "path", "size", "encoding", "colour", "range", "attributes"]

TABLE_NAMES: dict[Level, str] = {
    "general": "[general]",
    "dataset": "[[datasets]]",
    "subset": "[[datasets.subsets]]",
}


@dataclass(frozen=True)
class Key:
    """What a key may hold, and where it may stand.

    Attributes:
        kind: Type of the value; "num" takes whole and broken numbers.
        levels: Tables the key may stand in.
        default: Where neither the file nor the command line gives a value; as it is written in a file.
        low: Smallest number allowed; for texts the least length.
        high: Largest number allowed.
        choices: Texts allowed, if not all.
        no_effect: Why a value changes nothing: it is accepted with a warning.
    """

    kind: Kind
    levels: tuple[Level, ...]
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    no_effect: str = ""


_DATASET: tuple[Level, ...] = ("general", "dataset")
_ALL: tuple[Level, ...] = ("general", "dataset", "subset")
_SUBSET: tuple[Level, ...] = ("subset",)

KEYS: dict[str, Key] = {
    "resolution": Key("size", _DATASET, low=1),
    "batch_size": Key("int", _DATASET, 1, low=1),
    "enable_bucket": Key("bool", _DATASET, False),
    "min_bucket_reso": Key("int", _DATASET, 256, low=1),
    "max_bucket_reso": Key("int", _DATASET, 1024, low=1),
    "bucket_reso_steps": Key("int", _DATASET, 64, low=1),
    "bucket_no_upscale": Key("bool", _DATASET, False),
    "validation_seed": Key("int", _DATASET),
    "network_multiplier": Key("num", _DATASET, 1.0, no_effect="no script uses it"),
    "resize_interpolation": Key("str", _ALL, choices=INTERPOLATIONS),
    "image_dir": Key("path", _SUBSET, low=1),
    "metadata_file": Key("path", _SUBSET, low=1),
    "conditioning_data_dir": Key("path", _SUBSET, low=1),
    "alpha_mask": Key("bool", _SUBSET, False),
    "is_reg": Key("bool", _SUBSET, False),
    "recursive": Key("bool", _ALL, False),
    "num_repeats": Key("int", _ALL, 1, low=1),
    "validation_split": Key("num", _ALL, 0.0, low=0, high=1),
    "custom_attributes": Key("attributes", _ALL, {}),
    "cache_info": Key("bool", _ALL, False, no_effect="sizes are always remembered, and checked"),
    "flip_aug": Key("bool", _ALL, False),
    "random_crop": Key("bool", _ALL, False),
    "color_aug": Key("bool", _ALL, False),
    "face_crop_aug_range": Key("range", _ALL),
    "background": Key("colour", _ALL, "white"),
    "min_image_size": Key("int", _ALL, 0, low=0),
    "max_aspect_ratio": Key("num", _ALL, low=1),
    "max_crop_fraction": Key("num", _ALL, low=0, high=1),
    "max_image_pixels": Key("int", _ALL, 500_000_000, low=1),
    "class_tokens": Key("str", _ALL),
    "caption_extension": Key("str", _ALL, ".caption", low=1),
    "caption_encoding": Key("encoding", _ALL),
    "missing_caption": Key("str", _ALL, "error", choices=("error", "allow")),
    "empty_caption": Key("str", _ALL, "error", choices=("error", "allow", "class_tokens")),
    "caption_prefix": Key("str", _ALL),
    "caption_suffix": Key("str", _ALL),
    "caption_separator": Key("str", _ALL, ",", low=1),
    "shuffle_caption": Key("bool", _ALL, False),
    "keep_tokens": Key("int", _ALL, 0, low=0),
    "keep_tokens_separator": Key("str", _ALL, ""),
    "secondary_separator": Key("str", _ALL),
    "enable_wildcard": Key("bool", _ALL, False),
    "caption_dropout_rate": Key("num", _ALL, 0.0, low=0, high=1),
    "caption_dropout_every_n_epochs": Key("int", _ALL, 0, low=0),
    "caption_tag_dropout_rate": Key("num", _ALL, 0.0, low=0, high=1),
    "token_warmup_min": Key("int", _ALL, 1, low=0),
    "token_warmup_step": Key("num", _ALL, 0.0, low=0),
}

_SECTIONS: dict[Level, tuple[str, ...]] = {"top": ("general", "datasets"), "dataset": ("subsets",)}


def names_at(level: Level) -> tuple[str, ...]:
    """Everything that may stand in a table of this level, sections included."""
    return (*_SECTIONS.get(level, ()), *(name for name, key in KEYS.items() if level in key.levels))


def explain_unknown(name: str, level: Level) -> str:
    """Why `name` may not stand in a table of this level, and what was probably meant."""
    if name == "subsets":
        return "'subsets' belongs in a dataset, written [[datasets.subsets]]"
    if name in KEYS:
        places = [TABLE_NAMES[place] for place in KEYS[name].levels]
        return f"'{name}' belongs in {' or '.join(places)}"
    near = get_close_matches(name, names_at(level), n=1) or get_close_matches(name, KEYS, n=1)
    return f"unknown key '{name}'" + (f", the nearest is '{near[0]}'" if near else "")
