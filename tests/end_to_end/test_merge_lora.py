"""LoRAs merged by the scripts do what they do beside the model, in every family and in every way of merging."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.checkpoint.metadata_copy import copy_with_metadata
from library.tensorfile import read_header
from networks import extract_lora_from_models, merge_lora, oft, sd3_merge_lora, sdxl_merge_lora, svd_merge_lora
from tests import tiny_unets
from tests.live_loras import change, live_outputs, make_network, names_of, outputs, read_model

KINDS = ("sd1", "sd2", "sdxl", "sd3")
SCRIPTS = {"sd1": merge_lora, "sd2": merge_lora, "sdxl": sdxl_merge_lora, "sd3": sd3_merge_lora}
TOLERANCE = {"atol": 3e-5, "rtol": 1e-4}
RATIOS = (0.7, -1.3)


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory, tiny_sd3_factory):
    """A model, two LoRA files for it, and what it gives with both of them attached."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind == "sd3":
        path = tiny_sd3_factory(variant="5-medium", dtype="fp32").model
    else:
        path = getattr(tiny_unets, f"write_{kind}")(folder / "model").path
    model = read_model(kind, path)
    base = outputs(*model)
    files, networks = [], []
    for rank, seed, ratio in ((4, 1, RATIOS[0]), (2, 2, RATIOS[1])):
        networks.append(make_network(kind, model, rank, seed, ratio))
        files.append(folder / f"lora_{rank}.safetensors")
        networks[-1].save_weights(str(files[-1]), None, {"ss_seed": "1"})
    live = [live_outputs(model, networks[:1]), live_outputs(model, networks)]
    return SimpleNamespace(kind=kind, path=path, files=files, base=base, live=live, script=SCRIPTS[kind])


def run(script, *arguments):
    assert script.main([str(argument) for argument in arguments]) == 0


def refused(script, capsys, *arguments):
    """The sentence of a run that ends with code 2."""
    capsys.readouterr()
    assert script.main([str(argument) for argument in arguments]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and told.count("\n") == 1
    return told


def assert_close(found, wanted, **tolerance):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **(tolerance or TOLERANCE))


def differs(found, others):
    return all((one - other).abs().max() > 1e-3 for one, other in zip(found, others, strict=True))


def into_model(case, target, files, ratios, *more):
    run(case.script, "--sd_model", case.path, "--models", *files, "--ratios", *ratios, "--save_to", target, *more)


def merged_outputs(case, target, files, ratios):
    into_model(case, target, files, ratios)
    return outputs(*read_model(case.kind, target))


def exact_sum(files, ratios, step=1):
    """Of every `step`th module."""
    loaded = [load_file(file) for file in files]
    names = sorted(set().union(*map(names_of, loaded)))[::step]
    pairs = list(zip(loaded, ratios, strict=True))
    return {name: sum(ratio * change(m, name) for m, ratio in pairs if f"{name}.alpha" in m) for name in names}


# Into a model


@pytest.mark.parametrize("number", [1, 2])
def test_a_merged_model_does_what_the_adapters_do(case, number, tmp_path):
    merged = merged_outputs(case, tmp_path / "m.safetensors", case.files[:number], RATIOS[:number])
    assert differs(case.live[number - 1], case.base)
    assert_close(merged, case.live[number - 1])


def test_what_no_lora_touches_is_kept_byte_for_byte(case, tmp_path):
    network = load_file(case.files[0])
    one = sorted(names_of(network))[-1]
    save_file(
        {key: tensor for key, tensor in network.items() if key.startswith(f"{one}.")}, tmp_path / "one.safetensors"
    )
    into_model(case, tmp_path / "m.safetensors", [tmp_path / "one.safetensors"], [1.0])
    before, after = load_file(case.path), load_file(tmp_path / "m.safetensors")
    assert before.keys() == after.keys() and len(before) > 100
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert len(changed) == 1 and before[changed[0]].dtype == after[changed[0]].dtype


