"""--torch_compile and the attention of packages: the same training, or one sentence before weights are read."""

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from library.errors import EnvironmentFault
from library.options.groups import ComputeOptions

COMPILED = ("--torch_compile", "--dynamo_backend=aot_eager")


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


def num_graphs():
    return counters["stats"]["unique_graphs"]


def assert_same(compiled, plain):
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-6)
    torch.testing.assert_close(compiled.weights, plain.weights, atol=1e-6, rtol=1e-5)


def test_a_compiled_lora_is_the_same_lora_and_all_is_compiled_before_the_first_step(training, dataset):
    some = ("context_attn_dim=0", "context_mlp_dim=0", "context_mod_dim=0", "x_mod_dim=0")  # tracing takes its time
    flags = ("--network_dropout=0.3", "--max_train_steps=3", "--optimizer_args", "eps=1e-4", "--network_args", *some)
    plain = training.unet_only(dataset, *flags)
    torch._dynamo.reset()
    counters.clear()
    before, counted = num_graphs(), []
    caches = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
    arguments = training.arguments(dataset, *caches, *flags, *COMPILED)
    compiled = training.run_arguments(arguments, after={"warm_up": lambda: counted.append(num_graphs() - before)})
    assert_same(compiled, plain)
    assert counted == [2] and num_graphs() - before == 2  # a block and the last block, without breaks
    assert not counters["graph_break"]
    assert sum("x as fast, compiling took" in line for line in compiled.log) == 1


def test_passes_that_preserve_outputs_are_compiled_before_the_first_step(training):
    dataset = training.dataset(training.pictures(), custom_attributes={"diff_output_preservation": True})
    flags = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs", "--max_train_steps=1")
    few = [f"{part}_dim=0" for part in ("context_attn", "context_mlp", "context_mod", "x_mlp", "x_mod")]
    torch._dynamo.reset()
    before, counted = num_graphs(), []
    compiled = ("--torch_compile", "--dynamo_backend=eager")
    arguments = training.arguments(dataset, *flags, *compiled, "--network_args", *few)
    training.run_arguments(arguments, after={"warm_up": lambda: counted.append(num_graphs() - before)})
    assert counted == [4] and num_graphs() - before == 4  # a block and the last block, with and without gradients


def test_a_compiled_model_trains_the_same_with_checkpoints_steps_in_backward_and_validation(full_training):
    dataset = full_training.dataset(full_training.pictures(), validation_split=0.5)
    flags = ("--cache_latents", "--cache_text_encoder_outputs", "--max_train_steps=3", "--gradient_checkpointing")
    flags += ("--fused_backward_pass", "--max_grad_norm=0", "--validate_every_n_steps=3", "--optimizer_type=Adafactor")
    flags += ("--optimizer_args", "relative_step=False", "scale_parameter=False", "warmup_init=False")
    plain = full_training.run(dataset, *flags)
    compiled = full_training.run(dataset, *flags, *COMPILED)
    assert_same(compiled, plain)
    losses = [[loss for _, loss in run.trainer.watch.validations] for run in (plain, compiled)]
    assert losses[0] and losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_machine_without_a_compiler_is_told_in_one_sentence_before_the_first_step(training, dataset):
    from torch._inductor import config

    few = [f"{part}_dim=0" for part in ("context_attn", "context_mlp", "context_mod", "x_mlp", "x_mod")]
    with config.patch({"cpp.cxx": ("/nowhere/g++",)}), pytest.raises(EnvironmentFault) as caught:
        training.unet_only(dataset, "--torch_compile", "--max_train_steps=1", "--network_args", *few)
    message = str(caught.value)
    assert message.count("could not compile the model") == 1 and "Leave --torch_compile out" in message
    assert "\n" not in message and "/nowhere/g++" in message


def test_what_cannot_be_used_here_is_told_before_weights_are_read(dataset, refused):
    for flags, words in {
        ("--xformers", "--flash_attn"): "--xformers and --flash_attn exclude each other. Keep one of them.",
        ("--flash_attn",): "--flash_attn computes in half precision only.",
        ("--torch_compile", "--dynamo_backend=tensort"): "--dynamo_backend tensort: torch",
    }.items():
        end = refused(dataset, *flags)
        assert end.code == 2 and words in end.error and not end.has_read_weights


def test_options_of_attention_and_compiling_say_what_has_no_effect():
    assert dict(ComputeOptions(dynamo_backend="eager").without_effect()) == {
        "dynamo_backend": "without --torch_compile"
    }
    assert not dict(ComputeOptions(dynamo_backend="eager", torch_compile=True).without_effect())
