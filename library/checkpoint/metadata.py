"""What a saved network says about itself in the header of its file: ss_*, modelspec.* and sshs_* keys.

All values are strings. Every function takes plain values; which option they come from is the caller's affair.

Source: the keys that tools for Stable Diffusion networks read and write; Stability AI's ModelSpec 1.0.1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from library.log import get_logger
from library.records import CropPlan, ImageRecord, Size
from library.tensorfile import remembered_hash

if TYPE_CHECKING:
    from torch import Tensor

logger = get_logger(__name__)

MAX_TAG_BYTES = 1 << 18  # of the tag counts of a file; readers of headers get slow or give up beyond a few of these

RECORDED_OPTIONS = (  # recorded as ss_<name>
    *("output_name", "training_comment", "learning_rate", "text_encoder_lr", "unet_lr", "max_train_steps", "seed"),
    *("gradient_checkpointing", "gradient_accumulation_steps", "lr_warmup_steps", "lr_scheduler", "max_grad_norm"),
    *("network_module", "network_dim", "network_alpha", "network_dropout", "network_args"),
    *("mixed_precision", "full_fp16", "fp8_base", "fp8_base_unet", "lowram", "cache_latents"),
    *("v2", "clip_skip", "max_token_length"),
    *("noise_offset", "noise_offset_random_strength", "multires_noise_iterations", "multires_noise_discount"),
    *("adaptive_noise_scale", "zero_terminal_snr", "ip_noise_gamma", "ip_noise_gamma_random_strength"),
    *("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate"),
    *("face_crop_aug_range", "prior_loss_weight", "min_snr_gamma", "scale_weight_norms", "debiased_estimation"),
    *("loss_type", "huber_schedule", "huber_scale", "huber_c"),
    *("validation_seed", "validation_split", "max_validation_steps"),
    *("validate_every_n_epochs", "validate_every_n_steps", "resize_interpolation"),
)
_AS_JSON = frozenset(("network_args", "datasets", "tag_frequency", "dataset_dirs"))
_OWN_NAMES = {"debiased_estimation": "debiased_estimation_loss"}  # option of another name than its key
_DESCRIPTIONS = (  # modelspec.<name>, from the option --metadata_<name>
    *("author", "description", "license", "tags", "usage_hint", "merged_from"),
    *("trigger_phrase", "preprocessor", "is_negative_embedding"),
)


def build_metadata(options: Mapping[str, object], facts: Mapping[str, object]) -> dict[str, str]:
    """The ss_* keys of a training.

    Args:
        options: {name: value} of all options, flat; those of `RECORDED_OPTIONS` are taken.
        facts: {key without ss_: value} of everything that is not an option: session_id, training_started_at,
            num_train_images, num_reg_images, num_batches_per_epoch, num_epochs, epoch, steps, optimizer,
            base_model_version, what `describe_datasets` and `describe_file` give, the family's own keys. A fact wins
            over an option of its name.

    Returns:
        Strings. None is "None", truth values are "True" and "False"; nested values are JSON.
    """
    recorded = {
        name: options[_OWN_NAMES.get(name, name)] for name in RECORDED_OPTIONS if _OWN_NAMES.get(name, name) in options
    }
    values = {**recorded, **facts}
    if not values.get("network_args"):
        values.pop("network_args", None)
    return {
        f"ss_{name}": json.dumps(value) if name in _AS_JSON and not isinstance(value, str) else str(value)
        for name, value in values.items()
    }


def modelspec(
    architecture: str,
    *,
    options: Mapping[str, object],
    resolution: Size,
    prediction_type: str,
    saved_at: float,
    implementation: str = "diffusers",
    implementation_version: str | None = None,
) -> dict[str, str]:
    """The modelspec.* keys of a saved file.

    Args:
        architecture: For instance "stable-diffusion-3-medium/lora".
        options: {name: value}: output_name, the metadata_* options, min_timestep, max_timestep, clip_skip.
        resolution: That was trained at.
        prediction_type: "epsilon", "v", or "flow": what a flow-matching model predicts is neither of ModelSpec's two.
        saved_at: Seconds since 1970.
        implementation: What the weights are laid out for.
        implementation_version: Of this code.
    """
    title = options.get("metadata_title") or options.get("output_name") or f"LoRA@{int(saved_at)}"
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": implementation,
        "title": title,
        "resolution": f"{resolution.width}x{resolution.height}",
        "date": datetime.fromtimestamp(int(saved_at)).isoformat(),
        **{name: options.get(f"metadata_{name}") for name in _DESCRIPTIONS},
        "thumbnail": _thumbnail(options.get("metadata_thumbnail")),
        "implementation_version": implementation_version,
        "prediction_type": prediction_type,
        "timestep_range": _timestep_range(options.get("min_timestep"), options.get("max_timestep")),
        "encoder_layer": options.get("clip_skip"),
    }
    return {f"modelspec.{name}": str(value) for name, value in values.items() if value is not None and value != ""}


def file_metadata(
    tensors: Mapping[str, Tensor], training: Mapping[str, str], spec: Mapping[str, str], *, no_metadata: bool = False
) -> dict[str, str]:
    """Everything that goes into the header of a network's file; nothing with `no_metadata`.

    Args:
        tensors: As they are saved.
        training: From `build_metadata`.
        spec: From `modelspec`.
        no_metadata: So that equal weights give equal bytes.
    """
    if no_metadata:
        return {}
    model_hash, legacy_hash = tensor_hashes(tensors, training)
    return {**training, **spec, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}


def tensor_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """sshs_model_hash and sshs_legacy_hash of tensors as a file with the ss_* part of `metadata` would hold them.

    The first is the SHA-256 of the tensor data. The second is 8 digits of the SHA-256 of the 64 KiB that begin 1 MiB
    into the file; smaller files give "e3b0c442".
    """
    from safetensors.torch import save

    recorded = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    data = memoryview(save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, recorded))
    header_length = int.from_bytes(data[:8], "little")
    return hashlib.sha256(data[8 + header_length :]).hexdigest(), _legacy(data[0x100000:0x110000])


# Files that a training started from


@dataclass(frozen=True)
class FileHashes:
    """Hashes of a model file. "NOFILE" where it is missing, "IsADirectory" where it cannot be read.

    Attributes:
        legacy: 8 digits of the SHA-256 of 64 KiB from its middle; fast, but not unique.
        sha256: Of the whole file.
    """

    legacy: str
    sha256: str


def file_hashes(path: Path) -> FileHashes:
    """Hashes of a file; those of large ones take seconds, and are remembered by size and modification time."""
    try:
        with open(path, "rb") as file:
            file.seek(0x100000)
            legacy = _legacy(file.read(0x10000))
        return FileHashes(legacy, remembered_hash(path, "sha256", lambda: _sha256(path)))
    except FileNotFoundError:
        return FileHashes("NOFILE", "NOFILE")
    except (IsADirectoryError, PermissionError):  # Windows reports a folder as a lack of permission
        return FileHashes("IsADirectory", "IsADirectory")


def hash_in_background(files: Mapping[str, Path]) -> Future[dict[str, FileHashes]]:
    """Hash files in a thread that does not keep the process alive; `.result()` waits.

    Args:
        files: {any name: path}; the names are those of the result.
    """
    future: Future[dict[str, FileHashes]] = Future()

    def work() -> None:
        try:
            future.set_result({name: file_hashes(path) for name, path in files.items()})
        except BaseException as error:  # raised by result(), in the thread that asks
            future.set_exception(error)

    Thread(target=work, name="file hashes", daemon=True).start()
    return future


def describe_file(kind: str, path: Path, hashes: FileHashes) -> dict[str, str]:
    """Facts about a file for `build_metadata`.

    Args:
        kind: "sd_model" or "vae".
        path: As given by the user.
        hashes: From `file_hashes`.
    """
    return {f"{kind}_name": path.name, f"{kind}_hash": hashes.legacy, f"new_{kind}_hash": hashes.sha256}


def _legacy(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


# Datasets


def describe_datasets(
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    datasets: Sequence[Mapping[str, Any]],
    *,
    max_tag_bytes: int = MAX_TAG_BYTES,
) -> dict[str, object]:
    """Facts about the training data for `build_metadata`: datasets, tag_frequency and dataset_dirs.

    Args:
        records: All pictures.
        crops: One for each record.
        datasets: The configured datasets as nested mappings (`dataclasses.asdict`).
        max_tag_bytes: Limit on the tag counts; beyond it the rarest tags are left out.
    """
    by_subset = defaultdict(list)
    for index, record in enumerate(records):
        by_subset[record.dataset, record.subset].append(index)
    budget = max_tag_bytes // (len(datasets) + 1)
    described, all_tags, folders = [], {}, {}
    for number, dataset in enumerate(datasets):
        counts = [(subset, by_subset[number, place]) for place, subset in enumerate(dataset["subsets"])]
        tags = _count_tags([(_folder(subset), [records[i].caption for i in own]) for subset, own in counts])
        own = [index for _, indices in counts for index in indices]
        described.append(
            {
                **_describe_dataset(dataset, [records[i] for i in own], [crops[i] for i in own]),
                "tag_frequency": _cut_tags(tags, budget),
                "subsets": [_describe_subset(subset, len(indices)) for subset, indices in counts],
            }
        )
        all_tags = {**tags, **all_tags}
        for subset, indices in counts:
            entry = {"n_repeats": subset["num_repeats"], "img_count": len(indices)}
            folders[_free_name(_folder(subset), folders)] = entry
    return {"datasets": described, "tag_frequency": _cut_tags(all_tags, budget), "dataset_dirs": folders}


def _describe_dataset(
    dataset: Mapping[str, Any], records: Sequence[ImageRecord], crops: Sequence[CropPlan]
) -> dict[str, object]:
    names = ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "resize_interpolation")
    return {
        "is_dreambooth": True,
        "batch_size_per_device": dataset["batch_size"],
        "num_train_images": sum(record.repeats for record in records),
        "num_reg_images": 0,
        "resolution": list(dataset["resolution"]),
        **{name: dataset[name] for name in names},
        "bucket_info": _describe_buckets(records, crops) if dataset["enable_bucket"] else None,
    }


def _describe_buckets(records: Sequence[ImageRecord], crops: Sequence[CropPlan]) -> dict[str, object]:
    counts: Counter[Size] = Counter()
    error = 0.0
    for record, crop in zip(records, crops, strict=True):
        counts[crop.bucket] += record.repeats
        error += abs(crop.bucket.width / crop.bucket.height - record.size.width / record.size.height)
    buckets = {
        str(index): {"resolution": list(size), "count": count}
        for index, (size, count) in enumerate(sorted(counts.items()))
    }
    return {"buckets": buckets, "mean_img_ar_error": error / max(1, len(records))}


def _describe_subset(subset: Mapping[str, Any], num_images: int) -> dict[str, object]:
    values = {**subset, **subset["captions"]}
    names = (
        *("num_repeats", "color_aug", "flip_aug", "random_crop", "shuffle_caption", "keep_tokens"),
        *("keep_tokens_separator", "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix"),
        *("resize_interpolation", "class_tokens", "is_reg"),
    )
    not_yet = {"color_aug": False, "is_reg": False}
    chosen = {name: values.get(name, not_yet.get(name)) for name in names}
    return {"img_count": num_images, **chosen, "image_dir": _folder(subset)}


def _folder(subset: Mapping[str, Any]) -> str:
    return Path(subset["image_dir"]).name


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    """The name, or with a number behind it if it is taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free