def test_taking_away_what_was_merged_gives_the_model_back(case, tmp_path):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    into_model(case, there, case.files[1:], [0.8])
    run(case.script, "--sd_model", there, "--models", case.files[1], "--ratios", -0.8, "--save_to", back)
    before, after = load_file(case.path), load_file(back)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_lora_of_another_family_is_refused_and_nothing_is_written(case, tmp_path, capsys):
    foreign = tmp_path / "foreign.safetensors"
    name = (
        "lora_unet_double_blocks_0_img_attn_qkv" if case.kind == "sd3" else "lora_unet_joint_blocks_0_x_block_attn_qkv"
    )
    save_file({f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}, foreign)
    rest = ("--ratios", 1.0, "--save_to", tmp_path / "m.safetensors")
    told = refused(case.script, capsys, "--sd_model", case.path, "--models", foreign, *rest)
    assert str(foreign) in told and ("FLUX" if case.kind == "sd3" else "SD3") in told
    assert not (tmp_path / "m.safetensors").exists()


def test_numbers_that_are_none_are_refused_and_nothing_is_written(case, tmp_path, capsys):
    tensors = load_file(case.files[0])
    name = next(key for key in tensors if key.endswith(".lora_up.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    rest = ("--ratios", 1.0, "--save_to", tmp_path / "m.safetensors")
    told = refused(case.script, capsys, "--sd_model", case.path, "--models", tmp_path / "nan.safetensors", *rest)
    assert "NaN" in told and name.split(".")[0] in told and not (tmp_path / "m.safetensors").exists()


def test_a_lora_of_another_size_is_refused(case, tmp_path, capsys):
    tensors = {k: torch.cat([t, t]) if k.endswith("lora_up.weight") else t for k, t in load_file(case.files[0]).items()}
    save_file(tensors, tmp_path / "wide.safetensors")
    rest = ("--ratios", 1.0, "--save_to", tmp_path / "m.safetensors")
    told = refused(case.script, capsys, "--sd_model", case.path, "--models", tmp_path / "wide.safetensors", *rest)
    assert "another size of model" in told and not (tmp_path / "m.safetensors").exists()


def test_a_merged_model_says_what_it_was_made_of(case, tmp_path):
    into_model(case, tmp_path / "m.safetensors", case.files, (1, 0.5))
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        said = file.metadata()
    assert said["modelspec.merged_from"] == f"{case.path.stem}, lora_4 (1), lora_2 (0.5)"
    assert said["modelspec.title"] == "m" and said["modelspec.architecture"].startswith("stable-diffusion-")
    into_model(case, tmp_path / "n.safetensors", case.files[:1], (1,), "--no_metadata")
    with safe_open(tmp_path / "n.safetensors", "pt") as file:
        assert not file.metadata()


def test_a_lora_for_models_that_predict_something_else_is_told_and_the_model_is_believed(tmp_path, capsys):
    model, network = tiny_unets.write_sd1(tmp_path / "model").path, tmp_path / "v.safetensors"
    saved = make_network("sd1", read_model("sd1", model), 2, 1)
    saved.save_weights(str(network), None, {"modelspec.prediction_type": "v"})
    rest = ("--models", network, "--ratios", 1, "--save_to", tmp_path / "m.safetensors")
    for said, is_told in (("epsilon", True), ("v", False)):
        own = tmp_path / f"{said}.model.safetensors"
        copy_with_metadata(read_header(model), own, {"modelspec.prediction_type": said})
        run(merge_lora, "--sd_model", own, *rest)
        assert ("is for models that predict the velocity" in capsys.readouterr().err) is is_told
        assert read_header(tmp_path / "m.safetensors").metadata["modelspec.prediction_type"] == said


# With each other


def test_concat_is_the_exact_sum(case, tmp_path):
    target = tmp_path / "m.safetensors"
    run(case.script, "--models", *case.files, "--ratios", *RATIOS, "--save_to", target, "--concat", "--shuffle")
    wanted, found = exact_sum(case.files, RATIOS, 9), load_file(target)
    assert names_of(found) == names_of(load_file(case.files[0])) | names_of(load_file(case.files[1]))
    for name, tensor in wanted.items():
        torch.testing.assert_close(change(found, name), tensor, atol=1e-6, rtol=1e-4)
    assert_close(merged_outputs(case, tmp_path / "n.safetensors", [target], [1.0]), case.live[1])


def test_one_file_is_only_scaled(case, tmp_path):
    run(case.script, "--models", case.files[0], "--ratios", -0.5, "--save_to", tmp_path / "m.safetensors")
    source, found = load_file(case.files[0]), load_file(tmp_path / "m.safetensors")
    for name in names_of(source):
        assert torch.equal(found[f"{name}.lora_down.weight"], source[f"{name}.lora_down.weight"])
        torch.testing.assert_close(change(found, name), -0.5 * change(source, name))


def test_the_plain_way_is_the_nearest_of_the_rank_of_the_largest(case, tmp_path, capsys):
    run(case.script, "--models", *case.files, "--ratios", *RATIOS, "--save_to", tmp_path / "m.safetensors")
    assert "of the sum's norm" in capsys.readouterr().err
    wanted, found = exact_sum(case.files, RATIOS, 9), load_file(tmp_path / "m.safetensors")
    first, second = (load_file(file) for file in case.files)
    for name, tensor in wanted.items():
        both = [len(m[f"{name}.lora_down.weight"]) for m in (first, second) if f"{name}.alpha" in m]
        assert len(found[f"{name}.lora_down.weight"]) <= max(both)
        left = torch.linalg.svdvals(tensor)[max(both) :].square().sum().sqrt()
        assert (change(found, name) - tensor).norm() <= left * 1.001 + 1e-5


def test_svd_of_full_rank_is_the_sum_and_of_less_the_nearest(case, tmp_path, capsys):
    options = ("--models", *case.files, "--ratios", *RATIOS, "--save_to")
    run(svd_merge_lora, *options, tmp_path / "full.safetensors", "--new_rank", 32)
    assert "keeps 100.0 % of" in capsys.readouterr().err
    run(svd_merge_lora, *options, tmp_path / "low.safetensors", "--new_rank", 2, "--new_conv_rank", 1)
    wanted = exact_sum(case.files, RATIOS, 9)
    full, low = load_file(tmp_path / "full.safetensors"), load_file(tmp_path / "low.safetensors")
    for name, tensor in wanted.items():
        torch.testing.assert_close(change(full, name), tensor, atol=1e-5, rtol=1e-3)
        down = low[f"{name}.lora_down.weight"]
        rank = 1 if down.dim() == 4 and down.shape[2:].numel() > 1 else 2
        assert len(down) == rank == low[f"{name}.alpha"]
        left = torch.linalg.svdvals(tensor)[rank:].square().sum().sqrt()
        assert (change(low, name) - tensor).norm() == pytest.approx(float(left), rel=1e-3, abs=1e-5)


def test_a_merged_lora_says_what_it_is(case, tmp_path):
    run(svd_merge_lora, "--models", *case.files, "--ratios", 1, 1, "--save_to", tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        said = file.metadata()
    assert said["modelspec.merged_from"] == "lora_4, lora_2" and said["modelspec.architecture"].endswith("/lora")
    assert said["ss_network_dim"] in ("4", "Dynamic") and len(said["sshs_model_hash"]) == 64


# Special cases


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_merged_model_opens_in_diffusers(kind, tmp_path):
    path = getattr(tiny_unets, f"write_{kind}")(tmp_path / "model").path
    folder = getattr(tiny_unets, f"write_{kind}_folder")(tmp_path / "folder").path
    model = read_model(kind, path)
    network = make_network(kind, model, 4, 1)
    network.save_weights(str(tmp_path / "lora.safetensors"), None, {})
    live = live_outputs(model, [network])
    rest = ("--models", tmp_path / "lora.safetensors", "--ratios", 1, "--save_to", tmp_path / "merged.safetensors")
    run(merge_lora, "--sd_model", path, *rest)
    pipeline_class = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    pipeline = pipeline_class.from_single_file(
        str(tmp_path / "merged.safetensors"), config=str(folder), local_files_only=True
    )
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if kind == "sdxl" else [])]
    assert_close(outputs(pipeline.unet, encoders), live, atol=1e-4, rtol=1e-3)


def test_oft_is_merged_at_its_ratio(tmp_path, ratio=0.4):
    path = tiny_unets.write_sdxl(tmp_path / "model").path
    model = read_model("sdxl", path)
    network = oft.create_network(ratio, 4, 0.1, None, [], model[0], enable_conv="True").eval()
    draw = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    network.save_weights(str(tmp_path / "oft.safetensors"), None, {})
    live = live_outputs(model, [network])
    rest = ("--ratios", ratio, "--save_to", tmp_path / "m.safetensors")
    run(sdxl_merge_lora, "--sd_model", path, "--models", tmp_path / "oft.safetensors", *rest)
    assert_close(outputs(*read_model("sdxl", tmp_path / "m.safetensors")), live)


def test_lists_of_block_weights_act_once(tmp_path):
    path = tiny_unets.write_sdxl(tmp_path / "model").path
    model = read_model("sdxl", path)
    make_network("sdxl", model, 4, 1).save_weights(str(tmp_path / "lora.safetensors"), None, {})
    weights = [0.5, *[1] * 9, 0, *[0.25] * 9]
    options = ("--models", tmp_path / "lora.safetensors", "--ratios", 2, "--lbws", json.dumps(weights), "--save_to")
    run(sdxl_merge_lora, *options, tmp_path / "m.safetensors")
    source, found = load_file(tmp_path / "lora.safetensors"), load_file(tmp_path / "m.safetensors")
    wanted = {"lora_te1_": 0.5, "lora_te2_": 0.5, "lora_unet_input_blocks_": 1, "lora_unet_output_blocks_": 0.25}
    assert names_of(found) == {name for name in names_of(source) if "middle_block" not in name} < names_of(source)
    for name in names_of(found):
        weight = next(weight for start, weight in wanted.items() if name.startswith(start))
        torch.testing.assert_close(change(found, name), 2 * weight * change(source, name))


def test_a_model_without_a_text_encoder_is_told_or_merged_without_it(tmp_path, tiny_sd3_factory, capsys):
    bundled = tiny_sd3_factory(variant="5-medium", dtype="fp32").model
    alone = tiny_sd3_factory(variant="5-medium", dtype="fp32", bundle=False).model
    make_network("sd3", read_model("sd3", bundled), 4, 1).save_weights(str(tmp_path / "lora.safetensors"), None, {})
    rest = ("--models", tmp_path / "lora.safetensors", "--ratios", 1, "--save_to", tmp_path / "m.safetensors")
    told = refused(sd3_merge_lora, capsys, "--sd_model", alone, *rest)
    assert "CLIP-L" in told and "--skip_text_encoders" in told
    run(sd3_merge_lora, "--sd_model", alone, *rest, "--skip_text_encoders")
    merged = load_file(tmp_path / "m.safetensors")
    run(sd3_merge_lora, "--sd_model", bundled, *rest)
    whole = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in merged.items())


