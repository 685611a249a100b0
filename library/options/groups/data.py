"""Options about pictures and captions: what applies where the dataset file says nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from library.options.groups.training import ValidationOptions
from library.options.spec import OptionGroup, opt
from library.records import INTERPOLATIONS, Size

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
    "missing_caption",
    "empty_caption",
    "caption_encoding",
    "recursive",
    "flip_aug",
    "random_crop",
    "color_aug",
    "face_crop_aug_range",
    "alpha_mask",
    "background",
    "min_image_size",
    "max_aspect_ratio",
    "max_crop_fraction",
    "max_image_pixels",
)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(OptionGroup):
    """Pictures, captions, buckets. A value in the dataset file goes before the option."""

    title: ClassVar[str] = "Data"
    takes_conditioning: ClassVar[bool] = False

    dataset_config: Path | None = opt(None, "Dataset file (.toml or .json), see docs/dataset_config.md.")
    train_data_dir: Path | None = opt(
        None,
        "Folder of folders of pictures named N_words: N repeats, the words are the caption where there is no file. "
        "With --in_json the folder that names of pictures start from.",
    )
    reg_data_dir: Path | None = opt(None, "Folder of folders of regularisation pictures, named N_words.")
    in_json: Path | None = opt(None, "Metadata file (.json or .jsonl) with names, captions and tags of the pictures.")
    recursive: bool = opt(False, "Take pictures of sub-folders too.")
    train_batch_size: int = opt(1, "Pictures in a batch.", minimum=1)
    dataset_repeats: int = opt(1, "How often each picture is seen in an epoch.", minimum=1)
    dataset_class: str | None = opt(None, "Own dataset class as module.Class.", later="datasets of your own class")
    cache_info: bool = opt(
        False,
        "Keep the sizes of pictures in a file in each folder.",
        no_effect="sizes are always remembered, and checked",
    )

    dry_run: bool | str = opt(
        False,
        "Show what would be trained and what memory it takes, without loading any weights, and end; measure also times "
        "random blocks, for the time of a step and of the whole run.",
        words=("measure",),
    )
    debug_dataset: bool = opt(False, "Show the batches of the first epochs with their captions as text, and end.")
    on_bad_file: str = opt(
        "error",
        "What happens if pictures cannot be used: stop and list them, leave them out, or also move them to a folder "
        ".quarantine beside them.",
        choices=("error", "skip", "quarantine"),
    )
    min_image_size: int = opt(
        0, "Leave out pictures with a shorter side below this; 0 for none.", unit="pixels", minimum=0
    )
    max_aspect_ratio: float | None = opt(
        None, "Leave out pictures whose longer side is more than this many times the shorter one.", minimum=1
    )
    max_crop_fraction: float | None = opt(
        None, "Leave out pictures that lose a larger share of their area to the crop.", unit="0-1", minimum=0, maximum=1
    )
    max_image_pixels: int = opt(500_000_000, "Refuse pictures with more pixels than this.", unit="pixels", minimum=1)

    resolution: str | None = opt(
        None,
        "Size of training pictures: one side, or width,height; 512 suits Stable Diffusion 1.x. Needed here or in the "
        "dataset file, but for SDXL, where not set means 1024.",
        unit="pixels",
    )
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
        choices=INTERPOLATIONS,
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
    weighted_captions: bool = opt(False, "Read (word:1.3) in captions and sample prompts as weights.")
    missing_caption: str = opt(
        "error",
        "What happens to pictures without caption file and class_tokens: stop and list them, or train them with an "
        "empty caption.",
        choices=("error", "allow"),
    )
    empty_caption: str = opt(
        "error",
        "What happens to caption files without text: stop and list them, train with an empty caption, or with "
        "class_tokens.",
        choices=("error", "allow", "class_tokens"),
    )
    caption_encoding: str | None = opt(
        None, "Encoding of caption files that are neither UTF-8 nor marked UTF-16, such as cp1252."
    )

    flip_aug: bool = opt(False, "Mirror half of the pictures, at random.")
    random_crop: bool = opt(False, "Cut pictures at a random place instead of the middle.")
    color_aug: bool = opt(False, "Change hue or gamma slightly, at random.")
    face_crop_aug_range: str | None = opt(
        None,
        "Cut around the face that the file name tells (name_x_y_width_height), low to high times as wide as the face.",
        unit="low,high",
    )
    conditioning_data_dir: Path | None = opt(None, "Folder of mask pictures; only in a dataset file, for each subset.")
    alpha_mask: bool = opt(False, "The transparency of a picture says where the loss counts.")
    background: str = opt("white", "What shows through transparency.", unit="white, black or #rrggbb")

    @property
    def size(self) -> Size | None:
        """`--resolution` as width and height in pixels."""
        return None if self.resolution is None else parse_size(self.resolution)

    @property
    def places(self) -> dict[str, Path | None]:
        """The options that name the pictures."""
        names = ("dataset_config", "in_json", "train_data_dir", "reg_data_dir")
        return {name: getattr(self, name) for name in (*names, *(["conditioning_data_dir"] * self.takes_conditioning))}

    def check(self) -> Iterator[str]:
        if self.resolution is not None and parse_size(self.resolution) is None:
            yield f"--resolution needs one number or width,height in pixels, got {self.resolution!r}."
        if self.min_bucket_reso > self.max_bucket_reso:
            yield f"--min_bucket_reso {self.min_bucket_reso} is above --max_bucket_reso {self.max_bucket_reso}."
        if self.reg_data_dir is not None and not (self.dataset_config or self.train_data_dir or self.in_json):
            yield (
                "--reg_data_dir needs --train_data_dir beside it: regularisation pictures are trained together with "
                "others, not alone."
            )
        if self.conditioning_data_dir is not None and not self.takes_conditioning:
            yield (
                "--conditioning_data_dir has a place only in a dataset file: write conditioning_data_dir into the "
                "subset of a --dataset_config file."
            )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.caption_extention is not None:
            yield "caption_extension", "--caption_extention goes before it"
        if self.dataset_config is not None:
            for name in ("train_data_dir", "reg_data_dir", "in_json"):
                yield name, "the --dataset_config file names the pictures"
        elif self.train_data_dir is not None and self.in_json is None:
            yield "dataset_repeats", "the folders in --train_data_dir say in their names how often they are seen"


class HasDataset(Protocol):
    """Options of a script that reads pictures."""

    @property
    def data(self) -> DatasetOptions: ...

    @property
    def validation(self) -> ValidationOptions: ...


def dataset_defaults(options: HasDataset) -> dict[str, object]:
    """What applies where the dataset file says nothing: values by key of the dataset file, without unset ones."""
    data, validation = options.data, options.validation
    values = {
        "resolution": data.size,
        "batch_size": data.train_batch_size,
        "num_repeats": data.dataset_repeats,
        "caption_extension": data.caption_extention or data.caption_extension,
        "validation_split": validation.validation_split,
        "validation_seed": validation.validation_seed,
        **{name: getattr(data, name) for name in _SAME_NAME},
    }
    return {key: value for key, value in values.items() if value is not None}


def dataset_names(data: DatasetOptions) -> dict[str, str]:
    """The options that `dataset_defaults` reads: {key of the dataset file: name}."""
    is_other_spelling = data.caption_extention is not None
    return {
        "resolution": "resolution",
        "batch_size": "train_batch_size",
        "num_repeats": "dataset_repeats",
        "caption_extension": "caption_extention" if is_other_spelling else "caption_extension",
        "validation_split": "validation_split",
        "validation_seed": "validation_seed",
        **{name: name for name in _SAME_NAME},
    }


def parse_size(text: str) -> Size | None:
    """Size from "512" or "512,768"; None if the text is neither."""
    found = re.fullmatch(r"\s*(\d+)\s*(?:,\s*(\d+)\s*)?", text)
    if not found:
        return None
    size = Size(int(found[1]), int(found[2] or found[1]))
    return size if min(size) > 0 else None
