"""What a run writes to its output folder: model files and states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from library.training.forecast.counts import TrainedNumbers
from library.training.forecast.figures import Disk

if TYPE_CHECKING:
    from library.training.trainer import Trainer


def disk_of(trainer: Trainer, trained: TrainedNumbers) -> Disk:
    """Of one save, and of all that are there at the same time."""
    from library.training.checks import save_bytes

    outlines = [torch.empty(shape, dtype=trained.dtype, device="meta") for shape in trained.shapes]
    one, most = save_bytes(
        trainer.folder,
        trainer.saves,
        outlines,
        num_averages=int(trainer.options.ema.ema_decay is not None),
        model_bytes=_model_bytes(trainer, trained),
    )
    return Disk(one, most)


def _model_bytes(trainer: Trainer, trained: TrainedNumbers) -> int | None:
    """Of a whole model; None where what trains is all that is saved."""
    if trainer.options.freezes_model:
        return None
    family, files = trainer.family, trainer.files
    encoders = [name for name in trainer.trained_encoders() if family.has_encoder(files, name)]
    return family.model_bytes(
        files,
        denoiser=family.denoiser_outline(files).to(trained.dtype).state_dict(),
        encoders={name: family.encoder_outline(files, name, trained.dtype).state_dict() for name in encoders},
        layout=trainer.options.layout,
        bundled=trainer.bundled_encoders(),  # type: ignore[attr-defined]
        dtype=trainer.save_dtype(),
    )
