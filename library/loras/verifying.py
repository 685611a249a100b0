"""Whether other programs make of a LoRA file what it was trained for.

Each layer that the file changes gets random inputs. What comes out more, with the strength and the rows that a program
takes from the file, is compared with what comes out more here. Inputs are as wide as the layer, so no weight of a model
is needed: LoRA is added to whatever the weight gives.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.families.lora_layout import ADAPTER_NOTE, LoraPair
from library.loras.alpha_notes import KEY
from library.loras.consumers.layers import layers_of
from library.loras.consumers.programs import READERS, TO_MOVE_A_NOTE, Known, advice_for, form_of
from library.loras.consumers.rules import (
    Content,
    Place,
    Reading,
    diffusers_names,
    encoder_names,
    projection_names,
    published_names,
)
from library.loras.lora_family import KOHYA, layout_of
from library.loras.lora_file import to_kohya_modules

if TYPE_CHECKING:
    from torch import Tensor

Effects = Mapping[str, "Tensor"]
"""{layer: what it gives more for fixed random inputs, [rows, inputs]}"""

_UNKNOWN = "?"  # begins the place of a module that no model of the family has
_NUM_INPUTS = 4
_EXACT = 1e-5  # float32, in another order of operations
_ROUNDED = {2: 2e-2, 1: 0.2}  # {bytes of a number: what rounding it may change}
_FLOOR = 1e-3  # of the greatest effect: layers that do less are compared with this much


@dataclass(frozen=True)
class Verdict:
    """What a program makes of a file.

    Attributes:
        program: Its name.
        is_expected: It is known to read such files.
        num_layers: That it changes, of `num_all`.
        num_all: That the file is to change.
        error: The greatest difference of a layer, relative to what the LoRA does there.
        worst: That layer.
        allowed: How much `error` may be.
        refusal: Why it takes nothing.
        advice: Options of the converter that help; None where nothing does.
        has_effect: It changes anything at all, be it what it is not to change.
    """

    program: str
    is_expected: bool
    num_layers: int
    num_all: int
    error: float
    worst: str
    allowed: float
    refusal: str | None = None
    advice: str | None = None
    has_effect: bool = True

    @property
    def is_right(self) -> bool:
        """It does all of what the file is to do."""
        return self.refusal is None and self.num_layers == self.num_all and self.error <= self.allowed

    @property
    def is_fault(self) -> bool:
        """It does not, although it reads such files; or does something else with it."""
        return not self.is_right and (self.is_expected or (self.has_effect and not self.error <= self.allowed))

    def line(self) -> str:
        """For people."""
        told = f"max error {self.error:.0e}"
        if self.is_right:
            return f"{self.program}: all {self.num_all} modules, {told}"
        how = f"; {self.advice} helps" if self.advice else ""
        if self.refusal is not None:
            return f"{self.program}: {self.refusal}{how}"
        if not self.has_effect:
            return f"{self.program}: ignores the file{how}"
        if math.isinf(self.error):
            return f"{self.program}: WRONG in {self.worst}, where nothing or another size is wanted{how}"
        if not self.error <= self.allowed:
            limit = f"{self.allowed:.0e} is allowed"
            return f"{self.program}: WRONG in {self.worst}, {told} of what it does ({limit}){how}"
        return f"{self.program}: {self.num_layers} of {self.num_all} modules, {told}{how}"


@dataclass(frozen=True)
class Report:
    """What all programs make of a file.

    Attributes:
        form: What the form of the file is called.
        verdicts: One for each program.
        doubts: What seems odd in the file itself, as sentences.
    """

    form: str
    verdicts: tuple[Verdict, ...]
    doubts: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Verdict, ...]:
        """Programs that read such files, and do something else with this one."""
        return tuple(verdict for verdict in self.verdicts if verdict.is_fault)


def verify(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    family: str,
    reference: Mapping[str, LoraPair] | None = None,
    depth: int | None = None,
) -> Report:
    """Compare what each program makes of a file with what it is to do.

    Args:
        tensors: Content of the file.
        metadata: Of its header.
        family: "sd", "sdxl" or "sd3".
        reference: What it is to do: {name as kohya files have it: factors}, of its source or of the network that was
            trained; None takes the file as it is read here, which shows wrong places and no lost strength.
        depth: Number of blocks of an MMDiT; None takes what the file tells.

    Raises:
        CheckpointError: The file is no LoRA of this family.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    content = Content(tensors, metadata, layers_of(family, shapes, depth))
    modules = to_kohya_modules(tensors, family, layout_of(shapes), metadata)
    wanted = effects(_own_pairs(modules if reference is None else reference, content))
    allowed = _EXACT if reference is None else _allowed(tensors.values())
    form = form_of(content)
    verdicts = tuple(
        _verdict(program, read(content), wanted, allowed, form=form, content=content)
        for program, read in READERS.items()
    )
    doubts = [*_doubts(content, wanted)]
    if reference is None and layout_of(shapes) == KOHYA:  # other layouts have alpha in the factors, or a note of theirs
        doubts += _doubts_of_alpha(content)
    return Report(form.title, verdicts, tuple(doubts))


