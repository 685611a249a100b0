"""The run of networks/extract_lora_from_models.py: two models are compared weight by weight, and a LoRA is written."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from library.checkpoint.metadata import tensor_hashes
from library.device import check_device, precision_dtype
from library.errors import CheckpointError, OptionError
from library.log import get_logger
from library.loras.extracting import Extracted, clamped_share, difference, ends_of_sd3, extract, plan_of
from library.loras.extracting_places import DENOISER, SD3, ModelPlaces, find_places
from library.loras.lora_file import check_target, lora_tensors, write_lora
from library.loras.lora_metadata import SD2, SD2_V, lora_metadata
from library.loras.options.extracting import DifferenceOptions
from library.loras.retained import summary
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
    check_outside(options.save_to, {"--model_org": original, "--model_tuned": tuned})
    prefixes = _shared_parts(original, tuned)
    pairs = {prefix: _pairs(prefix, original, tuned) for prefix in prefixes}
    ranks = _ranks(original, options.dim, options.conv_dim)
    left_out = _unchanged_encoders(pairs, ranks, reading=reading, least=options.min_diff)
    modules, out_of_reach = _extract_all(options, pairs, ranks=ranks, reading=reading, left_out=left_out)
    _tell_out_of_reach(options, original, out_of_reach)
    if not modules:
        raise CheckpointError(
            f"--model_tuned {tuned.path} has no other weights than --model_org {original.path} where a LoRA could hold "
            "them, so nothing is written. Check the paths."
        )
    _tell(options, modules)
    _write(options, original, {name: module.pair for name, module in modules.items()})


def check_outside(target: Path, models: Mapping[str, ModelPlaces]) -> None:
    """Refuse a file to write that belongs to a model that is read.

    Args:
        target: The file to write.
        models: {option that names it: model}

    Raises:
        OptionError: It is a file of a model, or lies in its folder.
    """
    for option, model in models.items():
        if model.path.is_dir() and target.resolve().is_relative_to(model.path.resolve()):
            raise OptionError(f"--save_to {target} lies in the folder that is read ({option}). Give another place.")
        if target.exists() and (read := [file for file in model.files if target.samefile(file)]):
            raise OptionError(f"--save_to {target} is also read ({option}, {read[0]}). Give another name.")


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
    if original.is_in_fp8 != tuned.is_in_fp8:
        where = original if original.is_in_fp8 else tuned
        logger.warning(
            "%s is in fp8 and the other model is not, so the rounding counts as tuning. Give a file of it in fp16, "
            "bf16 or float if there is one.",
            where.path,
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


def _ranks(original: ModelPlaces, dim: int, conv_dim: int | None) -> dict[tuple[str, str], int]:
    """{(prefix, name of a weight): rank} of what gets a LoRA."""
    return {
        (prefix, f"{plan.name}.weight"): plan.rank
        for prefix, planned in plan_of(original, dim, conv_dim).items()
        for plan in planned
    }


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
) -> tuple[dict[str, Extracted], list[tuple[str, str]]]:
    """The LoRA, and (prefix, name) of what differs and is not in it."""
    modules: dict[str, Extracted] = {}
    out_of_reach: list[tuple[str, str]] = []
    for prefix, name, places in tqdm(list(_flat(pairs)), "comparing weights", disable=None):
        if name == "pos_embed" and places[0].shape != places[1].shape:
            continue  # the same table of positions, of which the models know more or less
        if prefix in left_out and (prefix, name) in ranks:
            continue
        delta = reading.difference(places)
        if delta is None:
            continue
        if (prefix, name) not in ranks:
            out_of_reach.append((prefix, name))
            continue
        module = adapter_name(prefix, name.removesuffix(".weight"))
        modules[module] = extract(module, delta, ranks[prefix, name], quantile=options.clamp_quantile)
    return modules, out_of_reach


def _tell_out_of_reach(options: DifferenceOptions, original: ModelPlaces, names: Sequence[tuple[str, str]]) -> None:
    """What differs that is not held: by this LoRA, or by none."""
    within = _ranks(original, options.dim, options.conv_dim or options.dim)
    for has_place, why in (
        (True, "Give --conv_dim to have them in it"),
        (False, "No LoRA of ours has norms, biases, embeddings, or the first and last layer of a U-Net"),
    ):
        if found := [name for name in names if (name in within) == has_place]:
            logger.warning(
                "%d tensors differ that this LoRA does not hold, for instance %s. %s.",
                *(len(found), " ".join(found[0]), why),
            )


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


def _write(options: DifferenceOptions, original: ModelPlaces, modules: Mapping[str, LoraPair]) -> None:
    assert options.save_to is not None
    dtype = precision_dtype(options.save_precision or "float")
    tensors = lora_tensors(modules, _FAMILIES[original.kind], dtype=dtype)
    write_lora(options.save_to, tensors, _metadata(options, original, modules, tensors))
    size = options.save_to.stat().st_size / 2**20
    logger.info("%s: written, %d modules, %.2f MiB.", options.save_to, len(modules), size)


def _metadata(
    options: DifferenceOptions, original: ModelPlaces, modules: Mapping[str, LoraPair], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    assert isinstance(options.save_to, Path)
    data = lora_metadata(
        modules,
        sources=(),
        title=options.save_to.stem,
        family=_FAMILIES[original.kind],
        tensors=tensors,
        architecture=original.architecture,
    )
    if options.conv_dim is not None:
        data["ss_network_args"] = json.dumps(_network_args(original, options.dim, options.conv_dim))
    if original.predicts_v if options.v_parameterization is None else options.v_parameterization:
        data |= {"ss_v_parameterization": "True", "modelspec.prediction_type": "v"}
        if original.kind == "sd2":
            data["modelspec.architecture"] = data["modelspec.architecture"].replace(SD2, SD2_V)
            data |= {"ss_base_model_version": "sd_v2_v", "modelspec.resolution": "768x768"}
    if options.no_metadata:
        data = {key: value for key, value in data.items() if not key.startswith("modelspec.")}
    model_hash, legacy_hash = tensor_hashes(tensors, data)
    return {**data, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}


def _network_args(original: ModelPlaces, dim: int, conv_dim: int) -> dict[str, str]:
    """What a training with the same modules is given."""
    if original.kind == SD3:
        return {"emb_dims": ",".join(map(str, ends_of_sd3(dim, conv_dim)))}
    return {"conv_dim": str(conv_dim), "conv_alpha": str(float(conv_dim))}
