import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.families.lora_layout import LoraPair, fold
from library.loras import alpha_notes
from library.loras.consumers.layers import layers_of, mmdit_depth
from library.loras.converting import DIFFUSERS, KOHYA, NATIVE, Form, converted
from library.loras.lora_file import lora_tensors, read_lora
from library.tensorfile import read_header

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
FULL = [
    *(("sd15", "conv_dim"), ("sd21", "conv_dim"), ("sdxl", "conv_dim"), ("sd3_medium", "emb_dims")),
    *(("sd35_medium", "emb_dims"), ("sd35_medium", "split_qkv_saved_layout"), ("sd35_large", "type_dims")),
]
SIZES = {"sd15": "sd", "sd21": "sd", "sdxl": "sdxl"}
MANIFESTS = {"sd15": "diffusers_sd15_unet", "sd21": "diffusers_sd21_unet", "sdxl": "diffusers_sdxl_unet"}


def read_json(name):
    return json.loads(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes()))


def keys_of(model, variant):
    case = read_json(f"lora_keys_{model}")["variants"][variant]
    return {key: tuple(shape) for key, shape in case.get("keys", case.get("unet_keys"))}


def drawn(shapes, alpha=1.0, dtype=torch.float32):
    """Tensors of a LoRA with sizes of 64 and more made 64 times smaller, none of them near zero."""
    draw = torch.Generator().manual_seed(1)
    small = {key: [size // 64 if size >= 64 else size for size in shape] for key, shape in shapes.items()}
    return {
        key: torch.rand(shape, generator=draw).add(0.5).to(dtype) if shape else torch.tensor(alpha)
        for key, shape in small.items()
    }


def written(path, tensors, metadata=None):
    save_file(dict(tensors), path, metadata)
    return path


def convert(source, target, form):
    result = converted(read_lora(source, "SOURCE"), form)
    return written(target, result.tensors, result.metadata)


def assert_same_file(found, wanted):
    """The same tensors, bit by bit; `up` to a rounding where alpha / rank is no power of two."""
    assert found.keys() == wanted.keys()
    different = [key for key in wanted if not torch.equal(found[key], wanted[key])]
    uneven = [key for key in different if key.endswith(".lora_up.weight") and is_uneven(wanted, key)]
    assert different == uneven
    for key in uneven:
        torch.testing.assert_close(found[key], wanted[key], rtol=3e-7, atol=0)


def is_uneven(tensors, key):
    name = key.removesuffix(".lora_up.weight")
    mantissa, _ = math.frexp(float(tensors[f"{name}.alpha"]) / len(tensors[f"{name}.lora_down.weight"]))
    return mantissa != 0.5


@pytest.fixture(params=["lora_sd3_file", "lora_sd3_split_qkv_file"])
def golden_file(request, tmp_path):
    path = tmp_path / "golden.safetensors"
    path.write_bytes(gzip.decompress((GOLDEN / f"{request.param}.safetensors.gz").read_bytes()))
    return path


@pytest.mark.parametrize("form", [Form(DIFFUSERS), Form(NATIVE), Form(KOHYA, folds_alpha=True)], ids=str)
def test_a_file_of_sd3_comes_back_as_it_was(golden_file, form, tmp_path):
    there = convert(golden_file, tmp_path / "there.safetensors", form)
    assert not any(key.endswith(".alpha") for key in load_file(there))
    back = convert(there, tmp_path / "back.safetensors", Form(KOHYA))
    assert_same_file(load_file(back), load_file(golden_file))
    assert alpha_notes.KEY not in read_header(back).metadata


@pytest.mark.parametrize(("model", "variant"), FULL)
def test_every_known_name_converts_and_comes_back(model, variant, tmp_path):
    source = written(tmp_path / "source.safetensors", drawn(keys_of(model, variant)))
    for form in (Form(DIFFUSERS), Form(NATIVE)):
        there = convert(source, tmp_path / f"{form.layout}.safetensors", form)
        back = convert(there, tmp_path / "back.safetensors", Form(KOHYA))
        assert_same_file(load_file(back), load_file(source))


@pytest.mark.parametrize(("model", "naming"), [("sd15", "published"), ("sd21", "published"), ("sdxl", "diffusers")])
def test_the_other_naming_of_a_u_net_comes_back(model, naming, tmp_path):
    source = written(tmp_path / "source.safetensors", drawn(keys_of(model, "conv_dim")))
    there = convert(source, tmp_path / "there.safetensors", Form(KOHYA, naming))
    layers = layers_of(SIZES[model], read_header(source).shapes())
    names = [pair.published if naming == "published" else pair.diffusers[0] for pair in layers.denoiser]
    known = {f"lora_unet_{name.replace('.', '_')}" for name in names}
    found = {key.split(".")[0] for key in load_file(there) if key.startswith("lora_unet_")}
    assert found and found <= known
    back = convert(there, tmp_path / "back.safetensors", Form(KOHYA))
    assert_same_file(load_file(back), load_file(source))


def test_modules_of_t5_are_dropped_for_diffusers_only(tmp_path):
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    name = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    shapes = {f"{key}.lora_{end}.weight": (4, 4) for key in (t5, name) for end in ("down", "up")}
    source = written(tmp_path / "source.safetensors", drawn(shapes))
    assert converted(read_lora(source, "SOURCE"), Form(DIFFUSERS)).dropped == (t5,)
    assert converted(read_lora(source, "SOURCE"), Form(NATIVE)).dropped == ()


def test_a_narrow_file_is_rounded_once(tmp_path):
    name = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    up = torch.full((4, 3), 1.001)
    tensors = {f"{name}.lora_down.weight": torch.ones(3, 4), f"{name}.lora_up.weight": up}
    source = written(tmp_path / "source.safetensors", tensors | {f"{name}.alpha": torch.tensor(1.0)})
    result = converted(read_lora(source, "SOURCE"), Form(DIFFUSERS, dtype=torch.float16)).tensors
    found = result["transformer.transformer_blocks.0.ff.net.0.proj.lora_B.weight"]
    assert torch.equal(found, (up / 3).half())


def narrow_lora(scale, alpha=1.0, rank=128):
    """fp16, with `up` and `down` so large on average; some numbers are below what fp16 has in full."""
    draw = torch.Generator().manual_seed(3)
    tensors = {}
    for name, (inner, outer) in {
        "lora_unet_joint_blocks_0_x_block_attn_qkv": (16, 48),
        "lora_unet_final_layer_adaLN_modulation_1": (16, 32),
    }.items():
        tensors[f"{name}.lora_down.weight"] = (torch.randn(rank, inner, generator=draw) / 4).half()
        tensors[f"{name}.lora_up.weight"] = (torch.randn(outer, rank, generator=draw) * scale).half()
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


FOLDING = [Form(DIFFUSERS), Form(NATIVE), Form(KOHYA, folds_alpha=True)]


@pytest.mark.parametrize("form", FOLDING, ids=str)
@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-5])
def test_a_small_strength_costs_nothing_in_fp16(form, scale, tmp_path):
    tensors = narrow_lora(scale)
    source = written(tmp_path / "source.safetensors", tensors)
    there = convert(source, tmp_path / "there.safetensors", form)
    wanted, found = read_lora(source, "SOURCE").modules, read_lora(there, "SOURCE").modules
    for name, pair in wanted.items():
        effect = pair.up.double() @ pair.down.double() * pair.scale
        difference = found[name].up.double() @ found[name].down.double() * found[name].scale - effect
        assert difference.norm() < 3e-5 * effect.norm()
    back = load_file(convert(there, tmp_path / "back.safetensors", Form(KOHYA)))
    for key, tensor in tensors.items():
        assert back[key].dtype == tensor.dtype
        assert (back[key].double() - tensor.double()).norm() < 3e-5 * tensor.double().norm()


