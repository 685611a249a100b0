"""What waits or runs outside the GPU: inputs of checkpointed blocks, and T5; and T5 in 8 bits on it."""

from dataclasses import replace

import pytest
import torch

from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.memory.activation_checkpoint import HostCheckpoint
from library.models.mmdit import MMDiT, MMDiTConfig
from library.options.spec import parse_options
from library.training.encoding.text_stage import TextStage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
DEVICE, CPU = torch.device("cuda"), torch.device("cpu")
CONFIG = MMDiTConfig(depth=8, num_heads=4, context_dim=64, pooled_dim=64, frequencies=32, position_side=64)
CAPTIONS = ["a red circle", "a blue star on white"]


@pytest.fixture(scope="module")
def family(tiny_sd3, tmp_path_factory):
    arguments = [f"--pretrained_model_name_or_path={tiny_sd3}", f"--output_dir={tmp_path_factory.mktemp('out')}"]
    arguments += ["--dataset_config=none.toml", "--network_module=networks.lora", "--t5xxl_max_token_length=16"]
    return Sd3Family.from_options(parse_options(Sd3NetworkOptions, arguments, **NETWORK_SCRIPT))


def step(model):
    """Gradients, and the bytes on the GPU between forward and backward pass."""
    draw = torch.Generator().manual_seed(1)
    sizes = (2, 16, 128, 128), (2,), (2, 64, 64), (2, 64)
    latents, timesteps, context, pooled = (torch.randn(size, generator=draw).to(DEVICE) for size in sizes)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(latents, timesteps.abs() * 500, context, pooled).float().square().mean()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], held


def test_offloaded_inputs_give_the_same_gradients_and_leave_the_gpu():
    torch.manual_seed(0)
    model = MMDiT(CONFIG).to(DEVICE)
    model.gradient_checkpointing = True
    step(model)  # workspaces are there from now on
    plain, held = step(model)
    model.run_checkpointed = HostCheckpoint()
    for _ in range(3):  # the later ones use host memory again
        offloaded, held_now = step(model)
        assert all(torch.equal(own, other) for own, other in zip(offloaded, plain, strict=True))
    one_block = 2 * (64 * 64 + 64) * 256 * 2
    assert held - held_now > (CONFIG.depth - 2) * one_block


@pytest.mark.parametrize("form", [None, "int8", "fp8"])
@pytest.mark.parametrize("place", [None, "cpu"])
def test_states_of_t5_come_to_the_gpu_from_wherever_it_runs(family, place, form):
    files, tokenizers = family.inspect(), family.load_tokenizers(family.inspect(), ["t5xxl"])
    wide = TextStage(family, DEVICE, family.load_text_encoders(files, torch.float32, DEVICE, ["t5xxl"]), tokenizers)
    elsewhere = replace(family, t5_device=place, t5_dtype=form)
    elsewhere.check_devices(DEVICE)
    encoders = elsewhere.load_text_encoders(files, torch.bfloat16, DEVICE, ["t5xxl"])
    stage = TextStage(elsewhere, DEVICE, encoders, tokenizers, frozen_dtype=torch.bfloat16)
    found, expected = stage.encode(CAPTIONS)["t5xxl"], wide.encode(CAPTIONS)["t5xxl"]
    assert next(encoders["t5xxl"].parameters()).device.type == (place or "cuda")
    assert (found.device.type, found.dtype) == ("cuda", torch.bfloat16)
    assert ((found.float() - expected).norm() / expected.norm()).item() < 0.06
