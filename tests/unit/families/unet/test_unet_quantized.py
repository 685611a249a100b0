"""The U-Net in fewer bits: what is rounded, that both ways to it agree, and that files in fp8 stay."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from library.families.unet.checkpoint import inspect_files, load_unet
from library.families.unet.quantized import quantize_unet
from library.memory.blocks import blocks
from library.memory.narrow_layer import NarrowLayer
from tests.tiny_unets import write_sdxl

DTYPE = torch.bfloat16
ERRORS = {"int8": 0.05, "fp8": 0.15, "nf4": 0.15}  # of a network of random weights, which enlarges errors
WIDE = nn.Linear, nn.Conv2d
NAMES = {  # in files, and in the model
    "middle_block.1.transformer_blocks.1.ff.net.2": "mid_block.attentions.0.transformer_blocks.1.ff.net.2",
    "middle_block.0.in_layers.2": "mid_block.resnets.0.conv1",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_sdxl(tmp_path_factory.mktemp("sdxl"), dtype="fp16").path


@pytest.mark.parametrize("form", ERRORS)
def test_linear_layers_and_convolutions_of_the_blocks_are_rounded_and_all_else_is_wide(path, form):
    if form == "nf4":
        pytest.importorskip("bitsandbytes")
    files = inspect_files(path, kinds=("sdxl",))
    model, wide = load_unet(files, DTYPE, "cpu", form=form), load_unet(files, DTYPE, "cpu")
    inside = {layer for block in blocks(wide) for layer in block.modules() if isinstance(layer, WIDE)}
    names = {name for name, layer in wide.named_modules() if layer in inside}
    assert {name for name, layer in model.named_modules() if isinstance(layer, NarrowLayer)} == names
    state = model.state_dict()
    for name, tensor in wide.state_dict().items():
        if name.removesuffix(".weight") not in names:
            assert torch.equal(state[name], tensor), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.manual_seed(0)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 80)
    added = {"text_embeds": torch.randn(1, 48), "time_ids": torch.full((1, 6), 64.0)}
    with torch.no_grad():
        exact, near = (m(x, torch.tensor([500]), text, added_cond_kwargs=added).sample.float() for m in (wide, model))
    assert 0.005 < (near - exact).norm() / exact.norm() < ERRORS[form]


def test_read_and_rounded_is_what_reading_rounds(path):
    files = inspect_files(path, kinds=("sdxl",))
    at_once = load_unet(files, DTYPE, "cpu", form="int8").state_dict()
    later = quantize_unet(load_unet(files, None, "cpu"), "int8", DTYPE, "cpu").state_dict()
    assert at_once.keys() == later.keys()
    assert all(torch.equal(tensor, later[name]) for name, tensor in at_once.items())


def test_weights_that_a_file_has_in_fp8_stay_as_they_are(path, tmp_path):
    tensors = load_file(path)
    for name in NAMES:
        key = f"model.diffusion_model.{name}"
        stored = tensors[f"{key}.weight"].to(torch.float8_e4m3fn)
        tensors |= {f"{key}.weight": stored, f"{key}.scale_weight": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "fp8.safetensors")
    model = load_unet(inspect_files(tmp_path / "fp8.safetensors", kinds=("sdxl",)), DTYPE, "cpu", form="fp8")
    for name, own in NAMES.items():
        layer, stored = model.get_submodule(own), tensors[f"model.diffusion_model.{name}.weight"]
        assert torch.equal(layer.weight.view(torch.uint8), stored.view(torch.uint8).flatten(1))
        assert (layer.scale == 0.5).all()
