"""Memory of the device in each phase of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from library.memory.swap_plan import SwapPlan, swap_plan
from library.records import Size
from library.training.encoding.encoders import text_batch_size
from library.training.forecast.batch_sizes import BatchSize
from library.training.forecast.counts import Counts
from library.training.forecast.fake_passes import BLOCK, EACH, Passes
from library.training.forecast.figures import GIB, SAMPLES, TRAINING, Phase
from library.training.forecast.optimizer_memory import Stepping, state_bytes, step_bytes
from library.training.forecast.segments import Segment, highest, highest_forward
from library.training.processes import EXCHANGE

OVERHEAD = 9 * GIB // 10  # assumed: CUDA's context, work space of its libraries, gaps that the allocator cannot use
HEAP = GIB // 16  # assumed on the CPU: what the allocator has got back and keeps, and buffers of kernels
_LOSS_COPIES = 8  # of the latents in float32: noise, noisy latents, target, prediction, differences
_FLOAT = 4


@dataclass(frozen=True)
class DeviceMemory:
    """Phases of a run with these options, from counts that hold for them.

    Attributes:
        counts: With the denoiser in the format that `options` ask for.
        options: Of the run, or such as might be chosen.
        num_processes: That train together.
        is_sharded: They share the weights that train.
        offloads: Shards lie in host memory.
    """

    counts: Counts
    options: Any
    num_processes: int
    is_sharded: bool
    offloads: bool

    def phases(self) -> Iterator[Phase]:
        """In their order."""
        cache = self.options.cache
        if cache.caches_latents:
            yield self._latents()
        if cache.caches_text:
            yield from self._texts()
        yield self._training()
        if self.options.sampling.is_on and self.counts.trainer.prompts:
            yield self._samples()

    @property
    def overhead(self) -> int:
        """Assumed."""
        return HEAP if self.is_on_cpu else OVERHEAD

    def _assumed(self) -> dict[str, int]:
        return {"allocator (assumed)" if self.is_on_cpu else "driver and libraries (assumed)": self.overhead}

    @property
    def is_on_cpu(self) -> bool:
        """The device is the host."""
        return self.counts.device.type == "cpu"

    # Caches

    def _latents(self) -> Phase:
        vae = self.counts.vae(self.counts.largest_picture, self.options.cache.vae_batch_size)
        parts = {"weights": vae.weights, "activations": vae.passing, **self._assumed()}
        return Phase("latents, by the VAE", sum(parts.values()), parts=_some(parts))

    def _texts(self) -> Iterator[Phase]:
        number = text_batch_size(self.options.cache, self.counts.trainer.plan)
        for name in self._present():
            if name in self.counts.trainer.trained_encoders():
                continue
            encoder = self.counts.encoder(name, number)
            parts = {"weights": encoder.weights, "activations": encoder.passing, **self._assumed()}
            is_here = self._is_beside(name)
            yield Phase(
                f"texts, by {name}",
                sum(parts.values()) if is_here else self.overhead,
                host=0 if is_here else encoder.total,
                parts=_some(parts) if is_here else {},
            )

    def _present(self) -> list[str]:
        family, files = self.counts.family, self.counts.files
        return [name for name in family.encoder_names if family.has_encoder(files, name)]

    def _is_beside(self, name: str) -> bool:
        """Whether a frozen text encoder runs where the denoiser does."""
        device = self.counts.device
        return self.counts.family.encoder_device(name, device).type == device.type

    # Training

    def _training(self) -> Phase:
        resting = self._resting(self.options.memory.blocks_to_swap)
        step, gradients = self._step_bytes, self._gradients
        passes = self._passes()
        most = max(passes + step, 0) if self._stepping else max(passes, gradients + step)
        parts = {**resting, "gradients and activations": most, **self._assumed()}
        return Phase(TRAINING, sum(parts.values()), parts=_some(parts))

    def _resting(self, swapped: int | str | None) -> dict[str, int]:
        """What is on the device all the time, {words: bytes}."""
        live, counts, cards = self._live, self.counts, self._cards
        weights = self._denoiser_weights(swapped)
        trained_encoders = sum(each.weights for each in self._trained_encoders.values())
        ema = self.options.ema
        parts = {
            "weights": weights + trained_encoders // cards,
            "encoders": sum(live.values()),
            "what trains": counts.trained.beside,
            "optimizer": self.state_bytes // cards,
            "average": _FLOAT * self._averaged // cards if ema.ema_decay is not None else 0,
        }
        if ema.ema_device == "cpu":
            parts.pop("average")
        if self.offloads:
            parts |= {"weights": 0, "optimizer": 0, "average": 0}
        return parts

    @property
    def _averaged(self) -> int:
        """Numbers whose average is on the device: that of a swapped weight lies beside it, in host memory."""
        trained = self.counts.trained
        return trained.count - (0 if self.is_on_cpu else trained.in_swapped(self.options.memory.blocks_to_swap))

    def _denoiser_weights(self, swapped: int | str | None) -> int:
        counts = self.counts
        if not isinstance(swapped, int) or not swapped or self.is_on_cpu:
            return (sum(counts.block_bytes) + counts.rest_bytes) // self._cards
        plan = swap_plan(len(counts.block_bytes), swapped, self.options.memory.swap_prefetch)
        return blocks_on_device(counts.block_bytes, plan) + counts.rest_bytes

    @property
    def _cards(self) -> int:
        return self.num_processes if self.is_sharded else 1

    @cached_property
    def _live(self) -> dict[str, int]:
        """Weights of frozen models that run in every step, on the device."""
        cache, trained = self.options.cache, self.counts.trainer.trained_encoders()
        names = [] if cache.caches_text else [name for name in self._present() if name not in trained]
        found = {n: self.counts.encoder(n, self.counts.batch.number).weights for n in names if self._is_beside(n)}
        if not cache.caches_latents:
            found["vae"] = self.counts.vae(*self.counts.batch).weights
        return found

    @cached_property
    def _trained_encoders(self) -> Any:
        recomputes = self.options.training.recomputes
        return self.counts.trained_encoders(recomputes=recomputes, is_freed=bool(self._stepping))

    @property
    def _stepping(self) -> str:
        """How the optimizer steps inside the backward pass."""
        optimizer = self.options.optimizer
        return BLOCK if optimizer.blockwise_fused_optimizers else EACH if optimizer.steps_in_backward else ""

    @property
    def optimizer(self) -> Stepping:
        """As the options ask for it."""
        chosen, precision = self.options.optimizer, self.options.precision
        is_half = precision.full_bf16 or precision.full_fp16
        return Stepping(
            chosen.optimizer_name,
            tuple(chosen.optimizer_args or ()),
            self.counts.trained.dtype,
            precision.bf16_rounding if is_half else None,
        )

    @cached_property
    def state_bytes(self) -> int:
        return state_bytes(self.counts.trained.shapes, self.optimizer)

    @cached_property
    def _step_bytes(self) -> int:
        """For a moment, while the optimizer steps."""
        shapes = self.counts.trained.shapes
        return step_bytes(shapes, self.optimizer, is_alone=self._stepping == EACH) // self._cards

    @property
    def _gradients(self) -> int:
        """All, after the backward pass, with what sharing them takes."""
        if self._stepping:
            return 0
        trained = self.counts.trained
        shared = min(trained.bytes, EXCHANGE * trained.dtype.itemsize) if self.num_processes > 1 else 0
        return trained.bytes // self._cards + (0 if self.is_sharded else shared)

    def _passes(self) -> int:
        """The most of both passes, gradients included."""
        counts, options = self.counts, self.options
        fixed = counts.input_bytes() + _LOSS_COPIES * self._latent_bytes
        has_gradients = options.training.gradient_accumulation_steps > 1
        segments = [*self._encoder_segments(), *self._denoiser_segments()]
        most = highest(segments, has_gradients=has_gradients)
        if self.is_sharded:
            most = self._sharded_passes()
        return fixed + max(most, self._encoding())

    @property
    def _latent_bytes(self) -> int:
        family, (size, number) = self.counts.family, self.counts.batch
        cells = (size.width // family.pixels_per_latent) * (size.height // family.pixels_per_latent)
        return number * family.latent_channels * cells * _FLOAT

    def _encoding(self) -> int:
        """While frozen models encode the batch, before the denoiser runs."""
        cache, trained = self.options.cache, self.counts.trainer.trained_encoders()
        size, number = self.counts.batch
        names = [] if cache.caches_text else [name for name in self._present() if name not in trained]
        passing = [self.counts.encoder(name, number).passing for name in names if self._is_beside(name)]
        if not cache.caches_latents:
            passing.append(self.counts.vae(size, number).passing)
        pictures = 0 if cache.caches_latents else 3 * size.width * size.height * number * _FLOAT
        return max(passing, default=0) + pictures

    def _encoder_segments(self) -> list[Segment]:
        return [
            Segment(each.kept, each.kept, each.gradients - each.kept, each.peak - each.kept, each.gradients)
            for each in self._trained_encoders.values()
        ]

    def _denoiser_segments(self) -> list[Segment]:
        training = self.options.training
        every = training.gradient_checkpointing_every_n_blocks
        if not training.recomputes:
            return list(self.counts.denoiser(Passes(stepping=self._stepping)).segments)
        again = self.counts.denoiser(Passes(stepping=self._stepping, recomputes=True))
        plain = again if every == 1 else self.counts.denoiser(Passes(stepping=self._stepping))
        blocks = [a if i % every == 0 else p for i, (p, a) in enumerate(zip(plain.blocks, again.blocks, strict=True))]
        if training.cpu_offload_checkpointing and not self.is_on_cpu:
            blocks = [_offloaded(block) if i % every == 0 else block for i, block in enumerate(blocks)]
        return [again.head, *blocks, again.tail]

    def _sharded_passes(self) -> int:
        """Two blocks as a whole (one in use, one on its way) come on top of what is spread over the cards.

        A whole block has weights and gradients in the precision of computing, and gradients in float32 while they are
        summed up over the cards.
        """
        counts = self.counts
        passes = Passes(stepping=EACH, recomputes=self.options.training.recomputes)
        activations = highest(counts.denoiser(passes).segments)
        wide = counts.formats.denoiser.itemsize
        numbers = (2 * max(counts.block_bytes) + counts.rest_bytes) // wide
        narrow = counts.formats.autocast.itemsize if counts.formats.autocast else wide
        return counts.trained.bytes // self._cards + numbers * (2 * narrow + _FLOAT) + activations

    # Samples

    def _samples(self) -> Phase:
        memory = self.options.memory
        swapped = memory.blocks_to_swap if memory.sample_blocks_to_swap is None else memory.sample_blocks_to_swap
        resting = self._resting(swapped)
        prompts = {(Size(p.width, p.height), len(p.texts)) for p in self.counts.trainer.prompts}
        passing = max(self._drawing(size, number) for size, number in prompts)
        parts = {**resting, "activations": passing, **self._assumed()}
        return Phase(SAMPLES, sum(parts.values()), parts=_some(parts))

    def _drawing(self, size: Size, number: int) -> int:
        """Of the denoiser, then of the VAE."""
        counts = self.counts
        passes = counts.denoiser(Passes(has_backward=False), BatchSize(size, number))
        vae = counts.drawing_vae(size)
        return max(highest_forward(passes.segments), vae.passing if "vae" in self._live else vae.total)


def blocks_on_device(sizes: Sequence[int], plan: SwapPlan) -> int:
    """Bytes of the blocks that stay, and of the buffers that the others take turns in."""
    gone = [sizes[index] for index in plan.swapped]
    return sum(sizes) - sum(gone) + sum(plan.buffer_sizes(gone))


def _offloaded(block: Segment) -> Segment:
    """Its inputs wait in host memory; in the backward pass they are back, and those of the block before, too."""
    gone = max(block.kept, 0)
    return Segment(
        block.kept - gone,
        block.forward_peak,
        block.backward_change + gone,
        block.backward_peak + 2 * gone,
        block.gradients,
    )


def _some(parts: dict[str, int]) -> dict[str, int]:
    return {words: number for words, number in parts.items() if number}
