"""Merging where numbers are odd: too large, all zeros, of 8 bits, averaged; and what options about numbers do."""

from argparse import Namespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.families.lora_layout import LoraPair
from library.loras.lora_file import lora_tensors, read_lora
from library.loras.merging import reduced, share_lost
from networks import check_lora_weights, merge_lora, svd_merge_lora

LAYER = "lora_unet_down_blocks_{}_attentions_{}_proj_in"
FIRST, SECOND = LAYER.format(0, 0), LAYER.format(0, 1)
SIZE = 8


def drawn(seed, rank=3, scale=0.5):
    draw = torch.Generator().manual_seed(seed)
    return LoraPair(torch.randn(rank, SIZE, generator=draw), torch.randn(SIZE, rank, generator=draw), scale)


def delta(pair):
    return pair.scale * pair.up.double() @ pair.down.double()


def write(path, modules, metadata=None, **more):
    save_file({k: t.contiguous() for k, t in (lora_tensors(modules, "sd") | more).items()}, path, metadata)
    return path


def weights(seed=0, factor=1.0):
    """A part of a U-Net of SD1, enough to be known as one."""
    draw = torch.Generator().manual_seed(seed)
    layers = {
        f"model.diffusion_model.input_blocks.{i}.1.proj_in.weight": factor * torch.randn(SIZE, SIZE, generator=draw)
        for i in (1, 2, 4, 5, 7, 8)
    }
    return layers | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}


@pytest.fixture
def model(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def lora(tmp_path):
    return write(tmp_path / "lora.safetensors", {FIRST: drawn(1), SECOND: drawn(2)})


def run(capsys, script, *arguments, code=0):
    capsys.readouterr()
    found = script.main([str(argument) for argument in arguments])
    told = capsys.readouterr().err
    assert found == code and "Traceback" not in told, told
    return told


def merge(capsys, target, *models, ratios=(1,), more=(), script=merge_lora, code=0):
    """What is told; a merge that fails writes nothing."""
    arguments = ("--models", *models, "--ratios", *ratios, "--save_to", target, *more)
    told = run(capsys, script, *arguments, code=code)
    assert target.exists() == (code == 0)
    return told


def is_of_precision(tensor, dtype):
    return torch.equal(tensor, tensor.to(dtype).to(tensor.dtype))


# Files


def test_fp8_is_read_as_the_numbers_that_it_means(lora, model, tmp_path, capsys):
    narrow, wide = tmp_path / "narrow.safetensors", tmp_path / "wide.safetensors"
    tensors = {k: t.to(torch.float8_e4m3fn) if t.dim() else t for k, t in load_file(lora).items()}
    save_file(tensors, narrow)
    save_file({k: t.float() for k, t in tensors.items()}, wide)
    for script, more in ((merge_lora, ()), (merge_lora, ("--sd_model", model)), (svd_merge_lora, ())):
        found = []
        for source in (narrow, wide):
            target = tmp_path / f"{source.stem}_out.safetensors"
            merge(capsys, target, source, source, ratios=(0.5, 0.25), more=more, script=script)
            found.append(load_file(target))
        for name, tensor in found[1].items():
            torch.testing.assert_close(found[0][name].float(), tensor, atol=2e-3, rtol=2e-3)
    assert read_lora(narrow, "--models").modules[FIRST].down.dtype == torch.float16
    run(capsys, check_lora_weights, narrow)


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("alpha", torch.ones(3), "alpha has 3 numbers instead of one"),
        ("lora_up.weight", torch.ones(SIZE, 3, dtype=torch.int8), "is stored as integers"),
        ("lora_down.weight", None, "has one of its two factors only"),
        ("lora_down.weight", torch.ones(0, SIZE), "has a factor without ranks"),
        ("lora_down.weight", torch.ones(()), "has a factor without ranks"),
    ],
)
def test_a_damaged_module_is_named(name, tensor, told, lora, tmp_path, capsys):
    tensors = load_file(lora) | {f"{FIRST}.{name}": tensor}
    bad = tmp_path / "bad.safetensors"
    save_file({key: value for key, value in tensors.items() if value is not None}, bad)
    found = merge(capsys, tmp_path / "out.safetensors", bad, code=2)
    assert FIRST in found and told in found and found.count("\n") == 1


