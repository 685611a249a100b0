"""The run of networks/extract_lora_from_models.py: two models are compared weight by weight, and a LoRA is written."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from library.checkpoint.metadata import tensor_hashes
from library.device import check_device, precision_dtype
from library.errors import CheckpointError, OptionError
from library.log import get_logger
from library.loras.extracting import Extracted, clamped_share, difference, extract, plan_of
from library.loras.extracting_places import DENOISER, SD3, ModelPlaces, find_places
from library.loras.lora_file import check_target, lora_tensors, write_lora
from library.loras.lora_metadata import SD2, SD2_V, lora_metadata
from library.loras.options.extracting import DifferenceOptions
from library.loras.retained import summary
from library.writable_folders import check_folders
from networks.targets import adapter_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.families.lora_layout import LoraPair
    from library.loras.extracting_places import Place

    _Pairs = Mapping[str, Mapping[str, tuple[Place, Place]]]

_FAMILIES = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "sd3": "sd3"}
_WORTH_TELLING = 0.01  # of the norm that cutting numbers down has changed

logger = get_logger(__name__)


@dataclass(frozen=True)
class _Reading:
    """How weights are read, see `difference`."""

    dtype: torch.dtype | None
    homes: tuple[str, str]
    device: str

    def difference(self, places: tuple[Place, Place]) -> Tensor | None:
        return difference(places, self.dtype, homes=self.homes, device=self.device)


def extract_file(options: DifferenceOptions) -> None:
    """Write the LoRA.

    Raises:
        UserError: A model cannot be used, they do not differ, or nothing can be written.
    """
    assert options.model_org is not None and options.model_tuned is not None and options.save_to is not None
    check_target(options.save_to, {"--model_org": options.model_org, "--model_tuned": options.model_tuned})
    reading = _reading(options)
    original = find_places(options.model_org, "--model_org", allow_pickle=options.allow_pickle)
    tuned = find_places(options.model_tuned, "--model_tuned", allow_pickle=options.allow_pickle)
    _check_family(options, original, tuned)
    check_folders([options.save_to])
    prefixes = _shared_parts(original, tuned)
    pairs = {prefix: _pairs(prefix, original, tuned) for prefix in prefixes}
    ranks = {
        (prefix, f"{plan.name}.weight"): plan.rank
        for prefix, planned in plan_of(original, options.dim, options.conv_dim).items()
        for plan in planned
    }
    left_out = _unchanged_encoders(pairs, ranks, reading=reading, least=options.min_diff)
    modules = _extract_all(options, pairs, ranks=ranks, reading=reading, left_out=left_out)
    if not modules:
        raise CheckpointError(
            f"--model_tuned {tuned.path} has no other weights than --model_org {original.path} where a LoRA could hold "
            "them, so nothing is written. Check the paths."
        )
    _tell(options, modules)
    _write(options, original.kind, {name: module.pair for name, module in modules.items()})


def _reading(options: DifferenceOptions) -> _Reading:
    given = {
        "--load_original_model_to": options.load_original_model_to or "cpu",
        "--load_tuned_model_to": options.load_tuned_model_to or "cpu",
        "--device": options.device or "cpu",
    }
    for option, device in given.items():
        check_device(device, option)
    original, tuned, device = given.values()
    dtype = None if options.load_precision is None else precision_dtype(options.load_precision)
    return _Reading(dtype, (original, tuned), device)


def _check_family(options: DifferenceOptions, original: ModelPlaces, tuned: ModelPlaces) -> None:
    for name, kind in (("v2", "sd2"), ("sdxl", "sdxl")):
        if getattr(options, name) and original.kind != kind:
            raise OptionError(f"--{name}: --model_org {original.path} is {original.title}. Leave out --{name}.")
    if original.kind != tuned.kind:
        raise CheckpointError(
            f"--model_org {original.path} is {original.title}, --model_tuned {tuned.path} is {tuned.title}. "
            "Give a model and what it was tuned to."
        )
    if options.v_parameterization and original.kind == SD3:
        raise OptionError(
            f"--v_parameterization: {original.path} is {original.title}, which predicts a flow. Leave it out."
        )


def _shared_parts(original: ModelPlaces, tuned: ModelPlaces) -> list[str]:
    """Prefixes of what both models have; a text encoder that only one of them has is told."""
    for prefix in sorted(original.parts.keys() ^ tuned.parts.keys()):
        where = original if prefix in original.parts else tuned
        logger.warning("only %s has the text encoder of %s, so it is not compared.", where.path, prefix)
    return [prefix for prefix in original.parts if prefix in tuned.parts]


def _pairs(prefix: str, original: ModelPlaces, tuned: ModelPlaces) -> dict[str, tuple[Place, Place]]:
    """{name of a tensor: where it is in both models}

    Raises:
        CheckpointError: A layer is not in both, or of another size.
    """
    ours, theirs = original.parts[prefix], tuned.parts[prefix]
    for name in sorted(ours.keys() ^ theirs.keys()):
        if name.endswith((".weight", ".bias")) and "text_projection" not in name:
            where = original if name in ours else tuned
            raise CheckpointError(f"only {where.path} has {name}. Give two models of the same make.")
    pairs = {name: (ours[name], theirs[name]) for name in ours if name in theirs}
    for name, (one, other) in pairs.items():
        if _size(one.shape) != _size(other.shape) and name != "pos_embed":
            raise CheckpointError(
                f"{name} is {_words(one.shape)} in --model_org {original.path} and {_words(other.shape)} in "
                f"--model_tuned {tuned.path}. Give two models of the same make."
            )
    return pairs


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape  # a linear layer may be written as a convolution of one pixel


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _unchanged_encoders(
    pairs: _Pairs, ranks: Mapping[tuple[str, str], int], *, reading: _Reading, least: float
) -> tuple[str, ...]:
    """The text encoders, if none of their weights that a LoRA can hold differs by more than `least`."""
    encoders = [prefix for prefix in pairs if prefix != DENOISER]
    greatest = 0.0
    for prefix in encoders:
        for name, places in pairs[prefix].items():
            delta = reading.difference(places) if (prefix, name) in ranks else None
            greatest = max(greatest, 0.0 if delta is None else float(delta.abs().max()))
            if greatest > least:
                return ()
    if greatest > 0:
        logger.info(
            "text encoders are left out: they differ by %.2g at most, which is not above --min_diff %g. Give "
            "--min_diff 0 for a LoRA of them too.",
            *(greatest, least),
        )
    return tuple(encoders)


def _extract_all(
    options: DifferenceOptions,
    pairs: _Pairs,
    *,
    ranks: Mapping[tuple[str, str], int],
    reading: _Reading,
    left_out: Collection[str],
) -> dict[str, Extracted]:
    modules: dict[str, Extracted] = {}
    out_of_reach: list[str] = []
    for prefix, name, places in tqdm(list(_flat(pairs)), "comparing weights", disable=None):
        if name == "pos_embed" and places[0].shape != places[1].shape:
            continue  # the same table of positions, of which the models know more or less
        if prefix in left_out and (prefix, name) in ranks:
            continue
        delta = reading.difference(places)
        if delta is None:
            continue
        if (prefix, name) not in ranks:
            out_of_reach.append(f"{prefix} {name}")
            continue
        module = adapter_name(prefix, name.removesuffix(".weight"))
        modules[module] = extract(module, delta, ranks[prefix, name], quantile=options.clamp_quantile)
    if out_of_reach:
        logger.warning(
            "%d tensors differ that this LoRA does not hold (norms, biases, embeddings%s), for instance %s.",
            *(len(out_of_reach), _advice(options), out_of_reach[0]),
        )
    return modules


def _advice(options: DifferenceOptions) -> str:
    return "" if options.conv_dim else "; layers outside of attention, which --conv_dim adds"


def _flat(pairs: _Pairs) -> Iterator[tuple[str, str, tuple[Place, Place]]]:
    return ((prefix, name, places) for prefix, part in pairs.items() for name, places in part.items())


def _tell(options: DifferenceOptions, modules: Mapping[str, Extracted]) -> None:
    if options.verbose:
        for module in modules.values():
            logger.info("%s", module.retained.line)
    logger.info("%s", summary([module.retained for module in modules.values()]))
    if (share := clamped_share(modules)) > _WORTH_TELLING:
        logger.warning(
            "--clamp_quantile %g has changed %.1f%% of the norm that was kept. Give --clamp_quantile 1 for a LoRA that "
            "is exact at its rank.",
            *(options.clamp_quantile, 100 * share),
        )


def _write(options: DifferenceOptions, kind: str, modules: Mapping[str, LoraPair]) -> None:
    assert options.save_to is not None
    dtype = precision_dtype(options.save_precision or "float")
    tensors = lora_tensors(modules, _FAMILIES[kind], dtype=dtype)
    write_lora(options.save_to, tensors, _metadata(options, kind, modules, tensors))
    size = options.save_to.stat().st_size / 2**20
    logger.info("%s: written, %d modules, %.2f MiB.", options.save_to, len(modules), size)


def _metadata(
    options: DifferenceOptions, kind: str, modules: Mapping[str, LoraPair], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    assert isinstance(options.save_to, Path)
    family = _FAMILIES[kind]
    data = lora_metadata(modules, sources=(), title=options.save_to.stem, family=family, tensors=tensors)
    data |= {"ss_network_dim": str(options.dim), "ss_network_alpha": str(float(options.dim))}
    if options.conv_dim is not None:
        data["ss_network_args"] = json.dumps({"conv_dim": options.conv_dim, "conv_alpha": float(options.conv_dim)})
    if options.v_parameterization:
        data |= {"ss_v_parameterization": "True", "modelspec.prediction_type": "v"}
        if kind == "sd2":
            data["modelspec.architecture"] = data["modelspec.architecture"].replace(SD2, SD2_V)
            data |= {"ss_base_model_version": "sd_v2_v", "modelspec.resolution": "768x768"}
    if options.no_metadata:
        data = {key: value for key, value in data.items() if not key.startswith("modelspec.")}
    model_hash, legacy_hash = tensor_hashes(tensors, data)
    return {**data, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