def _count_tags(folders: Sequence[tuple[str, Sequence[str]]]) -> dict[str, dict[str, int]]:
    """{folder: {tag: number of captions}}; folders of the same name are counted together."""
    counts: dict[str, Counter[str]] = {}
    for folder, captions in folders:
        own = counts.setdefault(folder, Counter())
        for caption in captions:
            own.update(tag for tag in (part.strip().lower() for part in caption.split(",")) if tag)
    return {folder: dict(own) for folder, own in counts.items()}


def _cut_tags(counts: Mapping[str, Mapping[str, int]], budget: int) -> dict[str, dict[str, int]]:
    """The most frequent tags that fit into `budget` bytes of JSON."""
    if len(json.dumps(counts)) <= budget:
        return {folder: dict(tags) for folder, tags in counts.items()}
    ranked = sorted((-count, folder, tag) for folder, tags in counts.items() for tag, count in tags.items())
    kept: dict[str, dict[str, int]] = {folder: {} for folder in counts}
    left = budget - len(json.dumps(kept))
    for count, folder, tag in ranked:
        left -= len(json.dumps({tag: -count}))
        if left < 0:
            break
        kept[folder][tag] = -count
    num_kept = sum(len(tags) for tags in kept.values())
    logger.info("metadata: the %d most frequent of %d tags are recorded", num_kept, len(ranked))
    return kept


def _timestep_range(low: object, high: object) -> str | None:
    if low is None and high is None:
        return None
    return f"{0 if low is None else low},{1000 if high is None else high}"


def _thumbnail(source: object) -> str | None:
    """A picture file as a data URL; a URL as it is."""
    if not source or str(source).startswith("data:"):
        return str(source) if source else None
    try:
        data = Path(str(source)).read_bytes()
    except OSError as error:
        logger.warning("--metadata_thumbnail %s cannot be read (%s) and is left out", source, error.strerror or error)
        return None
    kind = mimetypes.guess_type(str(source))[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
