"""What a run says about itself in the files it saves."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.dataset_summary import describe_datasets, describe_only_dataset
from library.checkpoint.header_limit import HEADER_LIMIT, fit_header, room_for_metadata
from library.checkpoint.metadata import (
    JSON_KEYS,
    FileHashes,
    build_metadata,
    describe_file,
    file_metadata,
    hash_in_background,
    modelspec,
    read_thumbnail,
)
from library.checkpoint.names import last_name
from library.checkpoint.tensor_stream import HASH_KEY
from library.errors import OutputError
from library.log import get_logger
from library.records import Size
from library.tensorfile import save_with_torch, write_atomically, write_tensors
from library.training.optimization.optimizers import forced_schedule, optimizer_description, sets_its_own_rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from library.families.base import ModelFamily
    from library.training.planning import DataPlan

logger = get_logger(__name__)

IMPLEMENTATION_VERSION = "easel/0.1.0"
_FILE_KINDS = {"model": "sd_model", "vae": "vae"}


class RunMetadata:
    """Collects what is known at the start; `for_file` adds what is known when a file is saved.

    Args:
        options: All options by name.
        network_args: As given by the user; those of --network_args.
        is_saved_here: False in processes that write no files, and so hash none.
        seed: Of the run, drawn or given.
        session: `session` of the run that is continued; None begins a new one.
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
        session: Mapping[str, Any] | None = None,
    ) -> None:
        self.options, self.family, self.files, self.plan = dict(options), family, files, plan
        known = session or {}
        self._session_id = int(known.get("session_id", random.SystemRandom().randrange(1 << 32)))
        self._started_at = float(known.get("training_started_at", time.time()))
        self._hashes: Future[dict[str, FileHashes]] | None = None
        self._has_told = False
        if options["no_metadata"] or not is_saved_here:
            return
        self._hashes = hash_in_background(family.part_files(files))
        self.options["metadata_thumbnail"] = read_thumbnail(options.get("metadata_thumbnail"))
        facts = {
            **self.session,
            "seed": seed,
            "cache_latents": options["cache_latents"] or options["cache_latents_to_disk"],
            "network_args": dict(network_args),
            **_counts(plan),
            **_rates(options),
            **_data_facts(plan, has_file=bool(options.get("dataset_config"))),
            **family.metadata(files),
        }
        self._at_start = build_metadata(self.options, facts)
        self._told: set[str] = set()

    @property
    def session(self) -> dict[str, int | float]:
        """What a run that is continued keeps; can be written as JSON."""
        return {"session_id": self._session_id, "training_started_at": self._started_at}

    def for_file(
        self, tensors: Mapping[str, Tensor], *, step: int, epoch: int, architecture: str, is_average: bool = False
    ) -> dict[str, str]:
        """The header of a file; empty with --no_metadata. Waits for the hashes of the model files if need be.

        Where a list had to be shortened to keep the header readable, the whole one goes to <name>_dataset.json in
        --output_dir, once.
        """
        if self._hashes is None:  # --no_metadata
            return {}
        metadata = self._described(
            room_for_metadata(tensors), step=step, epoch=epoch, architecture=architecture, is_average=is_average
        )
        training = {key: value for key, value in metadata.items() if not key.startswith("modelspec.")}
        return file_metadata(tensors, training, {key: metadata[key] for key in metadata if key not in training})

    def for_model(self, *, step: int, epoch: int, architecture: str, is_average: bool = False) -> dict[str, str]:
        """The header of a whole model; empty with --no_metadata. Its hash is computed while it is written."""
        if self._hashes is None:
            return {}
        metadata = self._described(
            HEADER_LIMIT // 2, step=step, epoch=epoch, architecture=architecture, is_average=is_average
        )
        return {**metadata, HASH_KEY: ""}

    def _described(self, room: int, *, step: int, epoch: int, architecture: str, is_average: bool) -> dict[str, str]:
        """Everything but the hashes of what is written, in at most `room` bytes."""
        hashes = self._known_hashes()
        now = time.time()
        facts: dict[str, Any] = {"training_finished_at": now, "epoch": epoch, "steps": step}
        if is_average:
            facts["ema_weights"] = True
        for kind, path in self.family.part_files(self.files).items():
            if kind in hashes:
                facts |= describe_file(_FILE_KINDS[kind], path, hashes[kind])
        spec = modelspec(
            architecture,
            options=self.options,
            resolution=self._resolution(),
            prediction_type=self.family.prediction_type,
            saved_at=now,
            implementation_version=IMPLEMENTATION_VERSION,
        )
        return self._fitted({**self._at_start, **build_metadata({}, facts), **spec}, room)

    def _known_hashes(self) -> Mapping[str, FileHashes]:
        """Of the model files; none where their drive has gone since they were read, which is told once."""
        assert self._hashes is not None
        if not self._hashes.done():
            logger.info("saving waits for the hash of the model file, which is computed once and remembered.")
        try:
            return self._hashes.result()
        except OSError as error:
            if not self._has_told:
                logger.warning("the files saved have no hashes of the model files, which cannot be read: %s", error)
            self._has_told = True
            return {}

    def _fitted(self, metadata: Mapping[str, str], room: int) -> dict[str, str]:
        """Metadata that fits into `room` bytes; what is shortened stays so in later files, and is told once."""
        fitted = fit_header(metadata, room)
        if fitted.cut:
            keys = [key for key in fitted.metadata if key in self._at_start or key.endswith("_cut")]
            self._at_start = {key: fitted.metadata[key] for key in keys}
        if new := {key: said for key, said in fitted.cut.items() if key not in self._told}:
            self._told |= set(new)
            self._keep_complete({key: fitted.complete[key] for key in new})
            listed = ", ".join(f"{key} ({said})" for key, said in new.items())
            logger.warning("the metadata is too long for a file's header and is shortened: %s", listed)
        return fitted.metadata

    def _keep_complete(self, complete: Mapping[str, str]) -> None:
        """Write the whole lists beside the models. A failure is told, and costs no model."""
        if self.options.get("output_dir") is None:
            return
        path = Path(self.options["output_dir"]) / last_name(self.options.get("output_name"), "_dataset.json")
        content = {key: json.loads(value) if key in JSON_KEYS else value for key, value in complete.items()}
        try:
            write_atomically(path, lambda place: _write_json(place, content))
        except OutputError as error:
            logger.warning("%s", error)
            return
        logger.info("the complete metadata is in %s", path)

    def _resolution(self) -> Size:
        """The largest resolution of the datasets."""
        return max((spec.resolution for spec in self.plan.specs), key=lambda size: size.width * size.height)


