"""LoRAs extracted from the difference of two models, by the script that users call."""

import gzip
import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from library.families.sd3 import checkpoint as sd3
from library.families.sd3.key_map import mmdit_to_diffusers
from library.families.unet import checkpoint as unets
from library.models.text_encoders import load_clip
from library.tensorfile import read_header
from networks import extract_lora_from_models, lora, lora_sd3, merge_lora, sd3_merge_lora, sdxl_merge_lora
from networks.weights import factors_by_name
from tests.tiny_unets import write_sd2_folder, write_sdxl_folder

DATA = Path(__file__).parent.parent / "golden" / "data"
KINDS = ("sd1", "sd2", "sdxl", "sd3")
ATTENTION = r"(proj_in|proj_out|transformer_blocks\..*\.(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))\.weight"
LAYERS = (  # of single files, whose weights a LoRA holds
    rf"model\.diffusion_model\.(input|middle|output)_block.*\.{ATTENTION}",
    r".*text_model\.encoder\.layers\.\d+\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12])\.weight",
    r".*transformer\.resblocks\.\d+\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_(fc|proj)\.weight)",
    r"model\.diffusion_model\.joint_blocks.*\.(attn2?\.(qkv|proj)|mlp\.fc[12]|adaLN_modulation\.1)\.weight",
)
CONVOLUTIONS = r".*block.*\.(in_layers\.2|out_layers\.3|emb_layers\.1|skip_connection|op|conv)\.weight"
RANK = 2
MERGING = {"sd1": merge_lora, "sd2": merge_lora, "sdxl": sdxl_merge_lora, "sd3": sd3_merge_lora}


def golden(name):
    return load(gzip.decompress((DATA / f"{name}.safetensors.gz").read_bytes()))


@pytest.fixture(scope="session")
def originals(tiny_unet_models, tiny_sd3_factory):
    return {**tiny_unet_models, "sd3": tiny_sd3_factory(variant="5-medium", dtype="fp32").model}


def tune(source, target, *patterns, strength=0.1, seed=0):
    """A copy of a model with a change of rank 2 in all weights of these names."""
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(source)
    for name, tensor in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            up = torch.randn(len(tensor), RANK, generator=draw)
            down = torch.randn(RANK, tensor[0].numel(), generator=draw) * strength
            tensors[name] = tensor + (up @ down).reshape(tensor.shape).to(tensor.dtype)
    save_file(tensors, target)
    return target


def live(kind, path):
    """(network module, denoiser, text encoders) in float32."""
    if kind != "sd3":
        files = unets.inspect_files(path, kinds=(kind,))
        encoders = [unets.load_encoder(files, name, torch.float32, "cpu") for name in files.encoders]
        return lora, unets.load_unet(files, torch.float32, "cpu"), encoders
    files = sd3.inspect_files(path)
    clips = [
        load_clip(sd3.read_part(part, dtype=torch.float32), kind=part.kind).eval()
        for part in (files.clip_l, files.clip_g)
    ]
    return lora_sd3, sd3.load_mmdit(files, torch.float32, "cpu"), [*clips, None]


def extract(original, tuned, target, *flags):
    arguments = ["--model_org", original, "--model_tuned", tuned, "--save_to", target, *flags]
    return extract_lora_from_models.main([str(argument) for argument in arguments])


def states(models):
    return {
        f"{i} {name}": tensor for i, model in enumerate(models) if model for name, tensor in model.state_dict().items()
    }


