"""The attention of packages is refused in one sentence where it cannot be used."""

import importlib.util

import pytest
import torch

from library.errors import OptionError
from library.models.attention import PACKAGES, head_widths, torch_attention
from library.models.mmdit import MMDiT, MMDiTConfig
from library.models.unet import UNet
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
    assert chosen_attention(options, CPU, torch.float32, list) is None


def test_a_package_for_another_gpu_is_told_in_one_line():
    def attend(query, key, value, bias):
        raise NotImplementedError("no kernel for this card\nquery: shape (1, 16, 2, 64)")

    with pytest.raises(OptionError) as caught:
        try_attention(attend, "xformers", CPU, torch.float32, 40)
    message = str(caught.value)
    assert "heads of 40 numbers, as the model has (NotImplementedError: no kernel for this card)" in message
    assert "\n" not in message
    try_attention(torch_attention, "xformers", CPU, torch.bfloat16, 64)


def test_each_width_of_heads_that_the_model_has_is_tried(monkeypatch):
    tried = []

    def attend(query, key, value, bias):
        tried.append(query.shape[-1])
        if tried[-1] > 128:
            raise ValueError("heads are too wide")
        return torch_attention(query, key, value, bias)

    monkeypatch.setitem(PACKAGES, "xformers", attend)
    with pytest.raises(OptionError, match="for heads of 160 numbers, as the model has"):
        chosen_attention(ComputeOptions(xformers=True), CPU, torch.float32, lambda: (40, 80, 160))
    assert tried == [40, 80, 160]


def test_models_say_how_wide_their_heads_are():
    levels = {"block_out_channels": [320, 640], "layers_per_block": 1, "cross_attention_dim": 8}
    types = {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
    with torch.device("meta"):
        assert head_widths(UNet(attention_head_dim=8, **levels, **types)) == [40, 80]
        assert head_widths(UNet(attention_head_dim=[5, 10], **levels, **types)) == [64]
        assert head_widths(MMDiT(MMDiTConfig(depth=1, num_heads=2))) == [64]
