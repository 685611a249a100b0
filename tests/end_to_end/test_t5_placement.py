"""T5 in 8 bits and on the CPU in whole trainings, cached and live, and activations that wait in host memory."""

import pytest
import torch

UNET_ONLY, STEPS = "--network_train_unet_only", "--max_train_steps=2"
TEXT = "--cache_text_encoder_outputs_to_disk"
PLACE = ("--t5xxl_device=cpu", "--t5xxl_dtype=int8")


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


def assert_same(run, other):
    """Weights and losses up to the rounding of encoders that ran over other batches."""
    torch.testing.assert_close(run.weights, other.weights, rtol=0, atol=1e-5)
    assert run.losses == pytest.approx(other.losses, rel=1e-5)


def test_cached_int8_trains_as_live_int8_and_near_wide_and_caches_know_their_format(training, dataset):
    wide = training.compare(dataset, STEPS, UNET_ONLY, TEXT)
    live = training.compare(dataset, STEPS, UNET_ONLY, *PLACE)
    cached = training.compare(dataset, STEPS, UNET_ONLY, *PLACE, TEXT)
    assert "text: making 4 of 4 (4 new)" in cached.log
    assert_same(cached, live)
    assert live.losses != pytest.approx(wide.losses, rel=1e-6)
    assert live.losses == pytest.approx(wide.losses, rel=0.02)
    for flags in (PLACE, ("--t5xxl_dtype=fp32",), ("--t5xxl_device=cpu",)):
        again = training.compare(dataset, STEPS, UNET_ONLY, *flags, TEXT)
        assert "text encoder outputs: all 4 are cached." in again.log
        assert again.losses == (cached if flags == PLACE else wide).losses


def test_the_whole_model_trains_with_t5_in_fp8_and_offloaded_checkpoints(full_training, dataset):
    flags = ("--t5xxl_dtype=fp8", "--mixed_precision=bf16", "--train_text_encoder", "--learning_rate=1e-5")
    plain = full_training.run(dataset, "--max_train_steps=1", *flags)
    offloaded = full_training.run(dataset, "--max_train_steps=1", *flags, "--cpu_offload_checkpointing")
    assert list(plain.trainer.text.encoders) == ["clip_l", "clip_g", "t5xxl"]
    assert offloaded.trainer.denoiser.gradient_checkpointing
    assert "--cpu_offload_checkpointing has no effect without a GPU: all is in host memory already." in offloaded.log
    assert plain.losses == offloaded.losses
    assert all(torch.equal(tensor, offloaded.weights[name]) for name, tensor in plain.weights.items())


def test_prompts_that_are_cached_and_prompts_that_come_later_are_drawn_with_t5_in_int8(training, dataset):
    prompts = training.folder / "prompts.txt"
    prompts.write_text("a red star --w 64 --h 64 --s 1\n", encoding="utf-8")

    def add():
        prompts.write_text("a red star --w 64 --h 64 --s 1\na star --w 64 --h 64 --s 1\n", encoding="utf-8")

    flags = (f"--sample_prompts={prompts}", "--sample_every_n_steps=1", "--max_train_steps=1", *PLACE)
    arguments = training.arguments(dataset, UNET_ONLY, "--cache_text_encoder_outputs", "--mixed_precision=bf16", *flags)
    run = training.run_arguments(arguments, after={"build_loop": add})
    assert run.trainer.sampler.num_drawn == 2
    kept = {name: state.dtype for states in run.trainer.text.prompts.values() for name, state in states.items()}
    assert set(kept.values()) == {torch.bfloat16} and "t5xxl" in kept


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (("--t5xxl_device=gpu",), 2, "--t5xxl_device needs a device such as cpu, cuda or cuda:1, got 'gpu'."),
        (("--t5xxl_dtype=int4",), 2, "--t5xxl_dtype needs one of fp32, fp16, bf16, fp8, fp8_e4m3fn, int8, got 'int4'."),
        (("--t5xxl_device=cuda:3",), 3, "--t5xxl_device cuda:3: there is no such device, only cpu. Choose another."),
        (
            ("--network_args=train_t5xxl=True", "--t5xxl_dtype=int8"),
            2,
            "--t5xxl_dtype int8: T5 trains in this run, and 8 bits have no room for small changes. "
            "Leave one of them out.",
        ),
        (
            ("--network_args=train_t5xxl=True", "--t5xxl_device=cpu"),
            2,
            "--t5xxl_device cpu: T5 trains in this run, so it has to be where the denoiser is. Leave one of them out.",
        ),
    ],
)
def test_what_cannot_be_is_told_before_weights_are_read(refused, dataset, flags, code, sentence):
    ended = refused(dataset, STEPS, *flags)
    assert (ended.code, ended.error) == (code, f"error: {sentence}")
    assert not ended.has_read_weights


def test_a_dry_run_tells_that_the_device_of_t5_is_not_there(refused, dataset):
    ended = refused(dataset, STEPS, "--dry_run", "--t5xxl_device=cuda:3")
    sentence = "--t5xxl_device cuda:3: there is no such device, only cpu. Choose another."
    assert (ended.code, ended.error) == (3, f"error: {sentence}")
