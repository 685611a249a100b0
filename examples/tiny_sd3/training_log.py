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


def stage_lines(folder: Path, name: str, model: str = "sd3_tiny") -> list[str]:
    """The same of a run of sd3_train.py, from its last state; seconds only for the end, of its last start.

    Args:
        folder: --output_dir.
        name: Of the stage.
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
        lines.append(f"{name},{start + len(part)},{sum(part) / len(part):.5f},{f'{seconds:.0f}' if is_last else ''}")
    return lines


def write_log(path: Path, lines: Sequence[str], plan: Plan) -> None:
    """Write everything into one file, with what the plan was."""
    stages = [
        f"# stage {stage.name}: {stage.num_steps} steps at most {stage.rate:g}, tokens of CLIP {stage.clip_length}, "
        f"of T5 {stage.t5_length}, seed {plan.seed + stage.seed}"
        for stage in plan.stages
    ]
    head = [
        f"# seed {plan.seed}, {plan.threads} threads, {plan.num_pictures} pictures, batches of {plan.batch}",
        f"# autoencoder: {plan.vae_steps} steps, then {plan.decoder_steps} of the decoder alone",
        *stages,
        "part,steps,loss,seconds",
    ]
    path.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8", newline="\n")
