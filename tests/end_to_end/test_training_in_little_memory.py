"""Options that save memory: steps inside the backward pass, weights in bf16 and in fp16."""

from contextlib import contextmanager

import accelerate
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from library.errors import EnvironmentFault, OptionError
from library.training.optimization import rounded_steps
from library.training.optimization.ema import Ema
from library.training.stepping.fused_step import FusedStep
from library.training.stepping.optimizer_step import OptimizerStep

CACHED = ("--cache_latents", "--cache_text_encoder_outputs")
BF16 = ("--mixed_precision=bf16", "--full_bf16")
SAVED = ("--max_train_steps=4", "--save_every_n_steps=2", "--save_state", "--output_name=x")


class ScalingAccelerator(accelerate.Accelerator):
    """As on a GPU: autocast and loss scaling in fp16."""

    def __init__(self, **options):
        super().__init__(**options)
        self.native_amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)


@pytest.fixture
def dataset(full_training):
    return full_training.dataset(full_training.pictures())


@pytest.mark.parametrize(
    "flags",
    [
        ("--fused_backward_pass", "--optimizer_type=Adafactor", "--bf16_rounding=kahan"),
        ("--blockwise_fused_optimizers", "--optimizer_type=AdamW8bit", "--ema_decay=0.9"),
    ],
    ids=["fused", "blockwise"],
)
def test_resumed_equals_unbroken(full_training, dataset, flags):
    flags = (*CACHED, *BF16, *SAVED, *flags)
    whole = full_training.run(dataset, *flags)
    rest = full_training.run(dataset, *flags, f"--resume={whole.file.parent / 'x-step00000002-state'}")
    assert rest.trainer.continuation.first_step == 2 and rest.losses == whole.losses
    for file in rest.file.parent.glob("x*.safetensors"):
        assert file.read_bytes() == (whole.file.parent / file.name).read_bytes(), file.name
    weights = load_file(whole.file.parent / "x-step00000002-state" / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert sum("--max_grad_norm 1 acts on each" in line for line in whole.log) == 1


def test_another_rounding_is_another_run(full_training, dataset):
    flags = (*CACHED, *BF16, *SAVED, "--max_train_steps=2")
    state = full_training.run(dataset, *flags).file.parent / "x-step00000002-state"
    with pytest.raises(OptionError, match="--bf16_rounding: kahan, was stochastic"):
        full_training.run(dataset, *flags, "--bf16_rounding=kahan", "--max_train_steps=4", f"--resume={state}")


def test_adapters_train_alike_inside_and_after_the_backward_pass(training, dataset):
    flags = ("--max_grad_norm=0", "--max_train_steps=2", "--optimizer_args", "eps=1e-4")
    plain = training.unet_only(dataset, *flags)
    fused = training.unet_only(dataset, *flags, "--fused_backward_pass")
    assert type(plain.trainer.make_step) is OptimizerStep and type(fused.trainer.make_step) is FusedStep
    assert fused.losses == pytest.approx(plain.losses, rel=1e-5)
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(fused.weights[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_whole_model_trains_in_fp16_with_loss_scaling(full_training, dataset, monkeypatch):
    monkeypatch.setattr(accelerate, "Accelerator", ScalingAccelerator)
    flags = (*CACHED, "--mixed_precision=fp16", "--full_fp16", "--learning_rate=1e-4", "--max_train_steps=3")
    run = full_training.run(dataset, *flags)
    trained = run.trainer.trained_parameters()
    assert {parameter.dtype for parameter in trained} == {torch.float16}
    assert all(parameter.isfinite().all() for parameter in trained)
    assert run.trainer.loop.num_skipped == 0 and all(loss == loss for loss in run.losses)
    before = load_file(full_training.model)
    changed = [name for name, tensor in run.weights.items() if not torch.equal(tensor.half(), before[name])]
    assert len(changed) >= 0.9 * len(trained)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fused_backward_pass --optimizer_type=Lion", "works with AdamW, AdamW8bit and Adafactor, not with Lion"),
        ("--fused_backward_pass --gradient_accumulation_steps=2", "--gradient_accumulation_steps 2 has nothing to add"),
        ("--fused_backward_pass --mixed_precision=fp16", "cannot be used with --mixed_precision fp16"),
        ("--blockwise_fused_optimizers --fused_backward_pass", "exclude each other"),
    ],
)
def test_what_cannot_step_inside_the_backward_pass_is_refused(full_training, dataset, flags, message):
    with pytest.raises(OptionError, match=message):
        full_training.run(dataset, *flags.split())


def test_small_steps_of_an_unknown_optimizer_are_not_lost_silently(full_training, dataset):
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(OptionError, match="--optimizer_type CAME: optimizers of pytorch-optimizer cannot"):
        full_training.run(dataset, *BF16, "--optimizer_type=CAME")


def test_several_processes_do_not_step_inside_the_backward_pass(full_training, dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="trains in one process, and 2 were started"):
        full_training.run(dataset, "--fused_backward_pass")


def test_adapters_have_no_blocks_to_step(dataset, refused):
    refusal = refused(dataset, "--blockwise_fused_optimizers")
    assert refusal.code == 2 and not refusal.has_read_weights
    assert "steps the weights of a block together, and adapters are not among them" in refusal.error


def test_autocast_keeps_no_copies_of_weights_through_a_pass(full_training, dataset):
    run = full_training.run(dataset, *CACHED, "--mixed_precision=bf16", "--max_train_steps=1")
    with run.trainer.accelerator.autocast():
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()


def files_of_step_2(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "step00000002" in str(path)}


@pytest.mark.parametrize("flags", [(), ("--fused_backward_pass",)], ids=["after", "inside"])
def test_a_step_that_ends_half_way_leaves_the_last_good_state_to_go_on_from(full_training, dataset, monkeypatch, flags):
    """Three weights have made step 3, for the next one there is no memory."""
    folder = full_training.folder / "full1"
    real, stepped, before = rounded_steps._step_part, [], {}

    def step_part(optimizer, part, written_step):
        if optimizer.rounded_steps == 2 and len(stepped) == 3:
            before.update(files_of_step_2(folder))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        stepped.extend(part if optimizer.rounded_steps == 2 else ())
        real(optimizer, part, written_step)

    monkeypatch.setattr(rounded_steps, "_NUMBERS_AT_A_TIME", 1)
    flags = (*CACHED, *BF16, *SAVED, "--max_train_steps=3", *flags)
    with monkeypatch.context() as patch:
        patch.setattr(rounded_steps, "_step_part", step_part)
        with pytest.raises(EnvironmentFault, match="out of memory") as end:
            full_training.run(dataset, *flags)
    assert end.value.exit_code == 3
    assert len(before) > 4 and files_of_step_2(folder) == before
    assert [path.name for path in folder.glob("*-state")] == ["x-step00000002-state"]
    rest = full_training.run(dataset, *flags, f"--output_dir={folder}", "--resume=auto")
    assert rest.trainer.continuation.first_step == 2 and len(rest.losses) == 3


def test_weights_between_two_steps_are_saved_where_no_file_is_but_are_no_state(training, dataset, caplog):
    """As where an optimizer makes room for its averages in its first step, of a run that has saved nothing yet."""

    def no_memory(optimizer, *_):
        if next(iter(optimizer.state.values()))["step"] == 3:
            raise RuntimeError("CUDA error: out of memory")

    handle = register_optimizer_step_post_hook(no_memory)
    try:
        with pytest.raises(EnvironmentFault, match="out of memory after step 2"):
            training.unet_only(dataset, "--max_train_steps=4", "--output_name=x")
    finally:
        handle.remove()
    assert {path.name for path in (training.folder / "out1").glob("x-*")} == {"x-step00000002.safetensors"}
    assert "it ends inside step 3" in caplog.text and "There is none to go on from" in caplog.text


def test_no_memory_to_put_an_average_in_place_costs_files_and_ends_with_3(training, dataset, monkeypatch, caplog):
    @contextmanager
    def applied(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        yield

    monkeypatch.setattr(Ema, "applied", applied)
    flags = ("--max_train_steps=2", "--save_every_n_steps=1", "--ema_decay=0.9", "--output_name=x")
    with pytest.raises(EnvironmentFault, match="x.safetensors: not enough memory to write it") as end:
        training.unet_only(dataset, *flags)
    assert end.value.exit_code == 3
    assert "not saved, training goes on" in caplog.text and (training.folder / "out1" / "x-state").is_dir()
