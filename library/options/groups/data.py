"""Options about pictures and captions: what applies where the dataset file says nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from library.options.spec import OptionGroup, opt
from library.records import Size

_FOLDERS = "pictures are named in a --dataset_config file for now"
_MASKS = "masks for the loss"
_AUGMENTATION = "this augmentation"

# options that are called alike in the dataset file
_SAME_NAME = (
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
    "resize_interpolation",
    "shuffle_caption",
    "caption_separator",
    "keep_tokens",
    "keep_tokens_separator",
    "secondary_separator",
    "enable_wildcard",
    "caption_prefix",
    "caption_suffix",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "token_warmup_min",
    "token_warmup_step",
    "flip_aug",
    "random_crop",
)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(OptionGroup):
    """Pictures, captions, buckets. A value in the dataset file goes before the option."""

    title: ClassVar[str] = "Data"

    dataset_config: Path | None = opt(None, "Dataset file (.toml or .json), see docs/dataset_config.md.")
    train_batch_size: int = opt(1, "Pictures in a batch.", minimum=1)
    dataset_repeats: int = opt(1, "How often each picture is seen in an epoch.", minimum=1)
    train_data_dir: Path | None = opt(None, "Folder of folders of pictures, named N_words.", later=_FOLDERS)
    reg_data_dir: Path | None = opt(None, "Folder of folders of regularisation pictures.", later=_FOLDERS)
    in_json: Path | None = opt(None, "Metadata file with captions and tags.", later=_FOLDERS)
    dataset_class: str | None = opt(None, "Own dataset class as module.Class.", later="datasets of your own class")
    debug_dataset: bool = opt(False, "Show what would be trained, and end.", later="showing a dataset")

    resolution: str | None = opt(None, "Size of training pictures: one side, or width,height.", unit="pixels")
    enable_bucket: bool = opt(
        False, "Sort pictures into buckets of different aspect ratios instead of cutting all alike."
    )
    min_bucket_reso: int = opt(256, "Shortest side of a bucket.", unit="pixels", minimum=1)
    max_bucket_reso: int = opt(1024, "Longest side of a bucket.", unit="pixels", minimum=1)
    bucket_reso_steps: int = opt(64, "Sides of buckets are multiples of this.", unit="pixels", minimum=1)
    bucket_no_upscale: bool = opt(False, "Never enlarge pictures: buckets are made from the sizes of the pictures.")
    resize_interpolation: str | None = opt(
        None,
        "How pictures are resized. Not set means area to shrink, lanczos to enlarge.",
        choices=("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"),
    )

    caption_extension: str = opt(".caption", "Ending of caption files.")
    caption_extention: str | None = opt(None, "Other spelling of --caption_extension; goes before it.")
    shuffle_caption: bool = opt(False, "Shuffle the parts of a caption each time.")
    caption_separator: str = opt(",", "What separates the parts of a caption.")
    keep_tokens: int = opt(0, "This many first parts of a caption keep their place.", unit="parts", minimum=0)
    keep_tokens_separator: str = opt("", "Parts before this text in a caption keep their place.")
    secondary_separator: str | None = opt(None, "Joins parts that are shuffled and dropped together.")
    enable_wildcard: bool = opt(False, "Choose one of {a|b|c} in captions, and one line of several.")
    caption_prefix: str | None = opt(None, "Text before every caption.", free_text=True)
    caption_suffix: str | None = opt(None, "Text after every caption.", free_text=True)
    caption_dropout_rate: float = opt(0.0, "Chance of an empty caption.", unit="0-1", minimum=0, maximum=1)
    caption_dropout_every_n_epochs: int = opt(0, "Empty captions in every n-th epoch; 0 means never.", minimum=0)
    caption_tag_dropout_rate: float = opt(0.0, "Chance of leaving out each part.", unit="0-1", minimum=0, maximum=1)
    token_warmup_min: int = opt(1, "Parts of a caption at the first step, with --token_warmup_step.", minimum=0)
    token_warmup_step: float = opt(
        0, "The number of parts grows up to this step; below 1 it is a share of all steps.", unit="steps", minimum=0
    )
    weighted_captions: bool = opt(False, "Read (word:1.3) in captions as weights.", later="weighted captions")

    flip_aug: bool = opt(False, "Mirror half of the pictures, at random.")
    random_crop: bool = opt(False, "Cut pictures at a random place instead of the middle.")
    color_aug: bool = opt(False, "Change hue or gamma slightly, at random.", later=_AUGMENTATION)
    face_crop_aug_range: str | None = opt(
        None, "Cut around the face at a random scale, as low,high.", later=_AUGMENTATION
    )
    conditioning_data_dir: Path | None = opt(None, "Folder of mask pictures.", later=_MASKS)
    alpha_mask: bool = opt(False, "Take the transparency of pictures as mask for the loss.", later=_MASKS)
    cache_info: bool = opt(False, "Keep sizes and captions in a file in each folder.", later="an index of pictures")

    @property
    def size(self) -> Size | None:
        """`--resolution` as width and height in pixels."""
        return None if self.resolution is None else _parse_size(self.resolution)

    def check(self) -> Iterator[str]:
        if self.resolution is not None and _parse_size(self.resolution) is None:
            yield f"--resolution needs one number or width,height in pixels, got {self.resolution!r}."
        if self.min_bucket_reso > self.max_bucket_reso:
            yield f"--min_bucket_reso {self.min_bucket_reso} is above --max_bucket_reso {self.max_bucket_reso}."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.caption_extention is not None:
            yield "caption_extension", "--caption_extention goes before it"


class HasDataset(Protocol):
    """Options of a script that reads pictures."""

    @property
    def data(self) -> DatasetOptions: ...


def dataset_defaults(options: HasDataset) -> dict[str, object]:
    """What applies where the dataset file says nothing: values by key of the dataset file, without unset ones."""
    data = options.data
    values = {
        "resolution": data.size,
        "batch_size": data.train_batch_size,
        "num_repeats": data.dataset_repeats,
        "caption_extension": data.caption_extention or data.caption_extension,
        **{name: getattr(data, name) for name in _SAME_NAME},
    }
    return {key: value for key, value in values.items() if value is not None}


def _parse_size(text: str) -> Size | None:
    """Size from "512" or "512,768"; None if the text is neither."""
    found = re.fullmatch(r"\s*(\d+)\s*(?:,\s*(\d+)\s*)?", text)
    if not found:
        return None
    size = Size(int(found[1]), int(found[2] or found[1]))
    return size if min(size) > 0 else None