def test_another_precision_holds_for_all_weights_and_fp8_needs_one(tmp_path, capsys):
    path = tiny_unets.write_sd1(tmp_path / "model").path
    model = read_model("sd1", path)
    make_network("sd1", model, 4, 1).save_weights(str(tmp_path / "lora.safetensors"), None, {})
    rest = ("--models", tmp_path / "lora.safetensors", "--ratios", 1, "--save_to", tmp_path / "m.safetensors")
    run(merge_lora, "--sd_model", path, *rest, "--save_precision", "bf16")
    found, source = load_file(tmp_path / "m.safetensors"), load_file(path)
    networks = {name for name, tensor in source.items() if "." in name and tensor.is_floating_point() and tensor.dim()}
    assert {found[name].dtype for name in networks} == {torch.bfloat16}
    assert all(torch.equal(found[name], source[name]) for name in source.keys() - networks)
    (tmp_path / "m.safetensors").unlink()
    narrow = {n: t.to(torch.float8_e4m3fn) if n in networks and t.dim() > 1 else t for n, t in source.items()}
    save_file(narrow, tmp_path / "fp8.safetensors")
    told = refused(merge_lora, capsys, "--sd_model", tmp_path / "fp8.safetensors", *rest)
    assert "fp8" in told and "--save_precision" in told and not (tmp_path / "m.safetensors").exists()
    run(merge_lora, "--sd_model", tmp_path / "fp8.safetensors", *rest, "--save_precision", "fp16")
    assert load_file(tmp_path / "m.safetensors").keys() == source.keys()


