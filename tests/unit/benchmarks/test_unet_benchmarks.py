"""What is measured of U-Nets is what it is said to be: published sizes, all products, loops that train alike."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import unet_cpu_step
from benchmarks.plain_loop import lora_step
from benchmarks.unet_files import write_unet_file
from benchmarks.unet_flops import unet_flops
from benchmarks.unet_loops import attention_layers, random_example
from benchmarks.unet_sizes import TINY_UNETS, UNETS, UnetSize
from library.families.unet.checkpoint import inspect_files

CPU = torch.device("cpu")
SMALL = UnetSize("sdxl", (32, 32), (0, 1), 24, (1, 1), pooled=16, size_width=8)


@pytest.mark.parametrize(("name", "kind", "layers"), [("SDXL", "sdxl", 722), ("SD1.5", "sd1", 192)])
def test_a_file_of_true_size_is_one_that_the_scripts_know(name, kind, layers, tmp_path):
    (flag,) = write_unet_file(tmp_path, name)
    files = inspect_files(Path(flag.partition("=")[2]), kinds=[kind])
    assert {**files.config} == {**files.config, **UNETS[name].config()}
    with torch.device("meta"):
        assert len(list(attention_layers(UNet2DConditionModel(**UNETS[name].config())))) == layers


def test_flops_are_those_of_diffusers_own_model_and_a_lora_costs_no_gradients_of_frozen_weights():
    torch.manual_seed(0)
    model = UNet2DConditionModel(**SMALL.config())
    example = random_example(SMALL, side=64, batch=1, dtype=torch.float32, device=CPU)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        example.loss(model).backward()
    whole, lora = (unet_flops(SMALL, side=64, rank=rank) for rank in (0, 1))
    assert whole.total == counter.get_total_flops()
    assert whole.forward < lora.forward and lora.backward < 0.8 * whole.backward


def test_the_written_out_gradients_are_those_of_autograd_beside_layers_without_bias():
    outcomes = []
    for is_naive in (False, True):
        torch.manual_seed(0)
        model = UNet2DConditionModel(**SMALL.config()).requires_grad_(False)
        example = random_example(SMALL, side=64, batch=1, dtype=torch.float32, device=CPU)
        lora_step(model, example, rank=2, layers=attention_layers(model), is_naive=is_naive)()
        outcomes.append([parameter.detach() for parameter in model.parameters() if parameter.requires_grad])
    for ours, naive in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-3, atol=1e-6)


def test_all_variants_step_over_the_trainers_own_weights(tmp_path):
    try:
        steps = unet_cpu_step.variants(tmp_path, TINY_UNETS["SDXL"], 32)
        for step in steps.values():
            step()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert list(steps) == list(unet_cpu_step.NAMES)
