"""Merging models: what comes out in numbers, under which names, and how much memory it takes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import CheckpointError, OptionError, OutputError
from library.memory.live_memory import LiveMemory
from library.model_files.merging import merge_models, weighted_sum
from library.model_files.options.merging import MergeOptions
from library.tensorfile import read_header

UNET = "model.diffusion_model."
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
TEXT = "cond_stage_model.transformer.text_model."
TOKENS = f"{TEXT}embeddings.token_embedding.weight"
IDS = f"{TEXT}embeddings.position_ids"


def model(seed, dtype=torch.float32):
    """What makes a file one of SD 1.x, and little more."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
        CONTEXT: (8, 768),
        f"{UNET}out.2.bias": (4,),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
        TOKENS: (20, 8),
    }
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return {**tensors, IDS: torch.arange(5)[None] + seed, "betas": torch.full((3,), 0.1 + seed)}


@pytest.fixture
def merged(tmp_path):
    """merged(models, **options): what is written for {name: tensors} or lists of them."""

    def merge(models, **options):
        paths = [tmp_path / f"m{index}.safetensors" for index in range(len(models))]
        for path, tensors in zip(paths, models, strict=True):
            save_file(tensors, path, {"format": "pt"})
        output = options.pop("output", tmp_path / "out.safetensors")
        merge_models(MergeOptions(models=tuple(map(str, paths)), output=output, **options))
        return load_file(output) if output.suffix == ".safetensors" else torch.load(output, weights_only=True)

    return merge


def test_ratios_1_and_0_give_the_first_model_bit_for_bit(merged):
    first = model(1, torch.bfloat16)
    found = merged([first, model(2, torch.bfloat16)], ratios=(1.0, 0.0), saving_precision="bf16")
    assert found.keys() == first.keys() and all(torch.equal(found[name], first[name]) for name in first)


def test_equal_ratios_are_the_default_and_give_the_mean(merged):
    first, second = model(1), model(2)
    found = merged([first, second])
    for name in (CONTEXT, TOKENS):
        assert torch.allclose(found[name], (first[name] + second[name]) / 2, atol=1e-6)


def test_ratios_are_used_as_given(merged):
    first, second = model(1), model(2)
    found = merged([first, second], ratios=(1.0, -0.5))
    assert torch.allclose(found[CONTEXT], first[CONTEXT] - second[CONTEXT] / 2, atol=1e-6)


def test_whole_numbers_and_schedules_are_those_of_the_first(merged):
    first = model(1)
    found = merged([first, model(2)], ratios=(0.0, 1.0), saving_precision="fp16")
    assert torch.equal(found[IDS], first[IDS]) and found[IDS].dtype == torch.int64
    assert torch.equal(found["betas"], first["betas"]) and found["betas"].dtype == torch.float32


def test_what_another_model_lacks_counts_as_the_first(merged):
    first, second = model(1), model(2)
    del second[TOKENS]
    found = merged([first, {**second, "first_stage_model.extra": torch.ones(1)}], ratios=(0.25, 0.75))
    assert torch.equal(found[TOKENS], first[TOKENS]) and "first_stage_model.extra" not in found


def test_with_unet_only_the_rest_is_the_first(merged):
    first, second = model(1), model(2)
    found = merged([first, second], ratios=(0.0, 1.0), unet_only=True)
    assert torch.equal(found[CONTEXT], second[CONTEXT]) and torch.equal(found[TOKENS], first[TOKENS])


def test_a_denoiser_alone_without_prefix_is_merged_with_a_whole_model(merged):
    first, second = model(1), model(2)
    alone = {name.removeprefix(UNET): tensor for name, tensor in second.items() if name.startswith(UNET)}
    found = merged([first, alone], ratios=(0.0, 1.0))
    assert torch.equal(found[CONTEXT], second[CONTEXT]) and torch.equal(found[TOKENS], first[TOKENS])
    found = merged([alone, first], ratios=(0.0, 1.0))
    assert found.keys() == alone.keys()
    assert torch.equal(found[CONTEXT.removeprefix(UNET)], first[CONTEXT])


def test_a_difference_is_added(merged):
    base, learned, origin = model(1), model(2), model(3)
    found = merged([base, learned, origin], ratios=(0.5,), add_difference=True)
    assert torch.allclose(found[CONTEXT], base[CONTEXT] + 0.5 * (learned[CONTEXT] - origin[CONTEXT]), atol=1e-6)


def test_no_difference_changes_no_bit(merged):
    base, other = model(1), model(2)
    found = merged([base, other, other], add_difference=True)
    assert all(torch.equal(found[name], base[name]) for name in base)


def test_a_difference_of_what_one_of_the_two_lacks_is_none(merged):
    base, learned, origin = model(1), model(2), model(3)
    del origin[TOKENS]
    assert torch.equal(merged([base, learned, origin], add_difference=True)[TOKENS], base[TOKENS])


