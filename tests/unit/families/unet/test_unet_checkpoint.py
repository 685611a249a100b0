"""Finding and reading the parts of SD 1.x, SD 2.x and SDXL models, in every layout that is met."""

import json
import logging
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from hub_server import running_hub
from safetensors.torch import load_file, save_file

from library.checkpoint.weights import WeightFiles, open_weights
from library.errors import CheckpointError
from library.families.sd3.checkpoint import inspect_files as inspect_sd3_files
from library.families.sdxl.family import SdxlFamily
from library.families.unet.checkpoint import (
    inspect_files,
    inspect_weights,
    load_encoder,
    load_unet,
    load_vae,
    read_part,
)
from library.families.unet.outlines import encoder_outline, vae_outline
from library.families.unet.parts import find_denoiser
from library.tensorfile import TensorHeader, TensorInfo
from tests import tiny_unets

KINDS = ("sd1", "sd2", "sdxl")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {"sd1": "cond_stage_model.transformer.", "sd2": "cond_stage_model.model."}
CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """tiny(kind) is a single file, tiny(kind, is_folder=True) the same model as a folder. They stay as they are."""

    @cache
    def write(kind, is_folder=False):
        name = f"write_{kind}_folder" if is_folder else f"write_{kind}"
        return getattr(tiny_unets, name)(tmp_path_factory.mktemp(kind), dtype="fp16").path

    return write


@pytest.fixture(scope="module")
def as_written(tiny):
    """as_written(kind): the tensors of a single file."""
    return cache(lambda kind: contents(inspect_files(tiny(kind), kinds=KINDS)))


@pytest.fixture
def changed(tiny, tmp_path):
    """changed(kind, change) inspects the single file after `change` has been at its {name: tensor}."""

    def inspect(kind, change, **options):
        tensors = load_file(tiny(kind))
        save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, tmp_path / "m.safetensors")
        return inspect_files(tmp_path / "m.safetensors", kinds=KINDS, **options)

    return inspect


def header(path, change=lambda shapes: shapes):
    """Headers of a file, changed: for what is told without reading."""
    shapes = change(open_weights(path).shapes())
    tensors = {name: TensorInfo("F16", shape, 0, 0) for name, shape in shapes.items()}
    return WeightFiles(path, (TensorHeader(path, tensors, {}),))


def refusal(path, change):
    with pytest.raises(CheckpointError) as caught:
        inspect_weights(header(path, change), {}, kinds=KINDS)
    return str(caught.value)


def moved(before, after):
    """Another prefix."""
    return lambda tensors: {
        after + name.removeprefix(before) if name.startswith(before) else name: t for name, t in tensors.items()
    }


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def reshaped(name, shape):
    return lambda shapes: {**shapes, name: shape}


def contents(files):
    parts = {"unet": files.unet, "vae": files.vae, **files.encoders}
    return {name: read_part(part) for name, part in parts.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for part in one:
        assert one[part].keys() == other[part].keys(), part
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items()), part


@pytest.mark.parametrize("kind", KINDS)
def test_single_file_and_folder_give_the_same_modules(tiny, kind):
    one, other = (inspect_files(tiny(kind, is_folder), kinds=KINDS) for is_folder in (False, True))
    assert (one.kind, one.config) == (other.kind, other.config) == (kind, one.config)
    modules = [(load_unet(one, None, "cpu"), load_unet(other, None, "cpu"))]
    modules += [(load_vae(one, None, "cpu"), load_vae(other, None, "cpu"))]
    modules += [(load_encoder(one, name, None, "cpu"), load_encoder(other, name, None, "cpu")) for name in one.encoders]
    for ours, theirs in modules:
        assert_same({"": ours.state_dict()}, {"": theirs.state_dict()})
        assert not ours.training
        assert not any(parameter.requires_grad for parameter in ours.parameters())
    vae = modules[1][0]
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (0.13025 if kind == "sdxl" else 0.18215, 0.0)


