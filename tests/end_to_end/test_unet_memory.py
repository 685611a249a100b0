"""U-Nets in little memory and compiled, through their scripts. The device is the CPU, and its copies come late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

from library.memory.activation_checkpoint import HostCheckpoint
from library.memory.quantized_conv import QuantizedConv2d
from library.memory.quantized_linear import QuantizedLinear
from library.models.unet import UNet
from library.models.unet_key_map import unet_from_diffusers
from library.training.denoiser_phases import DenoiserPhases
from library.training.trainer import Trainer
from tests.end_to_end.conftest import OtherTraining
from tests.end_to_end.test_block_swap import assert_same_run, pixels_of
from tests.late_device import LateDevice
from tests.tiny_unets import CLIP_G_WIDTH, CLIP_L_WIDTH, write_sd1, write_sdxl

CACHED = ("--cache_latents", "--cache_text_encoder_outputs")
LORA = ("--network_train_unet_only", *CACHED, "--max_train_steps=2")
SWAPPED = ("--blocks_to_swap=99", "--swap_prefetch=1")  # all of them
SIZES: dict[str, Any] = {"block_out_channels": [32, 32], "layers_per_block": 1, "norm_num_groups": 32}
SMALL: dict[str, dict[str, Any]] = {  # U-Nets with 14 and 16 blocks
    "sdxl": {
        **SIZES,
        "cross_attention_dim": CLIP_L_WIDTH + CLIP_G_WIDTH,
        "transformer_layers_per_block": [1, 1],
        "attention_head_dim": [2, 2],
        "use_linear_projection": True,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": CLIP_G_WIDTH + 6 * 32,
    },
    "sd1": {
        **SIZES,
        "cross_attention_dim": CLIP_L_WIDTH,
        "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
}
UNET = "model.diffusion_model."
NEAR = {"int8": 0.005, "fp8": 0.01, "nf4": 0.03}  # losses to those of the wide model, relative


@pytest.fixture(autouse=True)
def swapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "swaps", lambda trainer: bool(trainer.options.memory.swaps))
    monkeypatch.setattr("library.memory.block_swap.copy_lane", lambda device: LateDevice())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with a small U-Net, with their tokenizers beside them."""
    writers = {"sdxl": write_sdxl, "sd1": write_sd1}
    paths = {kind: write(tmp_path_factory.mktemp(kind)).path for kind, write in writers.items()}
    for kind, path in paths.items():
        tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(UNET)}
        torch.manual_seed(0)
        unet = unet_from_diffusers(UNet(**SMALL[kind]).state_dict())
        save_file({**tensors, **{UNET + name: tensor for name, tensor in unet.items()}}, path)
    return paths


@pytest.fixture
def sdxl(training: Any, models: dict[str, Path]) -> Any:
    return OtherTraining(training.folder, models["sdxl"], "sdxl_train_network")


def test_a_swapped_lora_of_sdxl_that_draws_in_between_is_the_lora(sdxl: Any):
    prompts = sdxl.folder / "prompts.txt"
    prompts.write_text("a red square --w 64 --h 64 --s 2 --l 3 --d 1", encoding="utf-8")
    dataset = sdxl.dataset(sdxl.pictures())
    flags = (*LORA, f"--sample_prompts={prompts}", "--sample_every_n_steps=1", "--output_name=x")
    plain = sdxl.run(dataset, *flags)
    for own in ((), ("--sample_blocks_to_swap=5", "--gradient_checkpointing")):
        swapped = sdxl.run(dataset, *flags, *SWAPPED, *own)
        assert_same_run(swapped, plain)
        pictures = pixels_of(plain.file.parent / "sample")
        assert len(pictures) == 3 and pixels_of(swapped.file.parent / "sample") == pictures


def test_a_swapped_whole_sd1_is_the_whole_sd1(training: Any, models: dict[str, Path]):
    train = OtherTraining(training.folder, models["sd1"], "fine_tune")
    dataset = train.dataset(train.pictures())
    flags = (*CACHED, "--fused_backward_pass", "--max_grad_norm=0", "--optimizer_type=Adafactor", "--max_train_steps=2")
    flags += ("--optimizer_args", "relative_step=False", "scale_parameter=False", "warmup_init=False")
    assert_same_run(train.run(dataset, *flags, *SWAPPED), train.run(dataset, *flags))


def test_what_waits_on_the_host_until_blocks_are_computed_again_changes_no_bit(
    sdxl: Any, monkeypatch: pytest.MonkeyPatch
):
    dataset = sdxl.dataset(sdxl.pictures())
    plain = sdxl.run(dataset, *LORA)
    device = LateDevice()

    def recompute(trainer: Any) -> None:
        assert trainer.options.training.cpu_offload_checkpointing
        trainer.denoiser.gradient_checkpointing = True
        trainer.denoiser.run_checkpointed = HostCheckpoint(lambda _: device, least_bytes=1)

    monkeypatch.setattr(DenoiserPhases, "_recompute_activations", recompute)
    moved = sdxl.run(dataset, *LORA, "--gradient_checkpointing", "--cpu_offload_checkpointing")
    assert device.num_copies > 2 * len(moved.trainer.denoiser.block_row())
    assert moved.losses == plain.losses
    assert moved.file.read_bytes() == plain.file.read_bytes()


def test_compiled_blocks_train_the_lora(sdxl: Any):
    dataset = sdxl.dataset(sdxl.pictures())
    few = "network_reg_dims=attn1|ff_net|to_out|to_k|proj_=0"  # tracing takes its time
    flags = (*LORA, "--optimizer_args", "eps=1e-4", "--network_args", few)
    plain = sdxl.run(dataset, *flags)
    torch._dynamo.reset()
    counters.clear()
    compiled = sdxl.run(dataset, *flags, "--torch_compile", "--dynamo_backend=aot_eager")
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 8  # of 14 blocks
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-6)
    torch.testing.assert_close(compiled.weights, plain.weights, atol=1e-6, rtol=1e-5)


def test_beside_fewer_bits_it_learns_what_it_learns_beside_the_wide_model(sdxl: Any):
    pytest.importorskip("bitsandbytes")
    dataset = sdxl.dataset(sdxl.pictures())
    flags = (*LORA, "--network_args", "conv_dim=2")
    wide = sdxl.run(dataset, *flags)
    for form, bound in NEAR.items():
        narrow = sdxl.run(dataset, *flags, "--fp8_base" if form == "fp8" else f"--base_weights_dtype={form}")
        forms = {(type(layer), layer.form) for layer in narrow.trainer.denoiser.modules() if hasattr(layer, "form")}
        assert forms == {(QuantizedLinear, form), (QuantizedConv2d, "int8" if form == "nf4" else form)}
        assert narrow.losses != wide.losses and narrow.losses == pytest.approx(wide.losses, rel=bound)
        if form == "fp8":
            assert_same_run(sdxl.run(dataset, *flags, "--fp8_base", *SWAPPED), narrow)
