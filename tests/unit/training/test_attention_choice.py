"""The attention of packages is refused in one sentence where it cannot be used."""

import importlib.util

import pytest
import torch

from library.errors import OptionError
from library.models.attention import torch_attention
from library.options.groups import ComputeOptions, PrecisionOptions
from library.training.attention_choice import check_attention, check_attention_device, chosen_attention, try_attention

CPU = torch.device("cpu")


def test_flash_attn_needs_half_precision():
    with pytest.raises(OptionError, match="--mixed_precision bf16 or fp16, or use --sdpa"):
        check_attention(ComputeOptions(flash_attn=True), PrecisionOptions(mixed_precision="no"))


@pytest.mark.parametrize("package", ["xformers", "flash_attn"])
def test_a_package_that_is_not_there_is_named(package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(OptionError, match=f"--{package}: the package {package} is not installed"):
        check_attention(ComputeOptions(**{package: True}), PrecisionOptions(mixed_precision="bf16"))


def test_packages_need_a_gpu():
    with pytest.raises(OptionError, match="--xformers needs an NVIDIA or AMD GPU"):
        check_attention_device("xformers", CPU)
    check_attention_device(None, CPU)


def test_torch_is_not_tried():
    options = ComputeOptions(sdpa=True)
    check_attention(options, PrecisionOptions())
    assert chosen_attention(options, CPU, torch.float32) is None


def test_a_package_for_another_gpu_is_told_in_one_line():
    def attend(query, key, value, bias):
        raise NotImplementedError("no kernel for this card\nquery: shape (1, 16, 2, 64)")

    with pytest.raises(OptionError) as caught:
        try_attention(attend, "xformers", CPU, torch.float32)
    assert "(NotImplementedError: no kernel for this card)" in str(caught.value) and "\n" not in str(caught.value)
    try_attention(torch_attention, "xformers", CPU, torch.bfloat16)