def test_outlines_have_the_shapes_of_what_is_loaded(tiny):
    files = inspect_files(tiny("sdxl"), kinds=KINDS)
    pairs = [(vae_outline(files, torch.float32), load_vae(files, torch.float32, "cpu"))]
    pairs += [
        (encoder_outline(files, name, torch.float32), load_encoder(files, name, torch.float32, "cpu"))
        for name in files.encoders
    ]
    for outline, loaded in pairs:
        assert {n: t.shape for n, t in outline.state_dict().items()} == {
            n: t.shape for n, t in loaded.state_dict().items()
        }
        assert all(tensor.is_meta for tensor in [*outline.parameters(), *outline.buffers()])


def test_the_text_encoder_of_sd2_has_all_layers_but_the_last(tiny):
    files = inspect_files(tiny("sd2"), kinds=KINDS)
    assert "text_model.encoder.layers.2.mlp.fc1.weight" in read_part(files.encoders["clip"])
    encoder = load_encoder(files, "clip", torch.float32, "cpu")
    assert (encoder.config.num_hidden_layers, encoder.config.hidden_act) == (2, "gelu")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("sd1", moved(f"{TEXT['sd1']}text_model.", TEXT["sd1"])),
        ("sd1", moved(UNET, "")),
        ("sd1", moved(VAE, "vae.")),
        ("sd1", moved(VAE, "")),
        ("sd2", moved(TEXT["sd2"], "conditioner.embedders.0.model.")),
        ("sdxl", moved(f"{CLIP_L}text_model.", CLIP_L)),
    ],
)
def test_other_prefixes_lead_to_the_same_tensors(as_written, changed, kind, change):
    assert_same(contents(changed(kind, change)), as_written(kind))


