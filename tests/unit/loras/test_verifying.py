import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from library.loras.consumers import comfyui
from library.loras.consumers.layers import layers_of
from library.loras.converting import DIFFUSERS, KOHYA, NATIVE, Form, converted
from library.loras.lora_file import LoraFile, to_kohya_modules
from library.loras.verifying import verify

WIDTH, CONTEXT, POOLED = 6, 5, 4
SD3 = {  # a model of two blocks, the second is the last: {name: (in, out)}
    "lora_unet_joint_blocks_0_x_block_attn_qkv": (WIDTH, 3 * WIDTH),
    "lora_unet_joint_blocks_0_x_block_mlp_fc1": (WIDTH, 4 * WIDTH),
    "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1": (WIDTH, 6 * WIDTH),
    "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1": (WIDTH, 2 * WIDTH),
    "lora_unet_joint_blocks_1_context_block_attn_qkv": (WIDTH, 3 * WIDTH),
    "lora_unet_final_layer_adaLN_modulation_1": (WIDTH, 2 * WIDTH),
    "lora_unet_y_embedder_mlp_0": (POOLED, WIDTH),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (8, 8),
    "lora_te2_text_model_encoder_layers_1_mlp_fc2": (9, 8),
}
SDXL = {
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q": (6, 6),
    "lora_unet_input_blocks_4_0_emb_layers_1": (6, 5),
    "lora_unet_output_blocks_2_2_conv": (6, 6),
    "lora_te2_text_model_encoder_layers_1_mlp_fc2": (9, 8),
}
SD = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0": (6, 6),
    "lora_unet_up_blocks_0_upsamplers_0_conv": (6, 6),
    "lora_te_text_model_encoder_layers_1_mlp_fc2": (9, 8),
}
FAMILIES = {"sd3": SD3, "sdxl": SDXL, "sd": SD}
ALL = {"ComfyUI", "Forge", "A1111", "diffusers"}
FORMS = {
    "kohya": Form(KOHYA),
    "folded": Form(KOHYA, folds_alpha=True),
    "native": Form(NATIVE),
    "diffusers": Form(DIFFUSERS),
    "published": Form(KOHYA, "published"),
    "by diffusers": Form(KOHYA, "diffusers"),
}


def lora(family, dtype=torch.float32, alpha=1.0):
    """A LoRA of rank 4 with values."""
    draw, tensors = torch.Generator().manual_seed(2), {}
    for name, (inner, outer) in FAMILIES[family].items():
        is_conv = name.endswith(("conv", "samplers_0_conv"))
        more = (3, 3) if is_conv else ()
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, inner, *more, generator=draw).to(dtype)
        tensors[f"{name}.lora_up.weight"] = torch.randn(outer, 4, *(1,) * len(more), generator=draw).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return LoraFile("lora", family, KOHYA, to_kohya_modules(tensors, family, KOHYA, {}), {})


def read_json(name):
    path = Path(__file__).parents[2] / "golden" / "data" / f"{name}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def right(report):
    return {verdict.program for verdict in report.verdicts if verdict.is_right}


def report_of(file, tensors, metadata=None):
    return verify(tensors, metadata or {}, family=file.family, reference=file.modules)


@pytest.mark.parametrize(
    ("family", "form", "readers"),
    [
        ("sd3", "kohya", {"ComfyUI", "Forge"}),
        ("sd3", "folded", {"ComfyUI", "Forge"}),
        ("sd3", "native", {"ComfyUI", "Forge"}),
        ("sd3", "diffusers", {"ComfyUI", "diffusers"}),
        ("sdxl", "kohya", ALL),
        ("sdxl", "folded", ALL),
        ("sdxl", "native", {"ComfyUI", "Forge"}),
        ("sdxl", "diffusers", {"diffusers"}),
        ("sdxl", "by diffusers", ALL),
        ("sd", "kohya", ALL),
        ("sd", "native", {"ComfyUI", "Forge"}),
        ("sd", "diffusers", {"diffusers"}),
        ("sd", "published", ALL - {"diffusers"}),
    ],
)
def test_every_form_does_the_same_in_the_programs_that_read_it(family, form, readers):
    file = lora(family)
    result = converted(file, FORMS[form])
    report = report_of(file, result.tensors)
    assert right(report) == readers
    assert not report.faults and not report.doubts
    assert all(verdict.is_right for verdict in report.verdicts if verdict.is_expected)


