"""What a dataset configuration says, with every value resolved. Names and meanings are those of the dataset file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from library.data.plan.captions import CaptionRules
from library.records import Size

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class SubsetSpec:
    """One source of pictures: a folder, or the pictures that a metadata file names.

    Attributes:
        image_dir: Folder of the pictures, or where relative names of `metadata_file` start; None only where that
            file holds absolute names.
        metadata_file: JSON or JSONL file with captions and tags; then only the pictures it names are used.
        conditioning_data_dir: Folder of masks, a picture of the same stem for each training picture.
        is_conditioned: What that folder holds is no mask: a network is told it.
        recursive: Take pictures of sub-folders too.
        is_reg: Regularisation pictures.
        alpha_mask: The transparency of a picture is its mask.
        custom_attributes: Handed to the loss; "diff_output_preservation" is the only known key.
        face_crop_aug_range: How many times as large as a face the crop around it is, from and to.
        validation_split: Share of the pictures kept for validation, 0-1; 1 keeps them all.
        background: What shows through transparency, as red, green, blue.
        missing_caption: What happens to a picture without caption and class_tokens.
        empty_caption: What happens to a picture whose caption file has no text.
        caption_encoding: Read caption files that are not UTF-8 in this encoding.
        min_image_size: Pictures with a shorter side are left out; 0 for none. In pixels.
        max_aspect_ratio: Pictures with a larger ratio of the longer to the shorter side are left out.
        max_crop_fraction: Pictures that lose a larger share of their area to the crop are left out. 0-1.
        max_image_pixels: Pictures with more pixels are refused.
    """

    image_dir: Path | None
    metadata_file: Path | None = None
    conditioning_data_dir: Path | None = None
    is_conditioned: bool = False
    recursive: bool = False
    num_repeats: int = 1
    class_tokens: str | None = None
    caption_extension: str = ".caption"
    captions: CaptionRules = field(default_factory=CaptionRules)
    is_reg: bool = False
    alpha_mask: bool = False
    custom_attributes: Mapping[str, Any] = field(default_factory=dict)
    flip_aug: bool = False
    color_aug: bool = False
    random_crop: bool = False
    face_crop_aug_range: tuple[float, float] | None = None
    resize_interpolation: str | None = None
    validation_split: float = 0.0
    background: Colour = WHITE
    missing_caption: Literal["error", "allow"] = "error"
    empty_caption: Literal["error", "allow", "class_tokens"] = "error"
    caption_encoding: str | None = None
    min_image_size: int = 0
    max_aspect_ratio: float | None = None
    max_crop_fraction: float | None = None
    max_image_pixels: int = 500_000_000

    @property
    def has_masks(self) -> bool:
        """Whether its pictures come with masks for the loss."""
        return (self.conditioning_data_dir is not None and not self.is_conditioned) or self.alpha_mask

    @property
    def beside(self) -> str:
        """What a picture of `conditioning_data_dir` is called."""
        return "conditioning picture" if self.is_conditioned else "mask"

    @property
    def preserves_output(self) -> bool:
        """Whether the model shall keep drawing these pictures as it does without the network."""
        return bool(self.custom_attributes.get("diff_output_preservation", False))

    def name_of(self, picture: Path) -> str:
        """What random choices know a picture by: its path below image_dir, the same wherever that folder lies.

        A picture elsewhere, which a metadata file may name, goes by its own name and that of its folder.
        """
        parts = Path(os.path.abspath(picture)).parts
        root = () if self.image_dir is None else Path(os.path.abspath(self.image_dir)).parts
        below = parts[len(root) :] if root and parts[: len(root)] == root else parts[-2:]
        return unicodedata.normalize("NFC", "/".join(below))  # some systems store accents apart from their letters

    @property
    def changes_pixels(self) -> tuple[str, ...]:
        """Names of the active keys that need another picture every time, and so cannot act on cached latents."""
        active = {
            "random_crop": self.random_crop,
            "color_aug": self.color_aug,
            "face_crop_aug_range": self.face_crop_aug_range is not None,
        }
        return tuple(name for name, is_active in active.items() if is_active)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Subsets that share resolution, buckets and batch size.

    `min_bucket_reso` and `max_bucket_reso` are multiples of `bucket_reso_steps` where buckets use them.
    `validation_seed` None stands for 0, so that the choice stays the same from run to run.
    """

    resolution: Size
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    resize_interpolation: str | None = None
    validation_seed: int | None = None
    subsets: tuple[SubsetSpec, ...] = ()

    def interpolation_of(self, subset: int) -> str | None:
        """How pictures of a subset are resized."""
        return self.subsets[subset].resize_interpolation or self.resize_interpolation