@pytest.mark.parametrize("form", FOLDING, ids=str)
def test_what_one_factor_has_no_room_for_goes_to_the_other_and_comes_back(form, tmp_path):
    tensors = narrow_lora(1e-4)
    for key in (key for key in tensors if key.endswith("down.weight")):
        tensors[key] = torch.where(tensors[key] < 0, -0.25, 0.75).half()  # far above what fp16 has in full
    source = written(tmp_path / "source.safetensors", tensors)
    result = converted(read_lora(source, "SOURCE"), form)
    assert not result.rounded
    there = written(tmp_path / "there.safetensors", result.tensors, result.metadata)
    back = load_file(convert(there, tmp_path / "back.safetensors", Form(KOHYA)))
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_float32_holds_what_fp16_cannot_and_gives_it_back(tmp_path):
    tensors = narrow_lora(1e-5)
    source = written(tmp_path / "source.safetensors", tensors)
    assert converted(read_lora(source, "SOURCE"), Form(DIFFUSERS)).rounded
    wide = convert(source, tmp_path / "wide.safetensors", Form(DIFFUSERS, dtype=torch.float32))
    back = load_file(convert(wide, tmp_path / "back.safetensors", Form(KOHYA, dtype=torch.float16)))
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_any_file_for_diffusers_keeps_a_small_strength_in_fp16():
    name, draw = "lora_unet_joint_blocks_0_x_block_mlp_fc1", torch.Generator().manual_seed(4)
    pair = LoraPair(torch.randn(2, 8, generator=draw), torch.randn(8, 2, generator=draw) * 1e-4, 1 / 128)
    found = lora_tensors({name: pair}, "sd3", layout=DIFFUSERS, dtype=torch.float16).values()
    down, up = (tensor.double() for tensor in found)
    wanted = pair.up.double() @ pair.down.double() * pair.scale
    assert all(tensor.dtype == torch.float16 for tensor in found) and (up @ down - wanted).norm() < 1e-3 * wanted.norm()