def assert_merged_is_tuned(kind, original, tuned, file):
    module, denoiser, encoders = live(kind, original)
    network, _ = module.create_network_from_weights(1.0, str(file), None, encoders, denoiser)
    network.merge_to(encoders, denoiser)
    _, other, others = live(kind, tuned)
    merged, expected = states([denoiser, *encoders]), states([other, *others])
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_an_extracted_lora_makes_the_original_the_tuned_model(kind, originals, tmp_path, capsys):
    tuned = tune(originals[kind], tmp_path / "tuned.safetensors", *LAYERS)
    file = tmp_path / "lora.safetensors"
    assert extract(originals[kind], tuned, file, "--clamp_quantile=1", f"--dim={RANK}") == 0
    log = capsys.readouterr().err
    assert "Frobenius norm retained: 100.00% of all" in log and "this LoRA does not hold" not in log
    assert any(name.startswith("lora_te") for name in load_file(file))
    assert_merged_is_tuned(kind, originals[kind], tuned, file)


def test_residual_blocks_are_held_with_conv_dim(originals, tmp_path):
    tuned = tune(originals["sdxl"], tmp_path / "tuned.safetensors", *LAYERS, CONVOLUTIONS)
    file = tmp_path / "lora.safetensors"
    flags = ("--clamp_quantile=1", f"--dim={RANK}", f"--conv_dim={RANK}", "--sdxl")
    assert extract(originals["sdxl"], tuned, file, *flags) == 0
    assert_merged_is_tuned("sdxl", originals["sdxl"], tuned, file)
    args = json.loads(read_header(file).metadata["ss_network_args"])
    assert args == {"conv_dim": "2", "conv_alpha": "2.0"} and lora.check_network_args(args)


def test_embedders_of_sd3_are_held_with_conv_dim(originals, tmp_path):
    ends = r"model\.diffusion_model\.((context|x|t|y)_embedder|final_layer).*\.weight"
    tuned = tune(originals["sd3"], tmp_path / "tuned.safetensors", ends)
    file = tmp_path / "lora.safetensors"
    assert extract(originals["sd3"], tuned, file, "--clamp_quantile=1", "--dim=2", "--conv_dim=2") == 0
    assert_merged_is_tuned("sd3", originals["sd3"], tuned, file)
    metadata = read_header(file).metadata
    args = lora_sd3.check_network_args(json.loads(metadata["ss_network_args"]))
    assert args.emb_dims == (2, 2, 2, 2, 2, 2) and metadata["ss_network_dim"] == "2"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_that_is_merged_by_its_script_comes_back(kind, originals, tmp_path):
    module, denoiser, encoders = live(kind, originals[kind])
    args = {"emb_dims": "2,2,2,2,2,2"} if kind == "sd3" else {"conv_dim": "2", "conv_alpha": "1"}
    network = module.create_network(1.0, 3, 2.0, None, encoders, denoiser, **args)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    source, merged, target = (tmp_path / f"{name}.safetensors" for name in ("lora", "merged", "extracted"))
    network.save_weights(str(source), None, {})
    merging = ["--sd_model", originals[kind], "--models", source, "--ratios", "-0.7", "--save_to", merged]
    assert MERGING[kind].main([*map(str, merging), "--save_precision=float"]) == 0
    assert (
        extract(originals[kind], merged, target, "--dim=3", "--conv_dim=3", "--clamp_quantile=1", "--min_diff=0") == 0
    )
    found, given = (factors_by_name(load_file(path), "lora") for path in (target, source))
    assert found.keys() == given.keys()
    for name, values in given.items():
        torch.testing.assert_close(found[name].delta(), -0.7 * values.delta(), atol=1e-5, rtol=1e-3, msg=name)


def test_the_model_that_it_is_for_is_known_from_the_model(originals, tmp_path):
    tuned = tune(originals["sd3"], tmp_path / "tuned.safetensors", r".*joint_blocks.*mlp\.fc1\.weight")
    assert extract(originals["sd3"], tuned, tmp_path / "a.safetensors", "--dim=2") == 0
    metadata = read_header(tmp_path / "a.safetensors").metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-3-5-medium/lora"
    assert metadata["ss_base_model_version"] == "5-medium"
    marked = tmp_path / "marked.safetensors"
    save_file(load_file(originals["sdxl"]) | {"v_pred": torch.zeros(0)}, marked)
    tuned = tune(marked, tmp_path / "tuned.safetensors", LAYERS[0])
    assert extract(marked, tuned, tmp_path / "b.safetensors", "--dim=2") == 0
    assert read_header(tmp_path / "b.safetensors").metadata["modelspec.prediction_type"] == "v"


