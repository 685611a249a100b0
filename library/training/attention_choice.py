"""Which attention a run uses, and whether it can: told before weights are read. torch is imported late."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from library.errors import OptionError

if TYPE_CHECKING:
    import torch

    from library.models.attention import Attention
    from library.options.groups import ComputeOptions, PrecisionOptions


def check_attention(compute: ComputeOptions, precision: PrecisionOptions) -> None:
    """See whether the package that is asked for is installed, and can be used in this precision.

    Raises:
        OptionError: It is not, or cannot.
    """
    package = compute.attention_package
    if package is None:
        return
    if package == "flash_attn" and precision.mixed_precision == "no":
        raise OptionError(
            "--flash_attn computes in half precision only. Give --mixed_precision bf16 or fp16, or use --sdpa."
        )
    if find_spec(package) is None:
        raise OptionError(f"--{package}: the package {package} is not installed. Install it, or use --sdpa.")


def check_attention_device(package: str | None, device: torch.device) -> None:
    """See whether there is a GPU for the package.

    Raises:
        OptionError: There is none.
    """
    if package is not None and device.type != "cuda":
        raise OptionError(f"--{package} needs an NVIDIA or AMD GPU, and here is none that torch can use. Use --sdpa.")


def chosen_attention(
    compute: ComputeOptions, device: torch.device, dtype: torch.dtype, widths: Callable[[], Iterable[int]]
) -> Attention | None:
    """The attention of the package that is asked for, tried for each width of heads; None for torch's.

    Args:
        compute: Says the package.
        device: Where it computes.
        dtype: That queries, keys and values will have.
        widths: Gives those of the model's heads.

    Raises:
        OptionError: It does not work.
    """
    package = compute.attention_package
    if package is None:
        return None
    from library.models.attention import PACKAGES

    attend = PACKAGES[package]
    for width in widths():
        try_attention(attend, package, device, dtype, width)
    if not compute.torch_compile:
        return attend
    import torch

    return torch.compiler.disable(attend)  # its kernels run between compiled parts, whatever the package knows of those


def try_attention(attend: Attention, name: str, device: torch.device, dtype: torch.dtype, width: int) -> None:
    """Compute one small attention and its gradients: a package may be built for another torch or another GPU, and some
    have kernels for some widths of heads only.

    Raises:
        OptionError: It does not work.
    """
    import torch

    query, key, value = (torch.ones(1, 2, 16, width, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    try:
        attend(query, key, value, None).sum().backward()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise OptionError(
            f"--{name}: the package does not work with this torch and GPU for heads of {width} numbers, as the model "
            f"has ({type(error).__name__}: {reason}). Install the version that is made for them, or use --sdpa."
        ) from error