def test_weights_in_fp8_are_merged_with_their_scales(merged):
    first, second = model(1), model(2)
    stored = second[CONTEXT].to(torch.float8_e4m3fn)
    second = {**second, CONTEXT: stored, CONTEXT.replace(".weight", ".scale_weight"): torch.tensor(0.5)}
    found = merged([first, {**second, f"{UNET}scaled_fp8": torch.empty(2).to(torch.float8_e4m3fn)}], ratios=(0.0, 1.0))
    assert torch.equal(found[CONTEXT], stored.float() * 0.5) and found.keys() == first.keys()


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_precisions_of_arithmetic_and_of_the_file_are_those_asked_for(merged, precision, dtype):
    first, second = model(1), model(2)
    found = merged([first, second], precision=precision, saving_precision="float")
    expected = first[CONTEXT].to(dtype) * 0.5 + second[CONTEXT].to(dtype) * 0.5
    assert found[CONTEXT].dtype == torch.float32 and torch.equal(found[CONTEXT], expected.float())
    assert merged([first, second], saving_precision=precision)[CONTEXT].dtype == dtype


def test_a_pickle_has_the_same_tensors(merged, tmp_path):
    models = [model(1), model(2)]
    pickled = merged(models, output=tmp_path / "out.ckpt")["state_dict"]
    assert all(torch.equal(pickled[name], tensor) for name, tensor in merged(models).items())


def test_the_header_names_what_was_merged(merged, tmp_path):
    merged([model(1), model(2)])
    metadata = read_header(tmp_path / "out.safetensors").metadata
    assert metadata["modelspec.merged_from"] == "m0, m1" and metadata["modelspec.title"] == "out"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.hash_sha256"].startswith("0x") and int(metadata["modelspec.hash_sha256"], 16)


def test_one_tensor_of_each_model_is_in_memory_at_a_time(merged, tmp_path):
    large = {f"{UNET}middle_block.{index}.weight": torch.randn(64, 1024) for index in range(12)}
    models = [{**model(seed), **large} for seed in (1, 2)]
    merged(models)  # so that what is kept for good is there
    (tmp_path / "out.safetensors").unlink()
    with LiveMemory([]) as memory:
        options = MergeOptions(
            models=tuple(str(tmp_path / f"m{index}.safetensors") for index in (0, 1)),
            output=tmp_path / "out.safetensors",
        )
        merge_models(options)
    one = 64 * 1024 * 4
    assert one <= memory.peak <= 6 * one < 12 * one


def test_a_factor_of_0_is_passed_over():
    terms = [(torch.tensor([1.0, -0.0]), 1.0), (torch.tensor([float("inf"), 1.0]), 0.0)]
    total = weighted_sum(iter(terms), torch.float32)
    assert total.tolist() == [1.0, 0.0] and torch.signbit(total).tolist() == [False, True]


def spoiled(tensors, **changes):
    return {**tensors, **{name: change(tensors[name]) for name, change in changes.items()}}


LORA = {"lora_unet_x.lora_down.weight": torch.ones(1, 1)}
OTHER_FAMILY = {"model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": torch.ones(3, 1)}
NARROW = spoiled(model(2), **{CONTEXT: lambda tensor: tensor[:4].clone()})
BROKEN = spoiled(model(2), **{CONTEXT: lambda tensor: tensor * float("nan")})
LARGE = spoiled(model(2), **{CONTEXT: lambda tensor: tensor * 1e6})


@pytest.mark.parametrize(
    ("second", "options", "error", "said"),
    [
        (LORA, {}, CheckpointError, "is a LoRA or another adapter. Merge it with networks/merge_lora.py"),
        (OTHER_FAMILY, {}, CheckpointError, "Only models of one family can be merged"),
        (NARROW, {}, CheckpointError, r"to_k.weight has shape \[8, 768\] in .*m0.* and \[4, 768\] in .*m1"),
        (BROKEN, {}, CheckpointError, "to_k.weight has NaN or infinite values"),
        (LARGE, {"saving_precision": "fp16"}, OutputError, "float16 cannot hold. Use --saving_precision bf16 or float"),
    ],
)
def test_models_that_cannot_be_merged_leave_what_was_there(merged, tmp_path, second, options, error, said):
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(error, match=said):
        merged([model(1), second], **options)
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0.safetensors", "m1.safetensors", "out.safetensors"]


def test_the_target_is_none_of_the_models(merged, tmp_path):
    with pytest.raises(OptionError, match="is also read"):
        merged([model(1), model(2)], output=tmp_path / "m1.safetensors")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"models": ("a",)}, "--models has 1 model. Give at least two"),
        ({"ratios": (1.0,)}, "--ratios has 1 number for 2 models"),
        ({"ratios": (0.0, 0.0)}, "are all 0"),
        ({"add_difference": True}, "needs three models and at most one ratio, got 2 and 0"),
        ({"output": "out"}, "must end in .safetensors or .ckpt"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said, tmp_path):
    from pathlib import Path

    given = {"models": ("a", "b"), "output": "out.safetensors", **options}
    with pytest.raises(OptionError, match=said):
        MergeOptions(**{**given, "output": Path(given["output"])})


def test_a_line_says_that_ratios_do_not_make_1():
    assert not list(MergeOptions(models=("a", "b", "c")).remarks())
    (line,) = MergeOptions(models=("a", "b"), ratios=(1.0, 0.5)).remarks()
    assert "make 1.5 together, not 1" in line
