"""Encoding prompts that were written while a training runs, where the encoders were only there to fill caches.

One encoder after the other is loaded, used and freed. Only the process that draws does this, so nothing in here waits
for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from library.data.cache import CacheEntry, DamagedEntry, TensorCache, of_encoders, prompt_entries
from library.data.problems import counted
from library.device import encoder_dtype, release_unused_memory
from library.errors import OutputError
from library.log import get_logger
from library.training.encoding.encoding_setup import EncodingSetup
from library.training.encoding.text_stage import TextStage

if TYPE_CHECKING:
    from torch import Tensor

    States = dict[str, Tensor]

logger = get_logger(__name__)


def text_origin(setup: EncodingSetup, names: Sequence[str]) -> tuple[str, str]:
    """What text states depend on, for cache headers: all of it, and of that the settings."""
    fields = {**setup.family.text_identity(setup.files, names, setup.dtype), "dtype": str(setup.dtype)}
    settings = {**setup.family.text_settings(setup.dtype), "dtype": str(setup.dtype)}
    return _in_one_line(fields), _in_one_line(settings)


def entries_of_prompts(
    setup: EncodingSetup, names: Sequence[str], prompts: Sequence[str], folder: Path | None
) -> list[CacheEntry]:
    """One cache entry for each prompt; without a folder they are in memory."""
    identity, settings = text_origin(setup, names)
    return prompt_entries(prompts, folder=folder, family=setup.family.name, identity=identity, settings=settings)


def encode_new_prompts(
    setup: EncodingSetup, names: Sequence[str], prompts: Sequence[str], folder: Path | None
) -> dict[str, States]:
    """The states of prompts by their text, from their cache files or from the encoders.

    Args:
        setup: Of the run.
        names: The encoders whose outputs are cached.
        prompts: Different texts.
        folder: Where their entries lie; None keeps nothing on the disk.

    Raises:
        CheckpointError: Weights or tokenizers are gone, or an encoder gives NaN.
    """
    entries = entries_of_prompts(setup, names, prompts, folder)
    cache = setup.cache_of(entries)
    states = _read(cache, dict(zip(prompts, entries, strict=True)), names)
    missing = [(text, entry) for text, entry in zip(prompts, entries, strict=True) if text not in states]
    if not missing:
        return states
    number = counted(len(missing), "new text")
    logger.info("sample prompts: encoding %s with %s, one after the other.", number, ", ".join(names))
    rows = _encoded(setup, names, [text for text, _ in missing])
    for (text, entry), row in zip(missing, rows, strict=True):
        _keep(cache, entry, row)
        states[text] = row
    return states


def _read(cache: TensorCache, entries: Mapping[str, CacheEntry], names: Sequence[str]) -> dict[str, States]:
    """The states of those prompts that have a valid file."""
    missing = cache.check()
    states = {}
    for text, entry in entries.items():
        if entry.id in missing:
            continue
        try:
            states[text] = of_encoders(cache.read(entry.id), names)
        except DamagedEntry as error:
            logger.warning("%s", error)
    return states


def _keep(cache: TensorCache, entry: CacheEntry, row: States) -> None:
    """Write the entry. Without a place for it the states are in memory, which is enough for this run."""
    try:
        cache.write(entry.id, row)
    except OutputError as error:
        logger.warning("the states of a new prompt are kept in memory only: %s", error)


def _encoded(setup: EncodingSetup, names: Sequence[str], texts: Sequence[str]) -> list[States]:
    """The states of each text, on the CPU, without batch axis."""
    rows: list[States] = [{} for _ in texts]
    for name in names:
        for row, own in zip(rows, _states_of(setup, name, texts), strict=True):
            row.update(own)
    return rows


def _states_of(setup: EncodingSetup, name: str, texts: Sequence[str]) -> list[States]:
    """What one encoder says; where there is no room for it beside the training, on the CPU."""
    try:
        return _run_encoder(setup, name, texts, setup.device, setup.dtype)
    except torch.OutOfMemoryError:
        logger.info("%s has no room on the device beside the training; it runs on the CPU, which takes longer.", name)
    finally:
        release_unused_memory(setup.device)
    cpu = torch.device("cpu")
    return _run_encoder(setup, name, texts, cpu, encoder_dtype(setup.dtype, cpu))


def _run_encoder(
    setup: EncodingSetup, name: str, texts: Sequence[str], device: torch.device, dtype: torch.dtype
) -> list[States]:
    family = setup.family
    tokenizers = family.load_tokenizers(setup.files, [name])
    encoders = family.load_text_encoders(setup.files, dtype, device, [name])
    stage = TextStage(family, device, encoders, tokenizers, frozen_dtype=setup.stored_dtype)
    rows: list[States] = []
    for start in range(0, len(texts), setup.batch_size):
        batch = texts[start : start + setup.batch_size]
        states = {key: state.cpu() for key, state in stage.encode(batch).items()}
        rows += [{key: state[i] for key, state in states.items()} for i in range(len(batch))]
    return rows


def _in_one_line(fields: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in fields.items())