@pytest.mark.parametrize("target", ["unet/diffusion_pytorch_model.safetensors", "new.safetensors", "blob"])
def test_no_file_of_a_model_is_replaced(target, originals, tmp_path, capsys):
    folder = tmp_path / "folder"
    write_sdxl_folder(folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_to, before = folder / target, weights.read_bytes()
    if target == "blob":  # a link leads out of the folder, as in a cache of the hub
        save_to = weights.rename(tmp_path / "blob.safetensors")
        weights.symlink_to(save_to)
    tuned = tune(originals["sdxl"], tmp_path / "tuned.safetensors", LAYERS[0])
    assert extract(folder, tuned, save_to, "--dim=2") == 2
    assert "--model_org" in capsys.readouterr().err.strip().splitlines()[-1]
    assert weights.read_bytes() == before and not (folder / "new.safetensors").exists()


@pytest.mark.parametrize("formats", [("bfloat16", "float16"), ("float32", "bfloat16")])
def test_rounding_to_two_formats_is_no_tuning(formats, originals, tmp_path, capsys):
    paths = []
    for name in formats:
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(
            {key: tensor.to(getattr(torch, name)) for key, tensor in load_file(originals["sdxl"]).items()}, paths[-1]
        )
    assert extract(*paths, tmp_path / "lora.safetensors", "--min_diff=0") == 2
    assert "nothing is written" in (log := capsys.readouterr().err) and "differ that" not in log


def test_t5_is_held_under_the_names_of_trained_files(originals, tmp_path):
    inside = r"encoder\.block\.\d+\.layer\.(0\.SelfAttention\.[qkvo]|1\..*\.w\w+)"
    layers = rf"text_encoders\.t5xxl\.transformer\.({inside})\.weight"
    tuned = tune(originals["sd3"], tmp_path / "tuned.safetensors", layers)
    file = tmp_path / "lora.safetensors"
    assert extract(originals["sd3"], tuned, file, "--clamp_quantile=1", "--dim=2") == 0
    before, after = load_file(originals["sd3"]), load_file(tuned)
    changes = {
        f"lora_te3_{match[1].replace('.', '_')}": after[name] - before[name]
        for name in before
        if (match := re.fullmatch(layers, name))
    }
    found = {name: values.delta() for name, values in factors_by_name(load_file(file), "extracted").items()}
    assert found.keys() == changes.keys() and found
    for name, change in changes.items():
        torch.testing.assert_close(found[name], change, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_golden_sd3_lora_that_is_added_comes_back(layout, tmp_path):
    """Layout: of the model that it was added to."""
    weights, file = golden("mmdit_weights_sd35_medium_like"), golden("lora_sd3_file")
    plain = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in weights.items()}
    own = {f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": name for name in plain}
    factors = factors_by_name(file, "golden")
    tuned = dict(plain)
    for name, values in factors.items():
        tuned[own[name]] = plain[own[name]].float() + values.delta()
    save_file({name: tensor.float() for name, tensor in plain.items()}, tmp_path / "base.safetensors")
    content = mmdit_to_diffusers(tuned) if layout == "diffusers" else tuned
    save_file({name: tensor.float().contiguous() for name, tensor in content.items()}, tmp_path / "tuned.safetensors")
    target = tmp_path / "lora.safetensors"
    flags = ("--clamp_quantile=1", "--dim=64", "--conv_dim=64")
    assert extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", target, *flags) == 0
    found = factors_by_name(load_file(target), "extracted")
    assert found.keys() == factors.keys()
    for name, values in factors.items():
        lost = (found[name].delta() - values.delta()).norm() / values.delta().norm()
        assert lost < 1e-5, name


def test_both_outputs_are_the_same(originals, tmp_path):
    tuned = tune(originals["sd1"], tmp_path / "tuned.safetensors", *LAYERS)
    assert extract(originals["sd1"], tuned, tmp_path / "lora.safetensors", "--clamp_quantile=1", "--dim=2") == 0
    module, unet, (clip,) = live("sd1", originals["sd1"])
    network, _ = module.create_network_from_weights(1.0, str(tmp_path / "lora.safetensors"), None, [clip], unet)
    _, other, (other_clip,) = live("sd1", tuned)
    x, ids = torch.randn(1, 4, 8, 8), torch.arange(77)[None]

    @torch.no_grad()
    def run(unet, clip):
        return unet(x, 500, clip.text_model(ids).last_hidden_state).sample

    before, wanted = run(unet, clip), run(other, other_clip)
    network.apply_to([clip], unet)
    after = run(unet, clip)
    assert (before - wanted).abs().max() > 0.05
    torch.testing.assert_close(after, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "write"), [("sd2", write_sd2_folder), ("sdxl", write_sdxl_folder)])
def test_the_same_model_in_two_layouts_has_no_difference(kind, write, originals, tmp_path, capsys):
    write(tmp_path / "folder")
    assert extract(originals[kind], tmp_path / "folder", tmp_path / "lora.safetensors") == 2
    log = capsys.readouterr().err
    assert "nothing is written" in log and "does not hold" not in log
    assert not (tmp_path / "lora.safetensors").exists()


def test_text_encoders_that_hardly_differ_are_left_out(originals, tmp_path, capsys):
    tuned = tune(originals["sd1"], tmp_path / "tuned.safetensors", *LAYERS, strength=1e-4)
    assert extract(originals["sd1"], tuned, tmp_path / "some.safetensors") == 0
    assert "text encoders are left out" in capsys.readouterr().err
    assert extract(originals["sd1"], tuned, tmp_path / "all.safetensors", "--min_diff=0") == 0
    few, all_of_them = load_file(tmp_path / "some.safetensors"), load_file(tmp_path / "all.safetensors")
    assert few.keys() == {name for name in all_of_them if not name.startswith("lora_te")}
    assert few.keys() < all_of_them.keys()


def test_what_no_lora_holds_is_told(originals, tmp_path, capsys):
    others = (r"model\.diffusion_model\..*\.norm1\.(weight|bias)", r".*\.time_embed\.[02]\.weight")
    tuned = tune(originals["sd1"], tmp_path / "tuned.safetensors", *LAYERS, *others, CONVOLUTIONS)
    without, within = (
        sum(any(re.fullmatch(pattern, name) for pattern in patterns) for name in load_file(tuned))
        for patterns in (others, (CONVOLUTIONS,))
    )
    assert extract(originals["sd1"], tuned, tmp_path / "lora.safetensors", "--dim=2") == 0
    log = capsys.readouterr().err
    assert re.search(f"{without} tensors differ that this LoRA does not hold.*No LoRA of ours has norms", log)
    assert re.search(f"{within} tensors differ that this LoRA does not hold.*Give --conv_dim", log)
    assert "--clamp_quantile 0.99 has changed" in log
    assert extract(originals["sd1"], tuned, tmp_path / "lora.safetensors", "--dim=2", "--conv_dim=2") == 0
    assert "Give --conv_dim" not in (log := capsys.readouterr().err) and f"{without} tensors differ" in log


def test_precisions_act(originals, tmp_path):
    tuned = tune(originals["sd1"], tmp_path / "tuned.safetensors", *LAYERS)
    flags = ("--dim=2", "--clamp_quantile=1", "--save_precision=fp16", "--no_metadata", "--v_parameterization")
    assert extract(originals["sd1"], tuned, tmp_path / "a.safetensors", *flags) == 0
    assert extract(originals["sd1"], tuned, tmp_path / "b.safetensors", *flags, "--load_precision=bf16") == 0
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert {tensor.dtype for name, tensor in one.items() if tensor.dim()} == {torch.float16}
    assert any(not torch.equal(one[name], other[name]) for name in one)
    metadata = read_header(tmp_path / "a.safetensors").metadata
    assert metadata["ss_v_parameterization"] == "True" and "sshs_model_hash" in metadata
    assert not [name for name in metadata if name.startswith("modelspec.")]


@pytest.mark.parametrize(
    ("org", "tuned", "flags", "words"),
    [
        ("sd1", "sdxl", (), "Give a model and what it was tuned to"),
        ("sd1", "sd1", ("--sdxl",), "--sdxl: --model_org"),
        ("sd1", "sd1", ("--v2",), "Leave out --v2"),
        ("sd3", "sd3", ("--v_parameterization",), "predicts a flow"),
        ("sd1", "sd1", ("--clamp_quantile=2",), "--clamp_quantile"),
        ("sd1", "sd1", ("--device=cuda:77",), "there is no such device"),
        ("sd1", "sd1", ("--load_original_model_to=gpu7",), "--load_original_model_to gpu7: there is no such device"),
        ("sd1", "sd1", ("--load_tuned_model_to=cuda:77",), "--load_tuned_model_to cuda:77: there is no such device"),
        ("lora", "sd1", (), "--model_org"),
        ("missing", "sd1", (), "--model_org"),
        ("sd1", "cut", (), "--model_tuned"),
    ],
)
def test_wrong_models_are_one_sentence(org, tuned, flags, words, originals, tmp_path, capsys):
    paths = {**originals, "missing": tmp_path / "missing.safetensors", "lora": tmp_path / "lora.safetensors"}
    save_file(golden("lora_sd3_file"), paths["lora"])
    paths["cut"] = tmp_path / "cut.safetensors"
    paths["cut"].write_bytes(originals["sd1"].read_bytes()[:-1000])
    assert extract(paths[org], paths[tuned], tmp_path / "out.safetensors", *flags) in (2, 3)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line and line.startswith("error: ")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_ckpt_is_read_without_running_it(originals, tmp_path, capsys):
    tuned = tune(originals["sd1"], tmp_path / "tuned.safetensors", *LAYERS)
    torch.save({"state_dict": load_file(tuned), "hyper": Namespace(a=1)}, tmp_path / "tuned.ckpt")
    flags = ("--dim=2", "--clamp_quantile=1")
    assert extract(originals["sd1"], tmp_path / "tuned.ckpt", tmp_path / "a.safetensors", *flags) == 2
    assert "--allow_pickle" in capsys.readouterr().err
    assert extract(originals["sd1"], tmp_path / "tuned.ckpt", tmp_path / "a.safetensors", *flags, "--allow_pickle") == 0
    assert extract(originals["sd1"], tuned, tmp_path / "b.safetensors", *flags) == 0
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_text_encoder_that_one_model_lacks_is_told(originals, tmp_path, capsys):
    tuned = tune(originals["sd3"], tmp_path / "tuned.safetensors", *LAYERS)
    save_file({name: t for name, t in load_file(tuned).items() if "t5xxl" not in name}, tuned)
    assert extract(originals["sd3"], tuned, tmp_path / "lora.safetensors", "--dim=2") == 0
    assert f"only {originals['sd3']} has the text encoder of lora_te3" in capsys.readouterr().err


def test_embeddings_are_told_even_where_text_encoders_are_left_out(originals, tmp_path, capsys):
    embeddings = r".*token_embedding\.weight"
    tuned = tune(originals["sdxl"], tmp_path / "tuned.safetensors", LAYERS[0], embeddings)
    assert extract(originals["sdxl"], tuned, tmp_path / "lora.safetensors", "--dim=2") == 0
    assert "2 tensors differ that this LoRA does not hold" in capsys.readouterr().err
    assert all(name.startswith("lora_unet_") for name in load_file(tmp_path / "lora.safetensors"))
