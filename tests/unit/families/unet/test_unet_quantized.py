"""The U-Net in fewer bits: what is rounded, that both ways to it agree, and that files in fp8 stay."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from library.families.unet.checkpoint import inspect_files, load_unet
from library.families.unet.quantized import quantize_unet
from library.memory.blocks import blocks
from library.memory.quantized_linear import QuantizedLinear
from tests.tiny_unets import write_sdxl

DTYPE = torch.bfloat16
NAME = "middle_block.1.transformer_blocks.1.ff.net.2"
OURS = "mid_block.attentions.0.transformer_blocks.1.ff.net.2"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_sdxl(tmp_path_factory.mktemp("sdxl"), dtype="fp16").path


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_linear_layers_of_the_blocks_are_rounded_and_all_else_is_wide(path, form):
    files = inspect_files(path, kinds=("sdxl",))
    model, wide = load_unet(files, DTYPE, "cpu", form=form), load_unet(files, DTYPE, "cpu")
    inside = {layer for block in blocks(wide) for layer in block.modules() if isinstance(layer, nn.Linear)}
    names = {name for name, layer in wide.named_modules() if layer in inside}
    assert {name for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)} == names
    state = model.state_dict()
    for name, tensor in wide.state_dict().items():
        if name.removesuffix(".weight") not in names:
            assert torch.equal(state[name], tensor), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 80)
    added = {"text_embeds": torch.randn(1, 48), "time_ids": torch.full((1, 6), 64.0)}
    with torch.no_grad():
        exact, near = (m(x, torch.tensor([500]), text, added_cond_kwargs=added).sample.float() for m in (wide, model))
    assert 0 < (near - exact).norm() < 0.1 * exact.norm()


def test_read_and_rounded_is_what_reading_rounds(path):
    files = inspect_files(path, kinds=("sdxl",))
    at_once = load_unet(files, DTYPE, "cpu", form="int8").state_dict()
    later = quantize_unet(load_unet(files, None, "cpu"), "int8", DTYPE, "cpu").state_dict()
    assert at_once.keys() == later.keys()
    assert all(torch.equal(tensor, later[name]) for name, tensor in at_once.items())


def test_weights_that_a_file_has_in_fp8_stay_as_they_are(path, tmp_path):
    tensors = load_file(path)
    key = f"model.diffusion_model.{NAME}"
    stored = tensors[f"{key}.weight"].to(torch.float8_e4m3fn)
    tensors |= {f"{key}.weight": stored, f"{key}.scale_weight": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "fp8.safetensors")
    model = load_unet(inspect_files(tmp_path / "fp8.safetensors", kinds=("sdxl",)), DTYPE, "cpu", form="fp8")
    layer = model.get_submodule(OURS)
    assert torch.equal(layer.weight.view(torch.uint8), stored.view(torch.uint8))
    assert (layer.scale == 0.5).all()