def test_files_of_models_that_predict_different_things_are_told(tmp_path, capsys):
    files = {
        kind: write(tmp_path / f"{kind}.safetensors", {FIRST: drawn(i)}, {"modelspec.prediction_type": kind})
        for i, kind in enumerate(("v", "epsilon"))
    }
    target = tmp_path / "out.safetensors"
    for first, second in (("v", "epsilon"), ("epsilon", "v")):
        told = merge(capsys, target, files[first], files[second], ratios=(1, 1))
        assert f"{files[first]}: {first}, {files[second]}: {second}" in told
        with safe_open(target, "pt") as file:
            assert file.metadata()["modelspec.prediction_type"] == first
        target.unlink()
    assert "predict different things" not in merge(capsys, target, files["v"], files["v"], ratios=(1, 0.5))


# Numbers that are too large, and none at all


@pytest.mark.parametrize("script", [merge_lora, svd_merge_lora])
@pytest.mark.parametrize(("ratios", "precision"), [((1e10, 1), "fp16"), ((1e300, 1), "float"), ((1e200, 1), "float")])
def test_sums_that_are_too_large_are_refused(script, ratios, precision, lora, tmp_path, capsys):
    more, target = ("--precision", precision), tmp_path / "out.safetensors"
    assert "--ratios" in merge(capsys, target, lora, lora, ratios=ratios, more=more, script=script, code=5)


def test_one_file_at_a_ratio_that_is_too_large_is_refused(lora, tmp_path, capsys):
    told = merge(capsys, tmp_path / "out.safetensors", lora, ratios=(1e60,), code=5)
    assert "float32 cannot hold. Lower --ratios" in told


@pytest.mark.parametrize(
    ("ratio", "more"), [(1e5, ("--precision", "fp16")), (1e39, ()), (1e300, ())], ids=["fp16", "float", "any"]
)
def test_a_model_with_numbers_that_are_none_is_not_written(ratio, more, lora, model, tmp_path, capsys):
    told = merge(capsys, tmp_path / "out.safetensors", lora, ratios=(ratio,), code=5, more=("--sd_model", model, *more))
    assert "cannot hold" in told or "no format can hold" in told
    assert "--ratios" in told


@pytest.mark.parametrize(
    ("script", "is_into_model"), [(merge_lora, True), (merge_lora, False), (svd_merge_lora, False)]
)
def test_a_merge_of_nothing_is_refused(script, is_into_model, lora, model, tmp_path, capsys):
    more = ("--sd_model", model) if is_into_model else ()
    zero = write(tmp_path / "zero.safetensors", {FIRST: LoraPair(torch.ones(2, SIZE), torch.zeros(SIZE, 2), 1.0)})
    target = tmp_path / "out.safetensors"
    assert "all zeros" in merge(capsys, target, zero, more=more, script=script, code=2)
    away = {"more": more, "script": script, "code": 2}
    assert "take each other away" in merge(capsys, target, lora, lora, ratios=(0.7, -0.7), **away)


def test_tensors_that_stay_what_they_were_are_not_counted_as_changed(model, tmp_path, capsys):
    zero = LoraPair(torch.ones(2, SIZE), torch.zeros(SIZE, 2), 1.0)
    half = write(tmp_path / "half.safetensors", {FIRST: drawn(1), SECOND: zero})
    told = merge(capsys, tmp_path / "out.safetensors", half, more=("--sd_model", model))
    assert "1 of 7 tensors changed" in told and "of 2 tensors that LoRAs are merged into, 1 stay" in told
    before, after = load_file(model), load_file(tmp_path / "out.safetensors")
    assert sum(not torch.equal(before[name], after[name]) for name in before) == 1


def test_averaged_weights_get_the_same_change(lora, tmp_path, capsys):
    own, average = weights(), {}
    for name, tensor in weights(1).items():
        average["model_ema." + name.removeprefix("model.").replace(".", "")] = tensor
    save_file(own | average | {"model_ema.decay": torch.tensor(0.9)}, tmp_path / "model.safetensors")
    merge(capsys, tmp_path / "out.safetensors", lora, more=("--sd_model", tmp_path / "model.safetensors"))
    found = load_file(tmp_path / "out.safetensors")
    for block, seed in ((1, 1), (2, 2)):
        twin = f"model_ema.diffusion_modelinput_blocks{block}1proj_inweight"
        torch.testing.assert_close(found[twin] - average[twin], delta(drawn(seed)).float(), atol=1e-5, rtol=1e-5)
    assert found["model_ema.decay"] == torch.tensor(0.9)


# Options about numbers


