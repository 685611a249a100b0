"""Settings that save memory of the device, in the order in which they are tried.

First those that change no result, by the time that they cost: caches cost none, recomputing activations a third of a
step at most, swapping blocks what the way to the host is slower than computing. Last what rounds the weights. What
the user gave is never changed, and an optimizer is never exchanged for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.training.base_format import check_base_format

if TYPE_CHECKING:
    from library.training.trainer import Trainer

_ROUNDED = "int8"  # of the two in 8 bits the nearer one


@dataclass(frozen=True)
class Rung:
    """A setting.

    Attributes:
        values: {option: value}, or several such, of which the first that suffices is taken, or the last.
    """

    values: tuple[Mapping[str, Any], ...]


def with_values(options: Any, values: Mapping[str, Any]) -> Any:
    """Options of a script with other values of some. All checks are made anew.

    Raises:
        OptionError: The values do not go together with the others.
    """
    changed = {}
    for group_field in fields(options):
        group = getattr(options, group_field.name)
        own = {
            name: value
            for name, value in values.items()
            if hasattr(group, "__dataclass_fields__") and name in group.__dataclass_fields__
        }
        if own:
            changed[group_field.name] = replace(group, **own)
    return replace(options, **changed)


def ladder(trainer: Trainer, depth: int) -> Iterator[Rung]:
    """What may be tried for a run, in this order.

    Args:
        trainer: Planned; its own options say what was given.
        depth: Blocks of the denoiser.
    """
    options = trainer.options
    free = {name for group in options.groups() for name in group.__dataclass_fields__} - set(options.given)
    may_cache_latents = not options.cache.caches_latents and _is_allowed(trainer.plan.refuse_pixel_conflicts)
    if "cache_latents" in free and may_cache_latents:
        yield Rung(({"cache_latents": True},))
    if "cache_text_encoder_outputs" in free and _may_cache_texts(trainer):
        yield Rung(({"cache_text_encoder_outputs": True},))
    for name in trainer.family.encoder_names:
        if (option := f"{name}_device") in free and name not in trainer.trained_encoders():
            yield Rung(({option: "cpu"},))
    every = "gradient_checkpointing_every_n_blocks"
    if "gradient_checkpointing" in free and not options.training.recomputes:
        often = ({"gradient_checkpointing": True, every: 2}, {"gradient_checkpointing": True, every: 1})
        yield Rung(often if every in free else ({"gradient_checkpointing": True},))
    swaps = _may_swap(trainer, free)
    if swaps:
        yield swap_rung(depth)
    if "base_weights_dtype" in free and _may_round(trainer):
        narrow = {"base_weights_dtype": _ROUNDED}
        yield Rung(tuple({**narrow, "blocks_to_swap": n} for n in _numbers(depth)) if swaps else (narrow,))


def swap_rung(depth: int) -> Rung:
    """The least number of blocks to swap that suffices."""
    return Rung(tuple({"blocks_to_swap": number} for number in _numbers(depth)))


def _numbers(depth: int) -> Iterator[int | None]:
    yield None
    yield from range(1, depth + 1)


def _may_cache_texts(trainer: Trainer) -> bool:
    """Whether there is an encoder to cache, and options, family and data allow it."""
    family, options, caches = trainer.family, trainer.options, {"cache_text_encoder_outputs": True}
    present = [name for name in family.encoder_names if family.has_encoder(trainer.files, name)]
    if options.cache.caches_text or not set(present) - set(trainer.trained_encoders()):
        return False

    def refuse() -> None:
        chosen = with_values(options, caches)
        if hasattr(options, "network"):
            family.check_network_options(chosen, getattr(trainer, "network_args", {}))
        trainer.plan.refuse_caption_conflicts()

    return _is_allowed(refuse)


def _may_swap(trainer: Trainer, free: set[str]) -> bool:
    options = trainer.options
    is_open = "blocks_to_swap" in free or options.memory.blocks_to_swap == "auto"
    is_possible = trainer.sharding is None and not options.training.cpu_offload_checkpointing
    return is_open and is_possible and (options.freezes_model or bool(options.optimizer.steps_in_backward))


def _may_round(trainer: Trainer) -> bool:
    """Whether the weights of a frozen denoiser may be in fewer bits."""
    options = trainer.options
    if options.memory.weights_format is not None or not options.freezes_model:
        return False
    memory, arguments = replace(options.memory, base_weights_dtype=_ROUNDED), getattr(trainer, "network_args", {})
    module = options.network.network_module if hasattr(options, "network") else None
    return _is_allowed(lambda: check_base_format(memory, module, arguments))


def _is_allowed(refuse: Callable[[], None]) -> bool:
    try:
        refuse()
    except OptionError:
        return False
    return True


def advice(options: Any) -> str:
    """What else saves memory, and is not chosen without being asked for."""
    optimizer, found = options.optimizer, ["a smaller resolution or batch"]
    if not options.freezes_model:
        if not options.precision.full_bf16:
            found.append("--full_bf16 with --mixed_precision bf16")
        if optimizer.optimizer_name.lower() not in ("adamw8bit", "adafactor"):
            found.append("--optimizer_type AdamW8bit or Adafactor")
        if not optimizer.steps_in_backward:
            found.append("--fused_backward_pass, which also lets blocks be swapped")
    elif options.memory.weights_format in (None, "fp8", "int8"):
        found.append("--base_weights_dtype nf4")
    if options.precision.mixed_precision == "no":
        found.append("--mixed_precision bf16")
    return ", ".join(found)