def test_a_folded_file_of_sd3_acts_in_a1111_but_for_text_encoders():
    file = lora("sd3")
    verdict = report_of(file, converted(file, Form(KOHYA, folds_alpha=True)).tensors).verdicts[2]
    assert verdict.line().startswith("A1111: 7 of 9 modules, max error ")
    whole = report_of(file, converted(file, Form(KOHYA)).tensors).verdicts[2]
    assert whole.line() == "A1111: refuses SD3 files with alpha tensors; --to kohya --fold_alpha helps"


def test_what_is_ignored_in_silence_is_told():
    file = lora("sd3")
    lines = [verdict.line() for verdict in report_of(file, converted(file, Form(KOHYA)).tensors).verdicts]
    assert lines[3] == "diffusers: ignores the file; --to diffusers helps"


def without_alpha(tensors):
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}


def with_exchanged(tensors, first, second):
    """Two modules in each other's place."""
    names = {first: second, second: first}
    moved = {key: next((key.replace(a, b) for a, b in names.items() if a in key), key) for key in tensors}
    return {moved[key]: tensor for key, tensor in tensors.items()}


def with_rolled(tensors, part):
    """The halves of the rows of one module exchanged."""
    return {
        key: tensor.roll(tensor.shape[0] // 2, 0) if part in key and ("lora_B" in key or "lora_up" in key) else tensor
        for key, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("form", "damage", "found_by"),
    [
        ("kohya", without_alpha, {"ComfyUI", "Forge", "A1111"}),
        ("kohya", lambda t: with_rolled(t, "final_layer_adaLN"), {"ComfyUI", "Forge"}),
        ("kohya", lambda t: with_rolled(t, "0_x_block_attn_qkv"), {"ComfyUI", "Forge"}),
        ("diffusers", lambda t: with_rolled(t, "norm_out.linear"), {"ComfyUI", "diffusers"}),
        ("diffusers", lambda t: with_rolled(t, "1.norm1_context.linear"), {"ComfyUI", "diffusers"}),
        ("diffusers", lambda t: with_exchanged(t, "0.attn.to_q.", "0.attn.to_k."), {"ComfyUI", "diffusers", "A1111"}),
        ("diffusers", lambda t: {k: v for k, v in t.items() if "to_v" not in k}, {"ComfyUI", "diffusers", "A1111"}),
        ("native", lambda t: {k: v * (4 if "lora_B" in k else 1) for k, v in t.items()}, {"ComfyUI", "Forge"}),
    ],
)  # fmt: skip
def test_a_wrong_file_is_found(form, damage, found_by):
    file = lora("sd3")
    tensors = converted(file, FORMS[form]).tensors
    assert not report_of(file, tensors).faults
    report = report_of(file, {key: tensor.contiguous() for key, tensor in damage(tensors).items()})
    faults = {verdict.program for verdict in report.faults}
    assert faults & found_by == faults and faults >= found_by - {"A1111"}
    assert all("WRONG" in verdict.line() for verdict in report.faults)


def test_a_layer_that_got_lost_is_found():
    file = lora("sdxl")
    tensors = {key: value for key, value in converted(file, Form(KOHYA)).tensors.items() if "emb_layers" not in key}
    report = report_of(file, tensors)
    assert {verdict.program for verdict in report.faults} == ALL
    assert report.verdicts[0].line().startswith("ComfyUI: 3 of 4 modules")


def test_the_alpha_that_diffusers_notes_is_lost_in_comfyui():
    file = lora("sd3")
    tensors = converted(file, Form(DIFFUSERS)).tensors
    notes = {"lora_adapter_metadata": '{"transformer.lora_alpha": 8, "transformer.r": 4}'}
    report = verify(tensors, notes, family="sd3")
    assert [verdict.program for verdict in report.faults] == ["ComfyUI", "A1111"]
    assert "diffusers" in right(report)
    assert report.faults[0].line().endswith("--to diffusers helps")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_16_bits_is_no_fault(dtype):
    file = lora("sd3", alpha=3.0)
    assert not report_of(file, converted(file, Form(DIFFUSERS, dtype=dtype)).tensors).faults


def with_error(tensors, part, error):
    """One module of a file, so much too strong."""
    return {key: value * (1 + error) if part in key and "up" in key else value for key, value in tensors.items()}


@pytest.mark.parametrize("part", ["y_embedder", "0_x_block_mlp_fc1"])
@pytest.mark.parametrize(
    ("dtype", "error", "is_fault"),
    [
        (torch.bfloat16, 0.03, True), (torch.bfloat16, 0.01, False), (torch.float16, 0.03, True),
        (torch.float32, 3e-5, True), (torch.float32, 3e-6, False),
    ],
)  # fmt: skip
def test_an_error_is_measured_in_the_layer_where_it_is(part, dtype, error, is_fault):
    file = lora("sd3")
    modules = {name: replace(pair, up=pair.up * (0.01 if part in name else 1.0)) for name, pair in file.modules.items()}
    file = replace(file, modules=modules)
    tensors = converted(file, Form(KOHYA)).tensors
    damaged = {k: v.to(dtype) if v.dim() else v for k, v in with_error(tensors, part, error).items()}
    assert bool(report_of(file, damaged).faults) == is_fault


def test_a_file_that_changes_other_layers_only_is_wrong():
    file = lora("sd3")
    first, *others = [name for name in file.modules if name.startswith("lora_unet_")]
    tensors = converted(replace(file, modules={first: file.modules[first]}), Form(KOHYA)).tensors
    report = verify(tensors, {}, family="sd3", reference={name: file.modules[name] for name in others})
    assert [verdict.program for verdict in report.faults] == ["ComfyUI", "Forge"]
    assert all("WRONG in" in verdict.line() for verdict in report.faults)


def test_a_program_that_is_not_expected_is_at_fault_where_it_changes_other_layers():
    file = lora("sd3")
    first, *others = [name for name in file.modules if "attn_qkv" in name or "mlp_fc1" in name]
    tensors = converted(replace(file, modules={first: file.modules[first]}), Form(KOHYA, folds_alpha=True)).tensors
    report = verify(tensors, {}, family="sd3", reference={name: file.modules[name] for name in others})
    assert "A1111" in {verdict.program for verdict in report.faults}


def test_diffusers_passes_over_the_embedding_of_sizes_under_names_of_its_own():
    pair = lora("sdxl").modules["lora_unet_input_blocks_4_0_emb_layers_1"]
    file = replace(lora("sdxl"), modules={**lora("sdxl").modules, "lora_unet_label_emb_0_0": pair})
    verdict = report_of(file, converted(file, Form(KOHYA, "diffusers")).tensors).verdicts[3]
    assert not verdict.is_fault and verdict.line().startswith("diffusers: 4 of 5 modules")


def test_the_projection_of_clip_g_acts_where_it_is_known():
    pair = lora("sdxl").modules["lora_te2_text_model_encoder_layers_1_mlp_fc2"]
    file = replace(lora("sdxl"), modules={**lora("sdxl").modules, "lora_te2_text_projection": pair})
    report = report_of(file, converted(file, Form(KOHYA)).tensors)
    assert right(report) == {"ComfyUI", "Forge", "diffusers"} and not report.doubts


def test_a_file_that_changes_nothing_is_told():
    file = lora("sd")
    tensors = {k: v * 0 if "lora_up" in k else v for k, v in converted(file, Form(KOHYA)).tensors.items()}
    report = verify(tensors, {}, family="sd")
    assert "changes nothing" in report.doubts[0] and not report.faults


@pytest.mark.parametrize(
    ("metadata", "is_odd"),
    [
        ({"ss_network_alpha": "1", "ss_network_dim": "4"}, True),
        ({"ss_network_alpha": "1", "ss_network_dim": "4", "easel_alpha": '{"*": 1}'}, False),
        ({"ss_network_alpha": "4.0", "ss_network_dim": "4"}, False),
        ({"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, False),
        ({}, False),
    ],
)
def test_an_alpha_that_only_the_metadata_knows_is_told(metadata, is_odd):
    tensors = without_alpha(converted(lora("sd"), Form(KOHYA)).tensors)
    assert bool(verify(tensors, metadata, family="sd").doubts) == is_odd


def test_what_the_trainer_noted_of_alpha_is_no_doubt_where_the_strength_is_known():
    file, notes = lora("sd"), {"ss_network_alpha": "1", "ss_network_dim": "4"}
    in_factors = converted(file, FORMS["diffusers"]).tensors
    assert not verify(in_factors, notes, family="sd").doubts  # this layout has no alpha
    lost = report_of(file, without_alpha(converted(file, FORMS["kohya"]).tensors), notes)
    assert not lost.doubts and {verdict.program for verdict in lost.faults} == ALL  # compared with what it is to do


@pytest.mark.parametrize(
    ("start", "form", "readers"),
    [
        ("base_model.model.", str, {"ComfyUI"}),
        ("lora_transformer_", lambda path: path.replace(".", "_"), {"ComfyUI"}),
        ("lycoris_", lambda path: path.replace(".", "_"), {"ComfyUI"}),
    ],
)
def test_names_of_other_trainers_are_those_that_comfyui_knows(start, form, readers):
    file = lora("sd3")
    kept = {name: pair for name, pair in file.modules.items() if not name.startswith("lora_te")}
    file = replace(file, modules=kept)
    tensors = {}
    for key, tensor in converted(file, Form(DIFFUSERS)).tensors.items():
        path, end = key.removeprefix("transformer.").rsplit(".lora_", 1)
        tensors[f"{start}{form(path)}.lora_{end}"] = tensor
    assert right(report_of(file, tensors)) == readers


@pytest.mark.parametrize(
    ("model", "manifest", "family"),
    [
        ("sd3_medium", "sd3_medium", "sd3"),
        ("sd35_medium", "sd3.5_medium", "sd3"),
        ("sd35_large", "sd3.5_large", "sd3"),
        ("sdxl", "sd_xl_base_1.0", "sdxl"),
        ("sd15", "v1-5-pruned-emaonly", "sd"),
        ("sd21", "v2-1_768-ema-pruned", "sd"),
    ],
)
def test_comfyui_finds_a_weight_of_the_published_model_for_every_module(model, manifest, family):
    variants = read_json(f"lora_keys_{model}")["variants"]
    keys = dict(variants["emb_dims"]["unet_keys"] if family == "sd3" else variants["conv_dim"]["keys"])
    known = comfyui.known_names(layers_of(family, keys))
    places = [known[key.partition(".")[0]].layer for key in keys]
    weights = set(read_json(f"state_dicts/{manifest}")["tensors"])
    own = [layer for layer in places if not layer.startswith("text_encoder")]
    assert own and all(f"model.diffusion_model.{layer}.weight" in weights for layer in own)


def test_a_module_that_no_such_model_has_is_told_and_found():
    file = lora("sd3")
    pair = file.modules["lora_te1_text_model_encoder_layers_0_self_attn_q_proj"]
    pair = replace(pair, down=pair.down.clone(), up=pair.up.clone())
    file = replace(file, modules={**file.modules, "lora_unet_joint_blocks_0_x_block_nothing": pair})
    report = report_of(file, converted(file, Form(KOHYA)).tensors)
    assert report.doubts == (
        "1 of its modules are no layers of such a model (lora_unet_joint_blocks_0_x_block_nothing).",
    )
    assert {verdict.program for verdict in report.faults} == {"ComfyUI", "Forge"}


def test_a_lora_of_other_sizes_is_no_reference():
    file = lora("sd3")
    other = {name: replace(pair, down=pair.down[:, :-1]) for name, pair in file.modules.items()}
    tensors = converted(file, Form(KOHYA)).tensors
    lines = [verdict.line() for verdict in verify(tensors, {}, family="sd3", reference=other).faults]
    assert len(lines) == 2 and all("WRONG" in line for line in lines)


def test_layers_are_named_once():
    for family, shapes in (
        ("sd", {}),
        ("sdxl", {}),
        ("sd3", {"lora_unet_joint_blocks_3_x_block_mlp_fc1.lora_up.weight": (4, 4)}),
    ):
        layers = layers_of(family, shapes)
        names = [name for pair in layers.denoiser for name in pair.diffusers]
        assert len(set(names)) == len(names) > 50