def test_a_weight_in_fp8_with_a_scale_is_read_as_what_it_means(tmp_path):
    source = load_file(tiny_unets.write_sd1(tmp_path / "model").path)
    layer = "model.diffusion_model.middle_block.1.proj_out"
    narrow = (source[f"{layer}.weight"] * 8).to(torch.float8_e4m3fn)
    marks = {f"{layer}.scale_weight": torch.tensor(0.125), "model.diffusion_model.scaled_fp8": narrow.new_empty(0)}
    save_file(source | marks | {f"{layer}.weight": narrow}, tmp_path / "fp8.safetensors")
    outputs, inputs = narrow.shape[:2]
    lora_name, down, up = "lora_unet_mid_block_attentions_0_proj_out", torch.ones(1, inputs), torch.ones(outputs, 1)
    save_file({f"{lora_name}.lora_down.weight": down, f"{lora_name}.lora_up.weight": up}, tmp_path / "l.safetensors")
    rest = ("--models", tmp_path / "l.safetensors", "--ratios", 0.5, "--save_to", tmp_path / "m.safetensors")
    run(merge_lora, "--sd_model", tmp_path / "fp8.safetensors", *rest, "--save_precision", "float")
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == source.keys()
    torch.testing.assert_close(found[f"{layer}.weight"], narrow.float() / 8 + 0.5)


