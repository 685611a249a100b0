"""Filling the latent cache of a metadata file, and writing down at which size each of its pictures is trained."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from library.data.cache import cache_folders
from library.data.cache.places import TEXT_FOLDER
from library.data.cache.status import remove_files
from library.data.files.metadata_file import read_metadata
from library.data.files.metadata_json import RawEntry
from library.data.findings import Fault
from library.records import Size
from library.tensorfile import abandoned_files
from library.training.cache_run import LatentCacheRun

_SIZE_KEY, _BUCKET_KEY = "image_size", "train_resolution"  # of an entry


class Fitted(NamedTuple):
    """A picture that is cached.

    Attributes:
        path: Its file.
        size: Its own, upright, in pixels.
        bucket: The size at which it is trained, in pixels.
    """

    path: Path
    size: Size
    bucket: Size


class BucketCacheRun(LatentCacheRun):
    """Encodes the pictures of one metadata file. Those that cannot be used are left to the caller, in `faults`."""

    _paths: Mapping[str, Path]  # by the name that the metadata file has for a picture

    def plan_run(self) -> None:
        """As for every run of its kind, and what the names of the metadata file mean."""
        super().plan_run()
        (spec,) = self.plan.specs
        (subset,) = spec.subsets
        self._paths = {entry.name: entry.path for entry in read_metadata(subset).entries}

    def start(self) -> None:
        """As for every run; and what a run that was killed had begun to write beside the pictures goes."""
        super().start()
        if self.accelerator.is_main_process:
            folders = cache_folders(self.plan.records, self.options.cache.cache_dir)
            own = (folder for folder in folders if folder.name != TEXT_FOLDER)
            remove_files([torso for folder in own for torso in abandoned_files(folder)])
        self.accelerator.wait_for_everyone()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is wrong with pictures that are not cached; after `run`, alike on every process."""
        return self.plan.findings.faults

    @property
    def needs_no_caption(self) -> bool:
        """Whether there are pictures that a training takes only if captions may be missing; after `run`."""
        return any(not record.caption for record in self.plan.records)

    def fitted(self) -> dict[str, Fitted]:
        """The pictures that are cached, by the name that the metadata file has for each; after `run`.

        After `plan_run` it is what will be cached, as far as the pictures can be decoded.
        """
        cached = {
            record.path: Fitted(record.path, record.size, crop.bucket)
            for record, crop in zip(self.plan.records, self.plan.crops, strict=True)
        }
        return {name: cached[path] for name, path in self._paths.items() if path in cached}

    def leave_out(self, broken: Mapping[Path, str]) -> None:
        """Plan again without pictures that turned out to be damaged, even if none is left."""
        self.set_plan(self.plan.without(broken))

    def set_aside(self) -> None:
        """Nothing: the caller tells of them, when the metadata is written."""


def entries_with_sizes(
    entries: Iterable[tuple[str, RawEntry]], fitted: Mapping[str, Fitted], *, is_full_path: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a metadata file with "image_size" and "train_resolution", both [width, height], of what is cached.

    An entry whose picture is not keeps its place and loses a "train_resolution" of earlier.

    Args:
        entries: (name, values), in order.
        fitted: By name.
        is_full_path: Name what is cached by its whole path.
    """
    for name, values in entries:
        kept = {key: value for key, value in values.items() if key != _BUCKET_KEY}
        found = fitted.get(name)
        if found is None:
            yield name, kept
            continue
        own_name = os.path.abspath(found.path) if is_full_path else name
        yield own_name, kept | {_SIZE_KEY: list(found.size), _BUCKET_KEY: list(found.bucket)}


def buckets_in_words(fitted: Iterable[Fitted]) -> str:
    """How many pictures are trained at which size, for instance "512x512: 3, 448x576: 1"; the most frequent first."""
    counts = Counter(one.bucket for one in fitted)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{bucket}: {count}" for bucket, count in ranked)