def test_averages_are_told_in_one_line_and_schedules_in_none(changed, caplog):
    caplog.set_level(logging.INFO, logger="easel")
    logging.getLogger("easel").propagate = True
    changed("sd1", lambda tensors: {**tensors, "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(1)})
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == [
        "tensors that are not used: 1 of averaged weights (EMA)"
    ]


def test_position_ids_may_be_stored_in_any_type(changed):
    name = f"{TEXT['sd1']}text_model.embeddings.position_ids"
    files = changed("sd1", lambda tensors: {**tensors, name: tensors[name].half()})
    assert name not in files.encoders["clip"].names


def test_a_vae_of_its_own_wins(tiny, as_written, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    caplog.set_level(logging.INFO)
    own = {name.removeprefix(VAE): t * 2 for name, t in load_file(tiny("sd1")).items() if name.startswith(VAE)}
    save_file(own, tmp_path / "vae.safetensors")
    files = inspect_files(tiny("sd1"), kinds=KINDS, vae=tmp_path / "vae.safetensors")
    assert torch.equal(read_part(files.vae)["quant_conv.bias"], 2 * as_written("sd1")["vae"]["quant_conv.bias"])
    assert "not used" not in caplog.text


def test_a_vae_folder_with_old_names_is_read(tiny, tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    expected = load_file(tiny("sd1", True) / "vae" / "diffusion_pytorch_model.safetensors")
    renamed = {}
    for name, tensor in expected.items():
        new = next((own for own in old if f"attentions.0.{own}." in name), None)
        renamed[name.replace(new, old[new]) if new else name] = tensor
    assert renamed.keys() != expected.keys()
    save_file(renamed, tmp_path / "diffusion_pytorch_model.safetensors")
    files = inspect_files(tiny("sd1"), kinds=KINDS, vae=tmp_path)
    assert_same({"": read_part(files.vae)}, {"": expected})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scaling_factor": 0.13025}, r"scaled by 0\.13025; those of this model are scaled by 0\.18215"),
        ({"latents_mean": [0, 0, 0, 0]}, "scaled with a mean and a deviation of each channel"),
        ([], r"config\.json that is damaged"),
    ],
)
def test_a_vae_folder_that_scales_otherwise_is_refused(tiny, tmp_path, settings, message):
    shutil.copytree(tiny("sd1", True) / "vae", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"^--vae: .*{message}"):
        inspect_files(tiny("sd1"), kinds=KINDS, vae=tmp_path / "other")


def test_the_vae_of_a_model_of_another_kind_is_refused(tiny):
    with pytest.raises(CheckpointError, match=r"^--vae: .* is an SDXL model, whose VAE is of another kind"):
        inspect_files(tiny("sd1"), kinds=KINDS, vae=tiny("sdxl"))
    inspect_files(tiny("sd1"), kinds=KINDS, vae=tiny("sd2"))


def test_variants_and_shards_of_a_folder_are_read(tiny, as_written, tmp_path):
    folder = Path(shutil.copytree(tiny("sd1", True), tmp_path / "folder"))
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    halves = [dict(list(tensors.items())[index::2]) for index in range(2)]
    index = {}
    for number, half in enumerate(halves):
        shard = f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"
        save_file(half, folder / "unet" / shard)
        index |= dict.fromkeys(half, shard)
    whole.unlink()
    (whole.parent / f"{whole.name}.index.json").write_text(json.dumps({"weight_map": index}))
    text = folder / "text_encoder" / "model.safetensors"
    text.rename(text.with_name("model.fp16.safetensors"))
    assert_same(contents(inspect_files(folder, kinds=KINDS)), as_written("sd1"))


def test_a_model_on_the_hub_is_its_folder(tiny, as_written, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tiny("sd1", True)
    with running_hub(monkeypatch) as hub:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        hub.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        files = inspect_files(Path("owner/name"), kinds=KINDS)
    assert_same(contents(files), as_written("sd1"))
    assert (files.path / "tokenizer" / "vocab.json").is_file()


def test_a_vae_on_the_hub_is_its_folder(tiny, as_written, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with running_hub(monkeypatch) as hub:
        hub.files = {path.name: path.read_bytes() for path in (tiny("sd2", True) / "vae").iterdir()}
        files = inspect_files(tiny("sd1"), kinds=KINDS, vae=Path("owner/name"))
    assert_same({"": read_part(files.vae)}, {"": as_written("sd2")["vae"]})


@pytest.mark.parametrize(
    ("scheduler", "marks"),
    [
        ({"prediction_type": "epsilon"}, {"epsilon"}),
        ({"prediction_type": "v_prediction"}, {"v_pred"}),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"}),
        (None, set()),
    ],
)
def test_the_scheduler_of_a_folder_says_what_the_model_predicts(tiny, tmp_path, scheduler, marks):
    folder = Path(shutil.copytree(tiny("sdxl", True), tmp_path / "folder"))
    path = folder / "scheduler" / "scheduler_config.json"
    path.unlink() if scheduler is None else path.write_text(json.dumps(scheduler))
    assert inspect_files(folder, kinds=KINDS).marks == marks


def test_folders_of_another_family_are_named_with_their_script(tiny, tmp_path):
    name = "transformer_blocks.0.attn.add_q_proj.weight"
    save_file({name: torch.empty(1), "pos_embed.proj.weight": torch.empty(1)}, tmp_path / "model.safetensors")
    (tmp_path / "sd3" / "transformer").mkdir(parents=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "sd3" / "transformer" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is an SD3 / SD3\.5 transformer .* sd3_train_network\.py"):
        inspect_files(tmp_path / "sd3", kinds=KINDS)
    with pytest.raises(CheckpointError, match=r"is an SDXL model, not an SD3 .* sdxl_train_network\.py"):
        inspect_sd3_files(tiny("sdxl", True))


def test_marker_tensors_of_a_file_say_what_the_model_predicts(tiny):
    marked = header(tiny("sdxl"), lambda shapes: {**shapes, "v_pred": (0,), "ztsnr": ()})
    assert inspect_weights(marked, {}, kinds=KINDS).marks == {"v_pred", "ztsnr"}
    assert inspect_weights(header(tiny("sdxl")), {}, kinds=KINDS).marks == set()


def test_what_a_file_says_of_itself_is_no_tensor_of_no_use(tiny, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    marked = header(tiny("sdxl"), lambda shapes: {**shapes, "v_pred": (0,), "ztsnr": (0,)})
    with caplog.at_level(logging.INFO):
        inspect_weights(marked, {}, kinds=KINDS)
        assert "not used" not in caplog.text
        inspect_weights(header(tiny("sdxl"), lambda shapes: {**shapes, "other": (0,)}), {}, kinds=KINDS)
    assert "tensors that are not used: 1 other (other)" in caplog.text


BOTH = "predicts the velocity and knows noise without any signal."


@pytest.mark.parametrize(
    ("marks", "noise", "said"),
    [
        (("v_pred",), {}, "predicts the velocity. Add --v_parameterization."),
        (
            ("v_pred", "ztsnr"),
            {},
            f"{BOTH} Add --v_parameterization and --zero_terminal_snr.",
        ),
    ],
)
def test_a_model_is_trained_as_what_it_says_of_itself(tmp_path, marks, noise, said):
    path = tiny_unets.write_sdxl(tmp_path, marks=marks).path
    family = SdxlFamily(pretrained=path, noise=noise)
    with pytest.raises(CheckpointError) as caught:
        family.inspect()
    assert str(caught.value) == f"--pretrained_model_name_or_path: {path} says that it {said}"
    whole = {"v_parameterization": True, "zero_terminal_snr": "ztsnr" in marks}
    assert SdxlFamily(pretrained=path, noise=whole).inspect().marks == set(marks)


def test_a_model_may_be_trained_with_another_schedule_than_its_own_and_still_says_which_that_is(
    tiny, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    files = inspect_weights(header(tiny("sdxl"), lambda s: {**s, "v_pred": (0,), "ztsnr": (0,)}), {}, kinds=KINDS)
    family = SdxlFamily(pretrained=tiny("sdxl"), noise={"v_parameterization": True})
    family.check_marks(files)
    (line,) = caplog.messages
    assert line.endswith(
        "says that it knows noise without any signal, and without --zero_terminal_snr it is trained with a schedule "
        "that never reaches such noise."
    )
    assert family.model_to_write(files, {}, {}, None).marks == {"v_pred", "ztsnr"}


def test_a_saved_model_says_what_it_was_trained_as(tiny):
    files = inspect_files(tiny("sdxl", True), kinds=KINDS)  # its folder says that it predicts noise
    for noise, marks in (
        ({}, set()),
        ({"v_parameterization": True}, {"v_pred"}),
        ({"zero_terminal_snr": True}, {"ztsnr"}),
    ):
        family = SdxlFamily(pretrained=tiny("sdxl", True), noise=noise)
        assert family.model_to_write(files, {}, {}, None).marks == marks


def test_a_folder_that_says_noise_is_trained_as_velocity_with_a_warning(tiny, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    folder = tiny("sdxl", True)
    SdxlFamily(pretrained=folder).inspect()
    assert not caplog.messages
    SdxlFamily(pretrained=folder, noise={"v_parameterization": True}).inspect()
    (line,) = caplog.messages
    assert line.endswith(
        f"{folder} says that it predicts noise, and --v_parameterization trains it to predict the velocity."
    )


@pytest.mark.parametrize(
    ("channels", "title"),
    [
        (9, "an inpainting model"),
        (8, "an InstructPix2Pix model"),
        (5, "a depth-to-image model"),
        (6, "a model of another task"),
    ],
)
def test_models_of_other_tasks_are_refused(tiny, channels, title):
    text = refusal(tiny("sd1"), reshaped(f"{UNET}input_blocks.0.0.weight", (32, channels, 3, 3)))
    assert f"takes {channels} channels instead of 4: it is {title}, which cannot be trained here" in text


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("sd1", without(VAE), "has no VAE inside. Give one with --vae."),
        ("sd1", without("cond_stage_model."), "has no CLIP text encoder inside. Use a complete model file"),
        ("sdxl", without("conditioner."), "has no CLIP-G text encoder inside."),
        ("sd1", without("middle_block.1.proj_out.bias"), "1 missing (middle_block.1.proj_out.bias)"),
        ("sd1", reshaped(f"{UNET}out.2.bias", (5,)), "1 of another shape (out.2.bias)"),
        ("sd1", reshaped(f"{UNET}other.weight", (5,)), "1 unknown names, other.weight"),
        ("sd1", without("layers.1.mlp.fc1.bias"), "are missing (text_model.encoder.layers.1.mlp.fc1.bias)"),
        ("sdxl", reshaped(f"{CLIP_G}ln_final.bias", (5,)), "final_layer_norm.bias [5] for [48]"),
        ("sd1", without("mid.attn_1.k.bias"), "missing (decoder.mid_block.attentions.0.to_k.bias, encoder"),
        ("sd1", without("first_stage_model.encoder."), "has only the decoder of a VAE"),
        ("sdxl", lambda shapes: {**shapes, "edm_mean": (4,)}, "is a Playground 2.5 model"),
        ("sdxl", reshaped("control_model.zero_convs.0.0.weight", (4,)), "is a ControlNet, not a Stable"),
        ("sdxl", reshaped("lora_unet_a.lora_down.weight", (4, 4)), "Give the base model here, and this file as"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tiny, kind, change, expected):
    text = refusal(tiny(kind), change)
    assert expected in text
    assert text.startswith("--pretrained_model_name_or_path: ")


def test_a_u_net_alone_asks_for_the_complete_model_and_for_no_vae_beside_it(tiny):
    text = refusal(tiny("sdxl"), lambda shapes: {name: shape for name, shape in shapes.items() if UNET in name})
    encoders = [f"has no {name} text encoder inside. Use a complete model file" for name in ("CLIP-L", "CLIP-G")]
    assert [part in line for part, line in zip(encoders, text.splitlines(), strict=True)] == [True, True]
    assert "--vae" not in text


def of_wide_texts(shapes):
    """The width of its texts alone tells that it is an SD2."""
    names = [name for name in shapes if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    return {**shapes, **{name: (shapes[name][0], 1024) for name in names}}


def test_heads_follow_the_kind_and_not_the_form_of_the_projections(tiny):
    def convolved(shapes):
        """As some tools have written SD2."""
        names = [name for name in shapes if UNET in name and name.endswith(("proj_in.weight", "proj_out.weight"))]
        return {**of_wide_texts(shapes), **{name: (*shapes[name], 1, 1) for name in names}}

    kind, _, config = find_denoiser(header(tiny("sd2"), convolved), KINDS)
    assert (kind, config["use_linear_projection"], config["attention_head_dim"]) == ("sd2", False, [2, 1, 1, 1])


def test_a_model_that_starts_from_pictures_instead_of_text_is_refused(tiny):
    text = refusal(tiny("sd2"), lambda shapes: {**of_wide_texts(shapes), f"{UNET}label_emb.0.0.weight": (128, 64)})
    assert "the U-Net is that of an unCLIP model, which cannot be trained here" in text


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("sd1", "class_embedding.linear_1.weight", "the U-Net is that of an unCLIP model"),
        ("sdxl", "encoder_hid_proj.weight", "1 unknown (encoder_hid_proj.weight)"),
    ],
)
def test_what_a_folder_has_to_start_from_something_else_is_not_left_out(tiny, kind, name, expected):
    folder = tiny(kind, True)
    names = [path.name for path in folder.iterdir() if (path / "config.json").is_file() and path.name != "unet"]
    separate = {part: open_weights(folder / part) for part in names}
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    inspect_weights(header(unet), separate, kinds=KINDS)
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        inspect_weights(header(unet, reshaped(name, (8, 8))), separate, kinds=KINDS)


def test_all_faults_of_parts_are_told_at_once(tiny):
    text = refusal(tiny("sdxl"), lambda shapes: without("conditioner.")(without("mid.attn_1.k.bias")(shapes)))
    wanted = ("to_k.bias", "has no CLIP-L text encoder inside", "has no CLIP-G text encoder inside")
    assert [part in line for part, line in zip(wanted, text.splitlines(), strict=True)] == [True] * 3


def test_a_text_encoder_of_another_width_is_refused(tiny):
    own = {"text_encoder": open_weights(tiny("sdxl", True) / "text_encoder_2")}
    with pytest.raises(CheckpointError, match="CLIP text encoder of width 48, but the U-Net takes 32"):
        inspect_weights(header(tiny("sd1")), own, kinds=KINDS)


def test_weights_in_fp8_are_read_with_and_without_scales(tiny, changed):
    name = "middle_block.1.transformer_blocks.0.attn1.to_q"
    key = f"{UNET}{name}.weight"
    ours = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    stored = load_file(tiny("sd1"))[key].to(torch.float8_e4m3fn)
    plain = read_part(changed("sd1", lambda tensors: {**tensors, key: stored}).unet, dtype=torch.float32)
    assert torch.equal(plain[ours], stored.float())
    scales = {f"{UNET}{name}.scale_weight": torch.tensor(0.5), f"{UNET}scaled_fp8": torch.empty(2).to(stored.dtype)}
    scaled = read_part(changed("sd1", lambda tensors: {**tensors, key: stored, **scales}).unet, dtype=torch.float32)
    assert torch.equal(scaled[ours], stored.float() / 2)
