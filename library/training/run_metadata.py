"""What a run says about itself in the files it saves."""

from __future__ import annotations

import dataclasses
import random
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.dataset_summary import describe_datasets
from library.checkpoint.metadata import (
    FileHashes,
    build_metadata,
    describe_file,
    file_metadata,
    hash_in_background,
    modelspec,
)
from library.records import Size
from library.tensorfile import write_atomically, write_tensors
from library.training.optimizers import forced_schedule, optimizer_description

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from library.families.base import ModelFamily
    from library.training.planning import DataPlan

IMPLEMENTATION_VERSION = "easel/0.1.0"
_FILE_KINDS = {"model": "sd_model", "vae": "vae"}


class RunMetadata:
    """Collects what is known at the start; `for_file` adds what is known when a file is saved.

    Args:
        options: All options by name.
        network_args: As given by the user; those of --network_args.
        is_saved_here: False in processes that write no files, and so hash none.
        seed: Of the run, drawn or given.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        family: ModelFamily,
        files: Any,
        plan: DataPlan,
        seed: int,
        network_args: Mapping[str, str],
        is_saved_here: bool = True,
    ) -> None:
        self.options, self.family, self.files, self.plan = options, family, files, plan
        self._hashes: Future[dict[str, FileHashes]] | None = None
        if options["no_metadata"] or not is_saved_here:
            return
        self._hashes = hash_in_background(family.part_files(files))
        name, args, rate = options["optimizer_type"], options["optimizer_args"], options["learning_rate"]
        steps, trained = plan.steps, plan.training_records
        self._facts: dict[str, Any] = {
            "session_id": random.SystemRandom().randrange(1 << 32),
            "training_started_at": time.time(),
            "seed": seed,
            "num_train_images": sum(record.repeats for record in trained if not record.is_reg),
            "num_reg_images": sum(record.repeats for record in trained if record.is_reg),
            "num_validation_images": len(plan.validation_records),
            "num_batches_per_epoch": steps.batches_per_process,
            "num_epochs": steps.epochs,
            "max_train_steps": steps.max_steps,
            "optimizer": optimizer_description(name, args),
            "lr_scheduler": forced_schedule(name, args, rate) or options["lr_scheduler"],
            "cache_latents": options["cache_latents"] or options["cache_latents_to_disk"],
            "network_args": dict(network_args),
            **describe_datasets(trained, plan.crops[: len(trained)], [dataclasses.asdict(spec) for spec in plan.specs]),
            **family.metadata(files),
        }

    def for_file(self, tensors: Mapping[str, Tensor], *, step: int, epoch: int, architecture: str) -> dict[str, str]:
        """The header of a file; empty with --no_metadata. Waits for the hashes of the model files if need be."""
        if self._hashes is None:  # --no_metadata
            return {}
        hashes = self._hashes.result()
        paths = self.family.part_files(self.files)
        facts = {**self._facts, "training_finished_at": time.time(), "epoch": epoch, "steps": step}
        for kind, path in paths.items():
            facts |= describe_file(_FILE_KINDS[kind], path, hashes[kind])
        spec = modelspec(
            architecture,
            options=self.options,
            resolution=self._resolution(),
            prediction_type="flow",
            saved_at=time.time(),
            implementation_version=IMPLEMENTATION_VERSION,
        )
        return file_metadata(tensors, build_metadata(self.options, facts), spec)

    def _resolution(self) -> Size:
        """The largest resolution of the datasets."""
        return max((spec.resolution for spec in self.plan.specs), key=lambda size: size.width * size.height)


def write_network(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a network file atomically: safetensors, or (.ckpt, .pt) a dictionary of tensors without metadata."""
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, metadata)
        return
    import torch

    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_atomically(path, lambda place: torch.save(dict(tensors), place), needed)