def effects(pairs: Iterable[tuple[Place, LoraPair]]) -> dict[str, Tensor]:
    """See `Effects`. Pairs that meet in a layer add up.

    Raises:
        RuntimeError: Factors that do not fit each other, or places that do not.
    """
    given: dict[str, Tensor] = {}
    for place, pair in pairs:
        down, up = (factor.flatten(1).float() for factor in (pair.down, pair.up))
        part = up @ (down @ _inputs(place.layer, down.shape[1])) * pair.scale
        if place.is_swapped:
            part = part.roll(part.shape[0] // 2, 0)
        whole = given.setdefault(place.layer, part.new_zeros(part.shape[0] * place.number, _NUM_INPUTS))
        whole[place.index * part.shape[0] : (place.index + 1) * part.shape[0]] += part
    return given


def _inputs(layer: str, width: int) -> Tensor:
    import torch

    draw = torch.Generator().manual_seed(zlib.crc32(layer.encode()))
    return torch.randn(width, _NUM_INPUTS, generator=draw)


def _own_pairs(modules: Mapping[str, LoraPair], content: Content) -> list[tuple[Place, LoraPair]]:
    layers = content.layers
    known = diffusers_names(layers, "lora_unet_") if layers.family != "sd3" else {}
    known |= published_names(layers) | encoder_names(layers) | projection_names(layers)
    return [(known.get(name, Place(_UNKNOWN + name)), pair) for name, pair in modules.items()]


def _verdict(
    program: str, reading: Reading, wanted: Effects, allowed: float, *, form: Known, content: Content
) -> Verdict:
    refusal, found = reading.refusal, {}
    try:
        found = effects(reading.pairs)
    except RuntimeError:
        refusal = "cannot use factors that do not fit the layer"
    error, worst = _worst(found, wanted)
    num_layers = len(found.keys() & wanted.keys())
    is_expected, family = program in form.readers, content.layers.family
    advice = advice_for(program, family) if reading.has_way_out and not is_expected else None
    if ADAPTER_NOTE in content.metadata and advice is None:
        advice = TO_MOVE_A_NOTE[family]
    return Verdict(
        program, is_expected, num_layers, len(wanted), error, worst, allowed, refusal, advice, has_effect=bool(found)
    )


def _worst(found: Effects, wanted: Effects) -> tuple[float, str]:
    """The greatest relative difference among the layers that are changed, and where it is."""
    floor = _FLOOR * max((float(effect.abs().max()) for effect in wanted.values()), default=0.0)
    errors = {layer: _difference(effect, wanted.get(layer), floor) for layer, effect in found.items()}
    worst = max(errors, key=lambda layer: errors[layer], default="")
    return errors.get(worst, 0.0), worst


def _difference(found: Tensor, wanted: Tensor | None, floor: float) -> float:
    if wanted is None or wanted.shape != found.shape:
        return math.inf
    difference = float((found - wanted).abs().max())
    if not math.isfinite(difference):
        return math.inf
    return difference / max(float(wanted.abs().max()), floor) if difference else 0.0


def _allowed(tensors: Iterable[Tensor]) -> float:
    """What rounding may change, for the narrowest of the tensors."""
    narrowest = min(tensor.element_size() for tensor in tensors if tensor.dim())
    return _ROUNDED.get(narrowest, _EXACT)


def _doubts(content: Content, wanted: Effects) -> Iterable[str]:
    if not any(bool(effect.any()) for effect in wanted.values()):
        yield "the file changes nothing: every `up` factor is zero, as before a training."
    if unknown := [layer.removeprefix(_UNKNOWN) for layer in wanted if layer.startswith(_UNKNOWN)]:
        yield f"{len(unknown)} of its modules are no layers of such a model ({unknown[0]})."


def _doubts_of_alpha(content: Content) -> Iterable[str]:
    """No program reads what the trainer noted: it tells of an alpha that files of this layout have as a tensor."""
    alpha, rank = (content.metadata.get(f"ss_network_{name}") for name in ("alpha", "dim"))
    has_note = KEY in content.metadata or ADAPTER_NOTE in content.metadata
    if content.has_alpha() or has_note or None in (alpha, rank):
        return
    if _number(alpha) not in (_number(rank), None):
        yield (
            f"the metadata tells of alpha {alpha} at rank {rank}, the file has no alpha. If it was not folded into the "
            "factors its strength is wrong; compare it with the original (--reference)."
        )


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
