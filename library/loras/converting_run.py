"""The run of networks/convert_lora.py: read, write in another form, check what programs make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import refuse_overflow
from library.device import precision_dtype
from library.errors import CheckpointError, OptionError
from library.families.lora_layout import ADAPTER_NOTE
from library.log import get_logger
from library.loras.converting import Converted, Form, converted
from library.loras.lora_family import DIFFUSERS, FAMILY_TITLES, other_adapter
from library.loras.lora_file import LoraFile, check_family, check_target, read_lora, refuse_non_finite, write_lora
from library.loras.options.converting import ConversionOptions
from library.writable_folders import check_folders

if TYPE_CHECKING:
    from library.families.lora_layout import LoraPair

WRONG = 2
_SOURCE, _REFERENCE = "SOURCE", "--reference"

logger = get_logger(__name__)


def convert_file(options: ConversionOptions) -> int:
    """Convert a file, check one, or both; the exit code.

    Raises:
        UserError: The file cannot be used, or nothing can be written.
    """
    assert options.source is not None, "it is required"
    target = Path(options.target) if options.target else None
    _refuse_other_kinds(options.source)
    if target is not None:
        _check_target(target, options)
    lora = _read(options.source, _SOURCE, options.family)
    if target is None:
        modules = None
        if options.reference is not None:
            reference = _read(options.reference, _REFERENCE, lora.family)
            check_family(reference, (lora.family,), _REFERENCE, "Give the file that the source was made from.")
            modules = _comparable(reference.modules, lora)
        return report_on(options.source, lora.family, modules)
    result = converted(lora, _form(options))
    _refuse_same_form(lora, result, options)
    _refuse_overflow(target, result)
    write_lora(target, result.tensors, result.metadata)
    if result.rounded:
        logger.warning(
            "%d modules have numbers that the number format of the source cannot hold in full at their strength, up to "
            "%.0e of a factor: the way back will differ by so much. --save_precision float keeps all.",
            *(len(result.rounded), max(result.rounded.values())),
        )
    if result.dropped:
        logger.warning("%d modules of T5 are left out: diffusers cannot load them.", len(result.dropped))
    logger.info("%s: %d tensors written, a LoRA for %s.", target, len(result.tensors), FAMILY_TITLES[lora.family])
    return report_on(target, lora.family, result.modules) if options.verify_export else 0


def report_on(path: Path, family: str, reference: Mapping[str, LoraPair] | None, *, depth: int | None = None) -> int:
    """Read a file back, tell in the log what each program makes of it, and give the exit code.

    Args:
        path: The file.
        family: "sd", "sdxl" or "sd3".
        reference: What it is to do, see `verify`.
        depth: Likewise.
    """
    from library.loras.verifying import verify
    from library.pickled import read_any_header, read_any_tensors

    header = read_any_header(path, str(path))
    report = verify(read_any_tensors(header), header.metadata, family=family, reference=reference, depth=depth)
    logger.info("%s: a LoRA for %s, form: %s", path, FAMILY_TITLES[family], report.form)
    for verdict in report.verdicts:
        (logger.error if verdict.is_fault else logger.info)("%s", verdict.line())
    for doubt in report.doubts:
        logger.warning("%s: %s", path, doubt)
    if report.faults:
        names = ", ".join(verdict.program for verdict in report.faults)
        logger.error(
            "%s: the check has failed: %s would not do what the LoRA does here. Do not use it there.", path, names
        )
        return WRONG
    return 0


def _refuse_other_kinds(path: Path) -> None:
    from library.pickled import read_any_header

    if (other := other_adapter(read_any_header(path, _SOURCE).shapes())) is not None:
        raise CheckpointError(
            f"{_SOURCE}: {path} is {other}, whose parts other layouts have no place for. Merge it into a model, and "
            "take a LoRA from the result with networks/extract_lora_from_models.py."
        )


def _check_target(target: Path, options: ConversionOptions) -> None:
    assert options.source is not None, "it is required"
    check_target(target, {_SOURCE: options.source}, "TARGET")
    if target.is_dir():
        raise OptionError(f"TARGET {target} is a folder. Give the name of a file in it.")
    if target.exists() and not options.overwrite:
        raise OptionError(f"TARGET {target} is there already. Give another name, or --overwrite.")
    check_folders([target])


def _read(path: Path, option: str, family: str | None) -> LoraFile:
    lora = read_lora(path, option, family)
    if family is not None and option == _SOURCE:
        check_family(lora, (family,), option, "Leave --family out.")
    refuse_non_finite(lora, option)
    if family is None and len(lora.families) > 1:
        titles = " or ".join(FAMILY_TITLES[name] for name in lora.families)
        logger.warning("%s %s could be for %s: it is taken for the first; --family says it.", option, path, titles)
    return lora


def _comparable(modules: Mapping[str, LoraPair], lora: LoraFile) -> dict[str, LoraPair]:
    """Without modules of T5 where the file cannot have them."""
    is_without = lora.layout == DIFFUSERS and not any(name.startswith("lora_te3_") for name in lora.modules)
    return {name: pair for name, pair in modules.items() if not (is_without and name.startswith("lora_te3_"))}


def _form(options: ConversionOptions) -> Form:
    dtype = precision_dtype(options.save_precision) if options.save_precision else None
    return Form(str(options.to), options.naming, options.fold_alpha, dtype)


def _refuse_overflow(target: Path, result: Converted) -> None:
    for name, tensor in result.tensors.items():
        refuse_overflow(f"{target}: {name}", tensor)


def _refuse_same_form(lora: LoraFile, result: Converted, options: ConversionOptions) -> None:
    """A file that would hold the same under the same names is a copy, and was not meant. A strength that the metadata
    has is moved into the factors, which is no copy."""
    from library.pickled import read_any_header

    known = read_any_header(lora.path, _SOURCE).tensors
    is_noted = ADAPTER_NOTE in lora.metadata and not any(key.endswith(".alpha") for key in known)
    if options.save_precision is None and not is_noted and known.keys() == result.tensors.keys():
        raise CheckpointError(
            f"{_SOURCE}: {lora.path} has this form already. Give another --to, --fold_alpha or --save_precision."
        )