def test_a_strength_above_what_fp16_has_goes_to_the_other_factor():
    pair = LoraPair(torch.full((2, 3), 2.0**-8).half(), torch.full((4, 2), 2.0**13).half(), 16.0)
    folded = fold(pair)
    assert folded.lost == 0 and folded.share > 0 and folded.pair.is_finite
    assert torch.equal(folded.pair.up.float() @ folded.pair.down.float(), pair.up.float() @ pair.down.float() * 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_strength_is_folded_before_the_only_rounding(dtype, tmp_path):
    name = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    shapes = {f"{name}.lora_down.weight": (3, 40), f"{name}.lora_up.weight": (40, 3), f"{name}.alpha": ()}
    tensors = drawn(shapes)
    source = written(tmp_path / "source.safetensors", tensors)
    found = converted(read_lora(source, "SOURCE"), Form(DIFFUSERS, dtype=dtype)).tensors
    up = tensors[f"{name}.lora_up.weight"]
    assert torch.equal(found["transformer.transformer_blocks.0.ff.net.0.proj.lora_B.weight"], (up * (1 / 3)).to(dtype))


def test_the_projection_of_clip_g_has_a_place_in_diffusers(tmp_path):
    name = "lora_te2_text_projection"
    tensors = drawn({f"{name}.lora_down.weight": (2, 4), f"{name}.lora_up.weight": (4, 2), f"{name}.alpha": ()})
    block = "lora_unet_input_blocks_4_1_proj_in"
    tensors |= drawn({f"{block}.lora_down.weight": (2, 4), f"{block}.lora_up.weight": (4, 2), f"{block}.alpha": ()})
    source = written(tmp_path / "source.safetensors", tensors)
    there = convert(source, tmp_path / "there.safetensors", Form(DIFFUSERS))
    assert "text_encoder_2.text_projection.lora_A.weight" in load_file(there)
    assert_same_file(load_file(convert(there, tmp_path / "back.safetensors", Form(KOHYA))), tensors)


def test_split_factors_go_to_the_layers_that_they_are_of():
    from library.families.sd3.lora_format import kohya_to_diffusers

    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    downs, ups = torch.randn(3, 2, 5), torch.randn(3, 4, 2)
    tensors = {f"{name}.lora_down.weight": downs.flatten(0, 1), f"{name}.lora_up.weight": torch.block_diag(*ups)}
    found = kohya_to_diffusers(tensors).tensors
    for index, letter in enumerate("qkv"):
        path = f"transformer.transformer_blocks.0.attn.to_{letter}"
        assert torch.equal(found[f"{path}.lora_A.weight"], downs[index])
        assert torch.equal(found[f"{path}.lora_B.weight"], ups[index])


@pytest.mark.parametrize(
    "note",
    [
        "no JSON",
        "[1]",
        '{"*": [4]}',
        '{"*": [4, 0.5]}',
        '{"*": [4, 999]}',
        '{"*": [[4], 1]}',
        '{"*": "four"}',
        '{"*": 0}',
        '{"*": -1}',
        '{"*": true}',
        '{"x": 2}',
    ],
)
def test_a_note_that_does_not_fit_is_passed_over(note):
    modules = {"a": LoraPair(torch.ones(2, 3), torch.ones(4, 2), 1.0)}
    assert alpha_notes.restored(modules, {alpha_notes.KEY: note}) == modules


def test_a_note_changes_no_strength_and_not_what_has_an_alpha():
    pair = LoraPair(torch.ones(2, 3), torch.ones(4, 2), 1.0)
    found = alpha_notes.restored({"a": pair, "b": LoraPair(pair.down, pair.up, 0.5)}, {alpha_notes.KEY: '{"*": 4}'})
    assert found["a"].scale == 2 and torch.equal(found["a"].up * 2, pair.up)
    assert found["b"].scale == 0.5 and torch.equal(found["b"].up, pair.up)


def test_metadata_is_kept_and_hashes_are_renewed(tmp_path):
    metadata = {"ss_network_dim": "4", "sshs_model_hash": "old", "lora_adapter_metadata": "{}", "note": "mine"}
    source = written(tmp_path / "source.safetensors", drawn(keys_of("sd15", "default")), metadata)
    found = converted(read_lora(source, "SOURCE"), Form(DIFFUSERS)).metadata
    assert (found["ss_network_dim"], found["note"]) == ("4", "mine")
    assert len(found["sshs_model_hash"]) == 64 and "lora_adapter_metadata" not in found


@pytest.mark.parametrize(("model", "depth"), [("sd3_medium", 24), ("sd35_medium", 24), ("sd35_large", 38)])
@pytest.mark.parametrize("variant", ["default", "train_block_indices", "emb_dims"])
def test_a_file_tells_how_many_blocks_its_model_has(model, depth, variant):
    assert mmdit_depth(keys_of(model, variant)) == depth


@pytest.mark.parametrize("model", MANIFESTS)
def test_the_layers_of_u_nets_are_those_of_the_published_ones(model):
    manifest = read_json(f"state_dicts/{MANIFESTS[model]}")
    shapes = {key: tuple(shape) for key, (shape, _) in manifest["tensors"].items()}
    wanted = {key.removesuffix(".weight") for key, shape in shapes.items() if math.prod(shape) > max(shape)}
    found = {pair.diffusers[0] for pair in layers_of(SIZES[model], shapes).denoiser}
    assert wanted <= found
    more = {name for name in found - wanted if not name.endswith("conv_shortcut")}  # only where the width changes
    assert all(".transformer_blocks." in name for name in more)  # levels have different numbers of them