def test_a_pickle_becomes_a_pickle(tmp_path):
    path = tiny_unets.write_sd2(tmp_path / "model").path
    torch.save({"state_dict": load_file(path)}, tmp_path / "model.ckpt")
    model = read_model("sd2", path)
    network = make_network("sd2", model, 4, 1)
    network.save_weights(str(tmp_path / "lora.safetensors"), None, {})
    rest = ("--models", tmp_path / "lora.safetensors", "--ratios", 1, "--save_to", tmp_path / "m.ckpt")
    run(merge_lora, "--sd_model", tmp_path / "model.ckpt", *rest)
    assert_close(outputs(*read_model("sd2", tmp_path / "m.ckpt")), live_outputs(model, [network]))


@pytest.mark.parametrize("case", ["sd1", "sd3"], indirect=True)
def test_a_merged_lora_comes_out_of_the_model_again(case, tmp_path):
    merged, found = tmp_path / "merged.safetensors", tmp_path / "found.safetensors"
    into_model(case, merged, case.files[:1], [0.7])
    ranks = ("--dim", 12, "--conv_dim", 3)  # 12 for SD3: one module where the LoRA has three of rank 4
    rest = ("--save_to", found, "--clamp_quantile", 1, "--min_diff", 0, *ranks)
    run(extract_lora_from_models, "--model_org", case.path, "--model_tuned", merged, *rest)
    source, again = load_file(case.files[0]), load_file(found)
    assert names_of(again) == names_of(source)
    for name in names_of(source):
        torch.testing.assert_close(change(again, name), 0.7 * change(source, name), atol=1e-5, rtol=1e-3)
