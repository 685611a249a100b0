"""What a saved network's metadata says about the data it was trained on: counts, buckets, tags, settings."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from library.records import CropPlan, ImageRecord, Size

_SEPARATORS = re.compile(r"[,\r\n]")  # a caption may hold several lines


def describe_datasets(
    records: Sequence[ImageRecord], crops: Sequence[CropPlan], datasets: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Facts about the training data for `metadata.build_metadata`: datasets, tag_frequency and dataset_dirs.

    They are complete, however long; `header_limit.fit_header` shortens what is written.

    Args:
        records: Pictures that are trained on.
        crops: One for each record.
        datasets: The configured datasets as nested mappings (`dataclasses.asdict`).
    """
    by_subset = defaultdict(list)
    for index, record in enumerate(records):
        by_subset[record.dataset, record.subset].append(index)
    described = []
    all_tags: dict[str, dict[str, int]] = {}
    all_counts: list[tuple[Mapping[str, Any], int]] = []
    for number, dataset in enumerate(datasets):
        counts = [(subset, by_subset[number, place]) for place, subset in enumerate(dataset["subsets"])]
        tags = _count_tags([(_folder(subset), [records[i].caption for i in own]) for subset, own in counts])
        own = [index for _, indices in counts for index in indices]
        described.append(
            {
                **_describe_dataset(dataset, [records[i] for i in own], [crops[i] for i in own]),
                "tag_frequency": tags,
                "subsets": [_describe_subset(subset, len(indices)) for subset, indices in counts],
            }
        )
        for folder, counted in tags.items():
            all_tags.setdefault(folder, counted)
        all_counts += [(subset, len(indices)) for subset, indices in counts]
    return {"datasets": described, "tag_frequency": all_tags, "dataset_dirs": _folders(all_counts, is_reg=False)}


def describe_only_dataset(
    described: Mapping[str, Any], dataset: Mapping[str, Any], *, batches_per_step: int
) -> dict[str, Any]:
    """The same in the form without a dataset file, where options hold for all pictures: one key for each of them.

    Args:
        described: The dataset as `describe_datasets` gives it.
        dataset: As configured.
        batches_per_step: Of all processes, with accumulation.
    """
    first = described["subsets"][0] if described["subsets"] else {}
    counts = [(subset, one["img_count"]) for subset, one in zip(dataset["subsets"], described["subsets"], strict=True)]
    width, height = dataset["resolution"]
    of_subset = ("color_aug", "flip_aug", "random_crop", "shuffle_caption", "keep_tokens")
    return {
        "batch_size_per_device": dataset["batch_size"],
        "total_batch_size": dataset["batch_size"] * batches_per_step,
        "resolution": f"({width}, {height})",
        **{name: first.get(name) for name in of_subset},
        "enable_bucket": dataset["enable_bucket"],
        "bucket_no_upscale": dataset["bucket_no_upscale"],
        "min_bucket_reso": described["min_bucket_reso"],
        "max_bucket_reso": described["max_bucket_reso"],
        "reg_dataset_dirs": _folders(counts, is_reg=True),
        "bucket_info": described["bucket_info"],
    }


def _describe_dataset(
    dataset: Mapping[str, Any], records: Sequence[ImageRecord], crops: Sequence[CropPlan]
) -> dict[str, object]:
    has_buckets = dataset["enable_bucket"]
    return {
        "is_dreambooth": all(subset["metadata_file"] is None for subset in dataset["subsets"]),
        "batch_size_per_device": dataset["batch_size"],
        "num_train_images": sum(record.repeats for record in records if not record.is_reg),
        "num_reg_images": sum(record.repeats for record in records if record.is_reg),
        "resolution": list(dataset["resolution"]),
        "enable_bucket": has_buckets,
        "min_bucket_reso": dataset["min_bucket_reso"] if has_buckets else None,
        "max_bucket_reso": dataset["max_bucket_reso"] if has_buckets else None,
        "resize_interpolation": dataset["resize_interpolation"],
        "bucket_info": _describe_buckets(records, crops) if has_buckets else None,
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


def _folders(counts: Sequence[tuple[Mapping[str, Any], int]], *, is_reg: bool) -> dict[str, dict[str, int]]:
    """{name: repeats and pictures} of the folders of one kind; repeated names get a number."""
    folders: dict[str, dict[str, int]] = {}
    numbers: Counter[str] = Counter()
    for subset, num_images in counts:
        if subset["is_reg"] != is_reg:
            continue
        name = free = _folder(subset)
        while free in folders:
            numbers[name] += 1
            free = f"{name} ({numbers[name] + 1})"
        folders[free] = {"n_repeats": subset["num_repeats"], "img_count": num_images}
    return folders


def _count_tags(folders: Sequence[tuple[str, Sequence[str]]]) -> dict[str, dict[str, int]]:
    """{folder: {tag: number of captions}}; folders of the same name are counted together."""
    counts: dict[str, Counter[str]] = {}
    for folder, captions in folders:
        own = counts.setdefault(folder, Counter())
        for caption in captions:
            own.update(tag for tag in (part.strip().lower() for part in _SEPARATORS.split(caption)) if tag)
    return {folder: dict(own) for folder, own in counts.items()}
