"""An SD3 / SD3.5 model put together out of its parts, or taken apart, tensor by tensor.

In one file the MMDiT has the prefix `model.diffusion_model.`, the VAE `first_stage_model.`, text encoders
`text_encoders.<name>.transformer.`. In a file of its own the MMDiT keeps its prefix, the other parts have none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import HASH_KEY, write_planned
from library.errors import CheckpointError, OptionError, UserError
from library.families.whole_model import FOR_SIDE_FILES, Plan
from library.log import get_logger
from library.model_files.options.precisions import dtype_of
from library.model_files.options.sd3_parts import JoinOptions, SplitOptions
from library.model_files.places import check_file, naming
from library.model_files.raw_parts import QUANTISATION, plan_raw_part, quantised_layers, with_prefix

if TYPE_CHECKING:
    import torch

    from library.checkpoint.weights import Part
    from library.families.sd3.checkpoint import Sd3Files

PREFIXES = {
    "dit": "model.diffusion_model.",
    "vae": "first_stage_model.",
    **{name: f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl")},
}
_FOLDERS = {"vae": "vae", "clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}

logger = get_logger(__name__)


def join_parts(options: JoinOptions) -> None:
    """Write the parts into one file. What the file of the MMDiT has inside comes along, unless another one is given.

    Raises:
        CheckpointError: A file cannot be used, is of another kind, or does not fit the MMDiT; all are named.
        OptionError: The target is also read.
        EnvironmentFault: There is no such device.
        OutputError: It cannot be written; what was at the target still is.
    """
    from library.device import check_device
    from library.families.sd3.checkpoint import inspect_files

    assert options.dit is not None  # the parser has made sure
    with naming("--dit"):
        files = inspect_files(
            options.dit,
            vae=options.vae,
            clip_l=options.clip_l,
            clip_g=options.clip_g,
            t5xxl=options.t5xxl,
            allow_pickle=options.allow_pickle,
        )
        files.check_complete()
    parts = _parts(files)
    check_file(options.output, _paths(parts.values()), "--output")
    dtype = dtype_of(options.save_precision)
    if dtype is not None:
        check_device(options.device, "--device")
    _tell_replaced(files, options)
    write_planned(options.output, plan_joined(parts, dtype, options.device), _joined_metadata(parts, dtype))
    missing = [name for name in PREFIXES if name not in parts]
    rest = f"; without {', '.join(missing)}" if missing else ""
    logger.info("%s is written, with %s%s.", options.output, ", ".join(parts), rest)


def plan_joined(parts: Mapping[str, Part], dtype: torch.dtype | None = None, device: str = "cpu") -> Plan:
    """What one file has of {name as in `PREFIXES`: part}; None for `dtype` keeps what each tensor has."""
    plans = {name: with_prefix(plan_raw_part(part, dtype, device), PREFIXES[name]) for name, part in parts.items()}
    return {key: tensor for plan in plans.values() for key, tensor in plan.items()}


def _parts(files: Sd3Files) -> dict[str, Part]:
    """{name as in `PREFIXES`: part} of those that are there."""
    found = {name: getattr(files, "denoiser" if name == "dit" else name) for name in PREFIXES}
    return {name: part for name, part in found.items() if part is not None}


def _paths(parts: Iterable[Part]) -> set[Path]:
    return {header.path for part in parts for header in part.source.headers}


def _tell_replaced(files: Sd3Files, options: JoinOptions) -> None:
    inside = files.denoiser.source.tensors
    for name, path in options.parts.items():
        is_bundled = any(key.startswith(PREFIXES[name]) for key in inside)
        if is_bundled or (options.dit is not None and (options.dit / _FOLDERS[name]).is_dir()):
            logger.warning("%s has a %s inside: --%s %s takes its place.", options.dit, name, name, path)


def _joined_metadata(parts: Mapping[str, Part], dtype: torch.dtype | None) -> dict[str, str]:
    """Those of the MMDiT, and of all parts which layers are quantised."""
    metadata = dict(parts["dit"].header.metadata)
    metadata.pop(QUANTISATION, None)
    layers = {
        PREFIXES[name] + layer: entry
        for name, part in parts.items()
        if dtype is None
        for layer, entry in quantised_layers(part).items()
    }
    return {**metadata, **_quantisation(layers)}


def _quantisation(layers: Mapping[str, object]) -> dict[str, str]:
    return {QUANTISATION: json.dumps({"format_version": "1.0", "layers": layers})} if layers else {}


def split_parts(options: SplitOptions, *, allow_pickle: bool = False) -> None:
    """Write every part of a file into a file of its own.

    Raises:
        CheckpointError: The file cannot be used, or has nothing but the MMDiT.
        OptionError: One of the files to write is there already.
        OutputError: One cannot be written; then none is.
    """
    from library.families.sd3.checkpoint import inspect_files

    source, folder = options.split, options.output_dir
    assert source is not None and folder is not None  # the parser has made sure
    with naming("--split"):
        files = inspect_files(source, allow_pickle=allow_pickle)
        files.check_complete()
    parts = _parts(files)
    if list(parts) == ["dit"]:
        raise CheckpointError(f"--split: {source} has nothing but the MMDiT inside, so there is nothing to take apart.")
    targets = {name: folder / f"{name}.safetensors" for name in parts}
    _refuse_taken(targets.values())
    _write_all(parts, targets)
    logger.info("%s has %s: written to %s.", source, ", ".join(parts), folder)


def _refuse_taken(targets: Iterable[Path]) -> None:
    targets = list(targets)
    if taken := [target for target in targets if target.exists()]:
        raise OptionError(f"--output_dir: {taken[0]} is there already. Give another folder, or move the file away.")
    check_file(targets[0], (), "--output_dir")


def _write_all(parts: Mapping[str, Part], targets: Mapping[str, Path]) -> None:
    """All files or none."""
    written: list[Path] = []
    try:
        for name, part in parts.items():
            plan, metadata = plan_raw_part(part, None), _own_metadata(name, part)
            write_planned(targets[name], with_prefix(plan, PREFIXES[name]) if name == "dit" else plan, metadata)
            written.append(targets[name])
    except (UserError, KeyboardInterrupt):
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _own_metadata(name: str, part: Part) -> dict[str, str]:
    """The MMDiT keeps what the file said; the others have what published ones have."""
    prefix = PREFIXES[name] if name == "dit" else ""
    layers = _quantisation({prefix + layer: entry for layer, entry in quantised_layers(part).items()})
    if name != "dit":
        return {**FOR_SIDE_FILES, **layers}
    kept = {key: value for key, value in part.header.metadata.items() if key != QUANTISATION}
    return {**kept, **({HASH_KEY: ""} if HASH_KEY in kept else {}), **layers}
