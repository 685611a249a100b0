"""The log of a build: what was trained for how many steps and how long, and how the losses fell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.tensorfile import read_header

if TYPE_CHECKING:
    from examples.tiny_sd3.build import Plan

_EVERY = 100  # steps in a line


def vae_lines(losses: Path) -> list[str]:
    """What the autoencoder's courses wrote: course, steps, mean loss since the line before, seconds so far."""
    return losses.read_text(encoding="utf-8").splitlines()


def model_lines(folder: Path, model: str) -> list[str]:
    """The same of sd3_train.py, from its last state; seconds only for the end, since its last start.

    Args:
        folder: --output_dir.
        model: --output_name.
    """
    state = json.loads((folder / f"{model}-state" / "train_state.json").read_text(encoding="utf-8"))
    losses: list[float] = state["losses"]
    metadata = read_header(folder / f"{model}-ema.safetensors").metadata
    seconds = float(metadata["ss_training_finished_at"]) - float(metadata["ss_training_started_at"])
    lines = []
    for start in range(0, len(losses), _EVERY):
        part = losses[start : start + _EVERY]
        is_last = start + _EVERY >= len(losses)
        lines.append(f"{model},{start + len(part)},{sum(part) / len(part):.5f},{f'{seconds:.0f}' if is_last else ''}")
    return lines


def write_log(path: Path, lines: Sequence[str], plan: Plan) -> None:
    """Write everything into one file, with what the plan was."""
    head = [
        f"# seed {plan.seed}, {plan.threads} threads, {plan.num_pictures} pictures",
        f"# autoencoder: {plan.vae_steps} steps, then {plan.decoder_steps} of the decoder alone",
        f"# model: {plan.steps} steps of {plan.batch} pictures, rate at most {plan.rate:g}, seed {plan.seed + 1}",
        "part,steps,loss,seconds",
    ]
    path.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8", newline="\n")
