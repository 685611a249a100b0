"""What a saved network's metadata says about the data it was trained on: counts, buckets, tags, settings."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from library.log import get_logger
from library.records import CropPlan, ImageRecord, Size

logger = get_logger(__name__)

MAX_TAG_BYTES = 1 << 18  # of the tag counts of a file; readers of headers get slow or give up beyond a few of these


def describe_datasets(
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    datasets: Sequence[Mapping[str, Any]],
    *,
    max_tag_bytes: int = MAX_TAG_BYTES,
) -> dict[str, object]:
    """Facts about the training data for `metadata.build_metadata`: datasets, tag_frequency and dataset_dirs.

    Args:
        records: Pictures that are trained on.
        crops: One for each record.
        datasets: The configured datasets as nested mappings (`dataclasses.asdict`).
        max_tag_bytes: Limit on the tag counts; beyond it the rarest tags are left out.
    """
    by_subset = defaultdict(list)
    for index, record in enumerate(records):
        by_subset[record.dataset, record.subset].append(index)
    budget = max_tag_bytes // (len(datasets) + 1)
    described = []
    all_tags: dict[str, dict[str, int]] = {}
    folders: dict[str, dict[str, int]] = {}
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
            if subset["is_reg"]:
                continue
            entry = {"n_repeats": subset["num_repeats"], "img_count": len(indices)}
            folders[_free_name(_folder(subset), folders)] = entry
    return {"datasets": described, "tag_frequency": _cut_tags(all_tags, budget), "dataset_dirs": folders}


def _describe_dataset(
    dataset: Mapping[str, Any], records: Sequence[ImageRecord], crops: Sequence[CropPlan]
) -> dict[str, object]:
    names = ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "resize_interpolation")
    return {
        "is_dreambooth": all(subset["metadata_file"] is None for subset in dataset["subsets"]),
        "batch_size_per_device": dataset["batch_size"],
        "num_train_images": sum(record.repeats for record in records if not record.is_reg),
        "num_reg_images": sum(record.repeats for record in records if record.is_reg),
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
        "resize_interpolation",
    )
    source = {"class_tokens": subset["class_tokens"], "is_reg": subset["is_reg"]}
    if subset["metadata_file"] is not None:
        source = {"metadata_file": Path(subset["metadata_file"]).name}
    chosen = {name: values[name] for name in names}
    return {"img_count": num_images, **chosen, "image_dir": _folder(subset), **source}


def _folder(subset: Mapping[str, Any]) -> str:
    """Name of the folder; of the metadata file where pictures of any folder are named in one."""
    return Path(subset["image_dir"] or subset["metadata_file"]).name


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