def _counts(plan: DataPlan) -> dict[str, int]:
    steps, trained = plan.steps, plan.training_records
    return {
        "num_train_images": sum(record.repeats for record in trained if not record.is_reg),
        "num_reg_images": sum(record.repeats for record in trained if record.is_reg),
        "num_validation_images": len(plan.validation_records),
        "num_batches_per_epoch": steps.batches_per_process,
        "num_epochs": steps.epochs,
        "max_train_steps": steps.max_steps,
    }


def _rates(options: Mapping[str, Any]) -> dict[str, Any]:
    """Optimizer, schedule and learning rates as they are used; None for rates that the optimizer ignores."""
    name, args, rate = options["optimizer_type"], options["optimizer_args"], options["learning_rate"]
    schedule = options.get("lr_scheduler_type") or options["lr_scheduler"]
    ignored = ("learning_rate", "unet_lr", "text_encoder_lr") if sets_its_own_rate(name, args) else ()
    return {
        "optimizer": optimizer_description(name, args),
        "lr_scheduler": forced_schedule(name, args, rate) or schedule,
        **dict.fromkeys(ignored),
    }


def _data_facts(plan: DataPlan, *, has_file: bool) -> dict[str, Any]:
    """What is said about the data; without a dataset file also the keys that such runs are known by."""
    trained, specs = plan.training_records, [dataclasses.asdict(spec) for spec in plan.specs]
    facts = describe_datasets(trained, plan.crops[: len(trained)], specs)
    if has_file or len(specs) != 1:
        return facts
    batches = plan.steps.accumulation * plan.steps.num_processes
    return {**facts, **describe_only_dataset(facts["datasets"][0], specs[0], batches_per_step=batches)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", errors="replace")


def write_network(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a network file atomically: safetensors, or (.ckpt, .pt) a dictionary of tensors without metadata."""
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, metadata)
        return
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_atomically(path, lambda place: save_with_torch(dict(tensors), place), needed)
