"""What a run trains, in plain values: two runs with the same identity give the same weights.

A saved state keeps it. Where a run goes on from a state, the two are compared and every difference is told. Files are
known by their length and parts of their content, not by their place, so that a run can go on in another folder or on
another machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.files.file_threads import map_files
from library.data.problems import first_names
from library.options.groups import MemoryOptions
from library.options.spec import OptionGroup, group_options

if TYPE_CHECKING:
    from library.options.spec import ScriptOptions
    from library.records import ImageRecord
    from library.training.planning import DataPlan

# Groups whose options change nothing of what is trained; those of the data act through pictures and settings.
_FREE_GROUPS = (
    *("LoggingOptions", "SavingOptions", "MetadataOptions", "SamplingOptions", "HubOptions", "DistributedOptions"),
    *("ConfigOptions", "DatasetOptions", "CacheOptions", "ValidationOptions", "ComputeOptions"),
)
_FREE = frozenset(
    (
        *("max_train_steps", "max_train_epochs", "seed", "max_data_loader_n_workers", "persistent_data_loader_workers"),
        *("initial_epoch", "initial_step", "skip_until_initial_step", "blocks_to_swap", "lowram", "highvram", "sdpa"),
        *("max_bad_steps", "mem_eff_attn", "disable_mmap_load_safetensors", "network_weights"),
        *("gradient_checkpointing", "cpu_offload_checkpointing", "fp8_base", "fp8_base_unet"),
        *("allow_pickle", "use_safetensors", "verify_export"),
        *("gradient_checkpointing_every_n_blocks", "swap_prefetch", "sample_blocks_to_swap", "fit"),
    )
)
LENGTH = "steps of the run"
_FILES = ("pretrained_model_name_or_path",)  # options that name a file and are not declared as paths
_YOUNGER = {"is_conditioned": False}  # keys that states of earlier versions lack, with what those did
_PIECE = 1 << 14  # bytes of a file that are read at its beginning, middle and end


def run_identity(options: ScriptOptions, plan: DataPlan, *, seed: int | None) -> dict[str, Any]:
    """The identity of a run, as JSON gives it back.

    Args:
        options: All options.
        plan: The data.
        seed: Of the run; None where it is not drawn yet.
    """
    chosen = dict(_options(options.groups()))
    for group in options.groups():
        if isinstance(group, MemoryOptions):
            chosen["base_weights_dtype"] = group.weights_format  # however it was asked for
    identity = {
        "options": {name: value for name, value in chosen.items() if not _is_file(name, value)},
        "files": {name: _file_marks(value) for name, value in chosen.items() if _is_file(name, value)},
        "run": {
            "seed": seed,
            LENGTH: plan.steps.max_steps,
            "steps an epoch": plan.steps.steps_per_epoch,
            "processes": plan.settings.num_processes,
        },
        "datasets": [_settings(dataclasses.asdict(spec)) for spec in plan.specs],
        "pictures": _pictures(plan.training_records),
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain


def identity_mark(identity: Mapping[str, Any]) -> str:
    """A short hash of an identity, without a seed that may have been drawn."""
    run = {name: value for name, value in identity["run"].items() if name != "seed"}
    text = json.dumps({**identity, "run": run}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is different, one short line each: "--network_dim: 16, was 8"."""
    compared = {name: value for name, value in before["options"].items() if not _is_free(name)}  # in older ones
    told = [*_changed(compared, now["options"], "--{}: {}, was {}")]
    told += _changed(before["files"], now["files"], "--{}: the content of the file is another one")
    run = {name: value for name, value in now["run"].items() if value is not None}
    told += _changed({name: before["run"].get(name) for name in run}, run, "{}: {}, was {}")
    old_sets, new_sets = _settings(before["datasets"]), now["datasets"]
    if len(old_sets) != len(new_sets):
        told.append(f"datasets: {len(new_sets)}, were {len(old_sets)}")
    for number, (old, new) in enumerate(zip(old_sets, new_sets, strict=False), start=1):
        told += _changed(_flat(old), _flat(new), f"dataset {number}, {{}}: {{}}, was {{}}")
    return told + list(_picture_changes(before["pictures"], now["pictures"]))


def _options(groups: Iterable[OptionGroup]) -> Iterator[tuple[str, Any]]:
    for group in groups:
        if any(base.__name__ in _FREE_GROUPS for base in type(group).__mro__):
            continue
        for name, option in group_options(type(group)).items():
            if not _is_free(name) and not option.declared.no_effect and not option.declared.is_secret:
                yield name, getattr(group, name)


def _is_free(name: str) -> bool:
    return name in _FREE or name.endswith("_device")


def _is_file(name: str, value: Any) -> bool:
    first = value[0] if isinstance(value, tuple) and value else value
    return name in _FILES or isinstance(first, Path)


def _file_marks(value: Any) -> list[str]:
    paths = value if isinstance(value, tuple) else (value,)
    return [file_mark(Path(path)) for path in paths if path is not None]


def file_mark(path: Path) -> str:
    """What a file is known by: its length and a hash of its beginning, middle and end. Of a folder, of its files."""
    if path.is_dir():
        marks = [f"{file.relative_to(path)} {file_mark(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
        return hashlib.sha256("\n".join(marks).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            for start in sorted({0, max(0, size // 2), max(0, size - _PIECE)}):
                file.seek(start)
                digest.update(file.read(_PIECE))
    except OSError:
        return f"unreadable: {path}"
    return digest.hexdigest()[:16]


def _settings(value: Any) -> Any:
    """A dataset's settings without the places of its folders, and without what earlier versions did not know of."""
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if not isinstance(item, Path)}
        return {key: _settings(item) for key, item in kept.items() if key not in _YOUNGER or item != _YOUNGER[key]}
    return [_settings(item) for item in value] if isinstance(value, (list, tuple)) else value


def _pictures(records: Sequence[ImageRecord]) -> dict[str, str]:
    """{key: marks of the picture and of those that belong to it, a hash of the caption}"""
    files = list({path for record in records for path in record.files})
    marks = dict(zip(files, map_files(file_mark, files), strict=True))
    result = {}
    for record in records:
        caption = hashlib.sha256(record.caption.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        others = "".join(marks[path] for path in record.files[1:])
        result[record.key.encode("utf-8", "backslashreplace").decode()] = f"{marks[record.path]}{others} {caption}"
    return result


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in settings.items():
        items = value if isinstance(value, list) and value and isinstance(value[0], Mapping) else None
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key} ")
        elif items is not None:
            result[f"number of {prefix}{key}"] = len(items)
            for number, item in enumerate(items, start=1):
                result |= _flat(item, f"{prefix}subset {number} " if key == "subsets" else f"{prefix}{key} {number} ")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], words: str) -> Iterator[str]:
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if old != new:
            yield words.format(name, _word(new), _word(old))


def _word(value: Any) -> str:
    return "not set" if value in (None, "") else str(value)


def _picture_changes(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    both = [key for key in now if key in before]
    groups = {
        "pictures added": [key for key in now if key not in before],
        "pictures removed": [key for key in before if key not in now],
        "pictures or masks changed": [key for key in both if before[key].split()[0] != now[key].split()[0]],
        "captions changed": [key for key in both if before[key].split()[1] != now[key].split()[1]],
    }
    for what, keys in groups.items():
        if keys:
            yield f"{what}: {len(keys)} ({first_names(keys)})"