def test_shuffled_ranks_are_in_another_order(lora, tmp_path, capsys):
    plain, mixed = tmp_path / "plain.safetensors", tmp_path / "mixed.safetensors"
    other = write(tmp_path / "other.safetensors", {FIRST: drawn(5, rank=9)})
    for target, more in ((plain, ("--concat",)), (mixed, ("--concat", "--shuffle"))):
        merge(capsys, target, lora, other, ratios=(1, 1), more=more)
    one, two = (read_lora(path, "--models").modules[FIRST] for path in (plain, mixed))
    assert not torch.equal(one.down, two.down)
    assert torch.equal(one.down[one.down[:, 0].argsort()], two.down[two.down[:, 0].argsort()])
    torch.testing.assert_close(delta(two), delta(one))


@pytest.mark.parametrize(
    ("script", "more"), [(merge_lora, ("--concat",)), (merge_lora, ()), (svd_merge_lora, ("--new_rank", "8"))]
)
def test_a_precision_is_that_of_the_computation(script, more, lora, tmp_path, capsys):
    other = write(tmp_path / "other.safetensors", {FIRST: drawn(5, rank=8), SECOND: drawn(6, rank=8)})
    wanted, found = 0.7 * delta(drawn(1)) + 0.3 * delta(drawn(5, rank=8)), {}
    for precision in ("float", "bf16"):
        target = tmp_path / f"{precision}.safetensors"
        merge(capsys, target, lora, other, ratios=(0.7, 0.3), script=script, more=(*more, "--precision", precision))
        found[precision] = delta(read_lora(target, "--models").modules[FIRST])
    errors = {precision: float((each - wanted).norm() / wanted.norm()) for precision, each in found.items()}
    assert errors["float"] < 1e-5 and 3e-4 < errors["bf16"] < 2e-2


def test_a_precision_holds_for_sums_with_weights_of_a_model(lora, model, tmp_path, capsys):
    for precision, dtype in (("float", torch.float32), ("bf16", torch.bfloat16)):
        target = tmp_path / f"{precision}.safetensors"
        merge(capsys, target, lora, more=("--sd_model", model, "--precision", precision))
        changed = load_file(target)["model.diffusion_model.input_blocks.1.1.proj_in.weight"]
        assert is_of_precision(changed, torch.bfloat16) == (dtype == torch.bfloat16)


def test_a_clamp_says_how_far_from_the_sum_it_leads(lora, tmp_path, capsys):
    pair = drawn(3)
    found = reduced(pair, 3, clamp=0.8)
    away = float((delta(found.pair) - delta(pair)).norm() / delta(pair).norm())
    assert away > 0.05 and share_lost([found]) == pytest.approx(away, rel=1e-5)
    more = ("--clamp_quantile", "0.8")
    assert "differs from the sum by" in merge(
        capsys, tmp_path / "o.safetensors", lora, more=more, script=svd_merge_lora
    )


def test_a_model_that_asks_for_more_than_weights_needs_leave(lora, tmp_path, capsys):
    torch.save({"state_dict": weights(), "args": Namespace(lr=1)}, tmp_path / "model.ckpt")
    more, target = ("--sd_model", tmp_path / "model.ckpt"), tmp_path / "out.safetensors"
    assert "--allow_pickle" in merge(capsys, target, lora, more=more, code=2)
    merge(capsys, target, lora, more=(*more, "--allow_pickle"))


# Where it is written


@pytest.mark.parametrize("script", [merge_lora, svd_merge_lora])
def test_a_place_where_no_file_can_be_is_refused_at_once(script, lora, tmp_path, capsys):
    folder, missing = tmp_path / "folder.safetensors", tmp_path / "none.safetensors"
    folder.mkdir()
    start = ("--models", missing, "--ratios", 1, "--save_to")  # told before the sources are looked at
    assert "is a folder" in run(capsys, script, *start, folder, code=2)
    assert "no file can be written there" in run(capsys, script, *start, lora / "out.safetensors", code=5)


def test_an_ending_may_be_in_capitals(lora, model, tmp_path, capsys):
    for more in ((), ("--sd_model", model)):
        merge(capsys, tmp_path / "OUT.SAFETENSORS", lora, more=more)
        assert load_file(tmp_path / "OUT.SAFETENSORS")
        merge(capsys, tmp_path / "OUT.CKPT", lora, more=more)
        assert torch.load(tmp_path / "OUT.CKPT", weights_only=True)


def test_a_preset_of_another_family_is_told_as_one(tmp_path, capsys):
    sdxl = write(tmp_path / "sdxl.safetensors", {"lora_unet_input_blocks_4_1_proj_in": drawn(0)})
    told = merge(capsys, tmp_path / "out.safetensors", sdxl, more=("--lbws", "INS"), code=2)
    assert "which are for SD1 and SD2" in told
