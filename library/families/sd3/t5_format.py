"""T5-XXL is larger than everything else together: the formats it can be kept in, and the devices it can run on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from library.device import check_device, encoder_dtype
from library.errors import EnvironmentFault, OptionError
from library.families.sd3.options import EIGHT_BITS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.checkpoint.weights import Part

_DEVICE, _DTYPE = "--t5xxl_device", "--t5xxl_dtype"


@dataclass(frozen=True)
class T5Format:
    """What T5's weights are kept in.

    Attributes:
        dtype: Of its arithmetic, and of all weights unless `bits` is given.
        bits: "int8" or "fp8" for the weights of linear layers.
    """

    dtype: torch.dtype
    bits: str | None = None

    @classmethod
    def of(cls, asked: str | None, dtype: torch.dtype) -> T5Format:
        """What `--t5xxl_dtype` means where the other encoders are in `dtype`."""
        import torch

        if asked is None:
            return cls(dtype)
        if asked in EIGHT_BITS:
            return cls(dtype, EIGHT_BITS[asked])
        return cls({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[asked])

    def on(self, device: torch.device) -> T5Format:
        """The nearest that a device is quick in."""
        return replace(self, dtype=encoder_dtype(self.dtype, device))

    @property
    def name(self) -> str:
        """As cache headers have it."""
        return self.bits or str(self.dtype)


def t5_device(asked: str | None, device: torch.device) -> torch.device:
    """Where T5 goes. A `device` that is the CPU goes before the option: there is no room elsewhere."""
    import torch

    return device if asked is None or device.type == "cpu" else torch.device(asked)


def check_place(asked: str | None, form: str | None, device: torch.device) -> None:
    """See whether T5 can run where it is asked to.

    Args:
        asked: `--t5xxl_device`.
        form: `--t5xxl_dtype`.
        device: Of the denoiser.

    Raises:
        EnvironmentFault: There is no such device, or it does not know the format.
    """
    if asked is not None:
        check_device(asked, _DEVICE)
        if device.type == "cpu" and asked != "cpu":
            raise EnvironmentFault(f"{_DEVICE} {asked}: this run is on the CPU, and T5 with it. Leave the option out.")
    if EIGHT_BITS.get(form or "") == "fp8" and t5_device(asked, device).type == "mps":
        raise EnvironmentFault(f"{_DTYPE} {form}: this device does not know fp8. Use int8.")


def refuse_changes(asked: str | None, form: str | None, why: str) -> None:
    """Refuse the options of a T5 that is only read.

    Args:
        asked: `--t5xxl_device`.
        form: `--t5xxl_dtype`.
        why: Its weights change, as the rest of a sentence that begins with "T5".

    Raises:
        OptionError: One is given.
    """
    if form is not None:
        what = (
            "8 bits have no room for small changes" if form in EIGHT_BITS else "the option is for one that is read only"
        )
        raise OptionError(f"{_DTYPE} {form}: T5 {why}, and {what}. Leave one of them out.")
    if asked is not None:
        raise OptionError(f"{_DEVICE} {asked}: T5 {why}, so it has to be where the denoiser is. Leave one of them out.")


def load_t5(part: Part, form: T5Format, device: torch.device, *, mmap: bool) -> nn.Module:
    """Read T5. In 8 bits never more than one matrix is wide.

    Args:
        part: Its weights.
        form: What it is kept in.
        device: Where it runs.
        mmap: See `read_weights`.

    Raises:
        CheckpointError: See `read_weights`, `library.models.text_encoders.load_t5`.
    """
    from library.families.sd3.checkpoint import read_part
    from library.models import text_encoders

    if form.bits is None:
        return text_encoders.load_t5(read_part(part, dtype=form.dtype, device=device, mmap=mmap))
    return _load_in_8_bits(part, form.bits, form.dtype, device, mmap=mmap)


def _load_in_8_bits(part: Part, bits: str, dtype: torch.dtype, device: torch.device, *, mmap: bool) -> nn.Module:
    from library.checkpoint.weights import stored_weights
    from library.memory.quantize import quantize
    from library.memory.quantized_layers import replace_layers
    from library.models import text_encoders

    model = text_encoders.empty_t5(part.shapes())
    layers = replace_layers(model, bits, lambda name: text_encoders.t5_weight_dtype(name, dtype))
    tensors: dict[str, Tensor] = {}
    for weight in stored_weights(part, mmap=mmap):
        if weight.name in layers:
            tensors[weight.name], scale = quantize(weight.wide(device=device), bits, weight.scale)
            tensors[f"{weight.name.removesuffix('weight')}scale"] = scale
        elif text_encoders.is_of_t5_encoder(weight.name):
            tensors[weight.name] = weight.wide(dtype, device)
    return text_encoders.load_t5(tensors, model)
