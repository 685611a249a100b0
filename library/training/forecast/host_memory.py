"""Host memory of a run beside its process: what waits there, and what passes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from library.memory.swap_plan import swap_plan
from library.training.forecast.counts import Counts

WORKER = 120 * 2**20  # of a process that reads pictures, beside what it shares; measured, see docs/performance.md
_FLOAT = 4


@dataclass(frozen=True)
class HostMemory:
    """What a run with these options keeps in host memory.

    Attributes:
        counts: With the denoiser in the format that `options` ask for.
        options: Of the run, or such as might be chosen.
        caches: Bytes of latents and text states that are kept in memory only.
    """

    counts: Counts
    options: Any
    caches: int

    @property
    def is_on_cpu(self) -> bool:
        """The device is the host, so that what would go there from the device stays where it is."""
        return self.counts.device.type == "cpu"

    def training(self) -> int:
        """All the time while training."""
        return self._masters() + self.caches + self._average() + self._parked() + self._encoders()

    def saving(self, state_bytes: int) -> int:
        """For a moment, while what was trained is saved.

        Args:
            state_bytes: Of the optimizer.
        """
        trained, saving = self.counts.trained, self.options.saving
        has_state = saving.save_state or saving.save_state_on_train_end
        copies = trained.bytes + (state_bytes if has_state else 0)
        return 0 if self.is_on_cpu else copies

    def loading(self) -> int:
        """While the denoiser is read whose blocks will be swapped: all of it waits on the host first."""
        blocks = self.counts.block_bytes
        return sum(blocks) + max(blocks) if self._masters() else 0

    def _masters(self) -> int:
        """Swapped blocks, in page-locked memory."""
        memory, blocks = self.options.memory, self.counts.block_bytes
        if self.is_on_cpu or not isinstance(memory.blocks_to_swap, int) or not memory.blocks_to_swap:
            return 0
        return sum(blocks[index] for index in swap_plan(len(blocks), memory.blocks_to_swap).swapped)

    def _average(self) -> int:
        """What of an average is kept on the host; the weights that it replaces wait there, too."""
        ema, trained = self.options.ema, self.counts.trained
        if ema.ema_decay is None:
            return 0
        beside = trained.count if ema.ema_device == "cpu" else trained.in_swapped(self.options.memory.blocks_to_swap)
        return trained.bytes + (0 if self.is_on_cpu else _FLOAT * beside)

    def _parked(self) -> int:
        """The VAE, where only samples need it."""
        options = self.options
        if self.is_on_cpu or not options.sampling.is_on or not options.cache.caches_latents:
            return 0
        prompts = self.counts.trainer.prompts
        return self.counts.vae_weights if prompts else 0

    def _encoders(self) -> int:
        """Frozen text encoders that run on the CPU in every step."""
        counts, device, trained = self.counts, self.counts.device, self.counts.trainer.trained_encoders()
        if self.options.cache.caches_text or self.is_on_cpu:
            return 0
        names = [name for name in counts.family.encoder_names if counts.family.has_encoder(counts.files, name)]
        away = [n for n in names if n not in trained and counts.family.encoder_device(n, device).type != device.type]
        return sum(counts.encoder(name, counts.batch.number).total for name in away)


def process_bytes() -> int:
    """Of this process now: interpreter, torch and the other packages are loaded, and hardly anything else."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def worker_bytes(options: Any) -> int:
    """Of all processes that read pictures."""
    from library.data.cache.precompute import num_processors

    if options.cache.caches_latents and not options.cache.cache_latents_to_disk:
        return 0
    return WORKER * min(options.training.max_data_loader_n_workers, num_processors())
