"""Options of finetune/prepare_buckets_latents.py, and the training options that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CommonOptions
from library.options.groups.data import parse_size
from library.options.groups.tools import FamilyChoiceOptions
from library.options.spec import OptionGroup, ScriptText, opt, options_of, parse_options
from library.preparing.options.metadata import MAY_GO, overwrite_remark
from library.records import INTERPOLATIONS
from tools.cache_options import LATENT_CACHING_SCRIPT, LatentCachingOptions

_YES, _NO = ("true", "1", "yes", "on"), ("", "false", "0", "no", "off")
_SIZES = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "resize_interpolation", "background")


@dataclass(frozen=True, kw_only=True)
class BucketFileOptions(OptionGroup):
    """What is read and written."""

    title: ClassVar[str] = "Pictures and metadata"

    train_data_dir: Path | None = opt(None, "Folder that names of pictures start from.", positional=True)
    in_json: Path | None = opt(None, "Metadata file (.json or .jsonl) that names the pictures.", positional=True)
    out_json: Path | None = opt(
        None, "Metadata file to write, with image_size and train_resolution of each picture.", positional=True
    )
    overwrite: bool = opt(False, MAY_GO)
    full_path: bool = opt(False, "Write whole paths instead of names that start from TRAIN_DATA_DIR.")
    recursive: bool = opt(False, "Take pictures of sub-folders too.", no_effect="IN_JSON names the pictures")
    skip_existing: bool = opt(
        False, "Keep the caches that are there.", no_effect="valid ones are always kept, and others always made again"
    )

    def remarks(self) -> Iterator[str]:
        yield from overwrite_remark(self.overwrite, self.in_json, self.out_json)


@dataclass(frozen=True, kw_only=True)
class BucketModelOptions(OptionGroup):
    """Whose VAE encodes, and how."""

    title: ClassVar[str] = "Model"

    model_name_or_path: str | None = opt(
        None,
        "Base model that will be trained: a single-file checkpoint or a diffusers folder.",
        positional=True,
        aliases=("pretrained_model_name_or_path",),
    )
    v2: bool = opt(False, "The base model is Stable Diffusion 2.x; its file says so too.")
    vae: Path | None = opt(None, "VAE to use instead of the one in the base model.")
    allow_pickle: bool = opt(
        False,
        "Read .ckpt files that hold more than tensors: only their weights are read, and nothing in them is run.",
    )
    mixed_precision: str = opt(
        "no", "Format that the VAE computes in: the one of the training.", choices=("no", "fp16", "bf16")
    )
    no_half_vae: bool = opt(False, "Run the VAE in float32.")
    batch_size: int = opt(1, "Pictures encoded at once.", minimum=1)
    max_data_loader_n_workers: int | None = opt(
        None, "Processes that load pictures.", no_effect="a thread for each processor decodes pictures", minimum=0
    )
    cache_dir: Path | None = opt(
        None, "Folder for all cache files, where those of the pictures cannot be written or shall stay as they are."
    )


@dataclass(frozen=True, kw_only=True)
class BucketSizeOptions(OptionGroup):
    """At which sizes the pictures are trained, and what is kept of them."""

    title: ClassVar[str] = "Buckets"

    max_resolution: str = opt(
        "512,512",
        "Size of training pictures: one side, or width,height. Buckets have about its area.",
        unit="pixels",
        aliases=("resolution",),
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
    background: str = opt("white", "What shows through transparency.", unit="white, black or #rrggbb")
    flip_aug: bool = opt(False, "Keep the mirrored pictures too.")
    alpha_mask: str = opt("", "Keep the transparency as the mask of the loss: true or false.")

    @property
    def keeps_masks(self) -> bool:
        """`--alpha_mask` as a switch."""
        return self.alpha_mask.strip().lower() in _YES

    def check(self) -> Iterator[str]:
        if parse_size(self.max_resolution) is None:
            yield f"--max_resolution needs one number or width,height in pixels, got {self.max_resolution!r}."
        if self.alpha_mask.strip().lower() not in (*_YES, *_NO):
            yield f"--alpha_mask needs true or false, got {self.alpha_mask!r}."
        if self.min_bucket_reso > self.max_bucket_reso:
            yield f"--min_bucket_reso {self.min_bucket_reso} is above --max_bucket_reso {self.max_bucket_reso}."


@dataclass(frozen=True, kw_only=True)
class BucketLatentsOptions(CommonOptions):
    """All options of finetune/prepare_buckets_latents.py."""

    files: BucketFileOptions = field(default_factory=BucketFileOptions)
    model: BucketModelOptions = field(default_factory=BucketModelOptions)
    buckets: BucketSizeOptions = field(default_factory=BucketSizeOptions)
    family: FamilyChoiceOptions = field(default_factory=FamilyChoiceOptions)

    leading: ClassVar[tuple[str, ...]] = ("files", "model", "buckets")


def training_flags(options: BucketLatentsOptions, in_json: Path | None) -> list[str]:
    """What a training is given to find the caches: only what differs from its defaults, beside what it needs.

    Args:
        options: Of the script.
        in_json: The metadata file of the training.
    """
    files, model, buckets = options.files, options.model, options.buckets
    given: dict[str, object] = {
        "pretrained_model_name_or_path": model.model_name_or_path,
        "vae": model.vae,
        "in_json": in_json,
        "train_data_dir": files.train_data_dir,
        "resolution": buckets.max_resolution.replace(" ", ""),
    }
    given |= {name: getattr(buckets, name) for name in _SIZES}
    given |= {"mixed_precision": model.mixed_precision, "cache_dir": model.cache_dir}
    switches = {name: getattr(buckets, name) for name in ("bucket_no_upscale", "flip_aug")}
    switches |= {"alpha_mask": buckets.keeps_masks, "cache_latents_to_disk": True, "enable_bucket": True}
    switches |= {name: getattr(model, name) for name in ("v2", "allow_pickle", "no_half_vae")}
    defaults = {name: option.default for name, option in options_of(LatentCachingOptions).items()}
    values = [f"--{name}={value}" for name, value in given.items() if value != defaults[name]]
    return [*values, *(f"--{name}" for name, is_on in switches.items() if is_on)]


def caching_options(options: BucketLatentsOptions) -> LatentCachingOptions:
    """The options of tools/cache_latents.py for the same caches. Captions play no part, and a picture that cannot be
    used does not keep the others from being cached.

    Raises:
        OptionError: They do not go together.
    """
    family = [] if options.family.chosen is None else [f"--{options.family.chosen}"]
    own = ["--missing_caption=allow", "--empty_caption=allow", "--on_bad_file=skip"]
    batch_size = f"--vae_batch_size={options.model.batch_size}"
    flags = [*training_flags(options, options.files.in_json), *family, *own, batch_size]
    return parse_options(LatentCachingOptions, flags, **LATENT_CACHING_SCRIPT)


BUCKET_LATENTS_SCRIPT: ScriptText = {
    "prog": "finetune/prepare_buckets_latents.py",
    "description": "Choose the training size of every picture that a metadata file names, encode the pictures once and "
    "keep the latents in files, which a training finds with --cache_latents_to_disk.",
    "example": "accelerate launch finetune/prepare_buckets_latents.py pictures meta.json meta_lat.json "
    "model.safetensors --max_resolution=512,512 --batch_size=4 --mixed_precision=bf16",
    "ignored": {},
}
