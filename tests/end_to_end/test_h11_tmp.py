"""U-Nets in little memory and compiled, through their scripts. The device is the CPU, and its copies come late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from library.memory.activation_checkpoint import HostCheckpoint
QuantizedConv2d = None
from library.memory.quantized_linear import QuantizedLinear
from library.training.denoiser_phases import DenoiserPhases
from library.training.trainer import Trainer
from tests.end_to_end.test_block_swap import assert_same_run, pixels_of
from tests.late_device import LateDevice

CACHED = ("--cache_latents", "--cache_text_encoder_outputs")
LORA = ("--network_train_unet_only", *CACHED, "--max_train_steps=2")
SWAPPED = ("--blocks_to_swap=99", "--swap_prefetch=1")  # all of them
NEAR = {"int8": 0.005, "fp8": 0.01, "nf4": 0.03}  # losses to those of the wide model, relative

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def swapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "swaps", lambda trainer: bool(trainer.options.memory.swaps))
    monkeypatch.setattr("library.memory.block_swap.copy_lane", lambda device: LateDevice())


@pytest.fixture
def sdxl(training_of: Make) -> Any:
    return training_of("sdxl_train_network", "sdxl")


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


def test_a_swapped_whole_sd1_is_the_whole_sd1(training_of: Make):
    train = training_of("fine_tune", "sd1")
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


@pytest.mark.parametrize(("script", "kind"), [("sdxl_train_network", "sdxl"), ("train_network", "sd1")])
def test_compiled_blocks_train_the_lora(training_of: Make, script: str, kind: str):
    train = training_of(script, kind)
    dataset = train.dataset(train.pictures())
    flags = (*LORA, "--optimizer_args", "eps=1e-4")
    plain = train.run(dataset, *flags)
    torch._dynamo.reset()
    compiled = train.run(dataset, *flags, "--torch_compile", "--dynamo_backend=aot_eager")
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-6)
    torch.testing.assert_close(compiled.weights, plain.weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("script", "kind"), [("sdxl_train_network", "sdxl"), ("train_network", "sd1")])
def test_beside_fewer_bits_it_learns_what_it_learns_beside_the_wide_model(training_of: Make, script: str, kind: str):
    pytest.importorskip("bitsandbytes")
    train = training_of(script, kind)
    dataset = train.dataset(train.pictures())
    flags = (*LORA, "--network_args", "conv_dim=2")
    wide = train.run(dataset, *flags)
    for form, bound in NEAR.items():
        narrow = train.run(dataset, *flags, "--fp8_base" if form == "fp8" else f"--base_weights_dtype={form}")
        layers = {type(layer) for layer in narrow.trainer.denoiser.modules() if getattr(layer, "form", None) == form}
        assert layers == {QuantizedLinear}
        assert narrow.losses != wide.losses and narrow.losses == pytest.approx(wide.losses, rel=bound)
        if form == "fp8":
            assert_same_run(train.run(dataset, *flags, "--fp8_base", *SWAPPED), narrow)
