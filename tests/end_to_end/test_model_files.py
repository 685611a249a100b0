"""Whole models converted, merged, taken apart and put together by the scripts, as a user calls them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.families.unet.folder_schedule import schedule_of
from library.families.unet.marks import SCHEDULER
from library.tensorfile import read_header
from tools import convert_diffusers20_original_sd as conversion
from tools import merge_models as merging
from tools import merge_sd3_safetensors as sd3_parts

KINDS = ("sd1", "sd2", "sdxl", "sd3")
OF_SD2 = ("cond_stage_model.model.text_projection", "cond_stage_model.model.transformer.resblocks.2.")  # not used
OLD_SETTINGS = ("alphas_cumprod", "betas", "model_ema.")
NOT_IN_FOLDERS = {"sd1": OLD_SETTINGS, "sd2": (*OLD_SETTINGS, *OF_SD2), "sdxl": (), "sd3": ()}


@pytest.fixture(scope="module")
def source(request, tiny_unet_models, tiny_sd3):
    """Path of the tiny model of each kind."""
    return {**tiny_unet_models, "sd3": tiny_sd3}


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory):
    """Each of them as a folder."""
    place = tmp_path_factory.mktemp("folders")
    for kind in KINDS:
        assert convert(source[kind], place / kind) == 0
    return {kind: place / kind for kind in KINDS}


def convert(*arguments):
    return conversion.main([str(argument) for argument in arguments])


def merge(*arguments):
    return merging.main([str(argument) for argument in arguments])


def parts(*arguments):
    return sd3_parts.main([str(argument) for argument in arguments])


def same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name].dtype != expected[name].dtype] == []
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def files_in(folder):
    return {file.relative_to(folder).as_posix(): load_file(file) for file in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_gives_the_same_tensors(kind, source, folders, tmp_path):
    assert convert(folders[kind], tmp_path / "back.safetensors") == 0
    found, expected = load_file(tmp_path / "back.safetensors"), load_file(source[kind])
    if NOT_IN_FOLDERS[kind]:
        found, expected = (
            {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_IN_FOLDERS[kind])}
            for tensors in (found, expected)
        )
    same(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_by_way_of_a_pickle_is_the_same_folder(kind, folders, tmp_path):
    assert convert(folders[kind], tmp_path / "m.ckpt", "--epoch", 3, "--global_step", 700) == 0
    pickled = torch.load(tmp_path / "m.ckpt", weights_only=True)
    assert (pickled["epoch"], pickled["global_step"]) == (3, 700)
    assert convert(tmp_path / "m.ckpt", tmp_path / "folder", "--reference_model", folders[kind]) == 0
    found, expected = files_in(tmp_path / "folder"), files_in(folders[kind])
    assert found.keys() == expected.keys()
    for name in expected:
        same(found[name], expected[name])
    for name in ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json", "tokenizer/vocab.json"):
        assert (tmp_path / "folder" / name).read_bytes() == (folders[kind] / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_opens_the_folder_with_networks_that_compute_as_ours(kind, source, folders):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folders[kind], local_files_only=True, torch_dtype=torch.float32)
    latents = torch.randn(1, 16 if kind == "sd3" else 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[500, 3, 77, 501]])
    for ours, theirs in our_outputs(kind, source[kind], latents, ids, pipeline):
        assert ours.std() > 0.001
        assert torch.allclose(ours, theirs.float(), atol=2e-5 * max(1.0, float(ours.abs().max())))


@torch.no_grad()
def our_outputs(kind, path, latents, ids, pipeline):
    """(ours, diffusers' or transformers') of every network, in float32."""
    if kind == "sd3":
        from library.families.sd3.checkpoint import inspect_files, load_mmdit, read_part
        from library.models.text_encoders import load_clip
        from library.models.vae import load_vae

        files = inspect_files(path)
        context, pooled = torch.randn(1, 5, files.config.context_dim), torch.randn(1, files.config.pooled_dim)
        mmdit, timestep = load_mmdit(files, torch.float32, "cpu"), torch.tensor([400.0])
        yield (
            mmdit(latents, timestep, context, pooled),
            pipeline.transformer(latents, context, pooled, timestep).sample,
        )
        vae = load_vae(read_part(files.vae, dtype=torch.float32))
        encoder = load_clip(read_part(files.clip_g, dtype=torch.float32), kind="clip_g")
        yield encoder(ids).text_embeds, pipeline.text_encoder_2(ids).text_embeds
    else:
        from library.families.unet.checkpoint import inspect_files, load_encoder, load_unet, load_vae

        files = inspect_files(path, kinds=(kind,))
        name, own = ("clip_g", "text_encoder_2") if kind == "sdxl" else ("clip", "text_encoder")
        encoder = load_encoder(files, name, torch.float32, "cpu")
        yield encoder(ids).last_hidden_state, getattr(pipeline, own)(ids).last_hidden_state
        vae = load_vae(files, torch.float32, "cpu")
        arguments = latents, torch.tensor([400]), torch.randn(1, 5, files.config["cross_attention_dim"])
        sizes = {"text_embeds": torch.randn(1, 48), "time_ids": torch.tensor([[64, 64, 0, 8, 64, 64]])}
        more = {"added_cond_kwargs": sizes} if kind == "sdxl" else {}
        unet = load_unet(files, torch.float32, "cpu")
        yield unet(*arguments, **more).sample, pipeline.unet(*arguments, **more).sample
    yield vae.decode(latents).sample, pipeline.vae.decode(latents).sample


def test_a_variant_is_written_and_read(source, tmp_path):
    assert convert(source["sd1"], tmp_path / "folder", "--variant", "fp16", "--fp16", "--v1") == 0
    names = {file.name for file in (tmp_path / "folder").rglob("*.safetensors")}
    assert names == {"diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"}
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "folder", variant="fp16", torch_dtype=torch.float16)
    assert pipeline.unet.dtype == torch.float16
    assert convert(tmp_path / "folder", tmp_path / "m.safetensors", "--variant", "fp16") == 0
    found, stored = load_file(tmp_path / "m.safetensors"), load_file(source["sd1"])
    same(found, {name: stored[name].half() if stored[name].is_floating_point() else stored[name] for name in found})


def test_one_of_two_variants_in_a_folder_is_chosen(source, folders, tmp_path, capsys):
    both = Path(shutil.copytree(folders["sd1"], tmp_path / "both"))
    assert convert(source["sd1"], tmp_path / "half", "--variant", "fp16", "--fp16") == 0
    for file in (tmp_path / "half").rglob("*.fp16.safetensors"):
        shutil.copy(file, both / file.parent.name)
    key = "model.diffusion_model.out.2.weight"
    for arguments, dtype in (((), torch.float32), (("--variant", "fp16"), torch.float16)):
        assert convert(both, tmp_path / "m.safetensors", *arguments) == 0
        assert load_file(tmp_path / "m.safetensors")[key].dtype == dtype
    assert convert(folders["sd1"], tmp_path / "x.safetensors", "--variant", "fp16") == 2
    assert "without diffusion_pytorch_model.fp16.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "written"), [("v_prediction", "v_prediction"), ("epsilon", "epsilon")])
def test_the_scheduler_of_a_folder_says_what_the_user_says(given, written, source, tmp_path):
    assert convert(source["sd2"], tmp_path / "folder", "--prediction_type", given) == 0
    settings = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert settings["prediction_type"] == written


@pytest.mark.parametrize(
    ("spread", "expected"), [(0.02, None), (0.3, "v_prediction")]
)  # None is noise, for all readers
def test_a_weight_tells_what_a_file_of_sd2_predicts(spread, expected, source, tmp_path):
    tensors = load_file(source["sd2"])
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    tensors[name] = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0)) * spread
    save_file(tensors, tmp_path / "m.safetensors")
    assert convert(tmp_path / "m.safetensors", tmp_path / "folder", "--reference_model", source["sd2"].parent) == 0
    settings = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert settings.get("prediction_type") == expected
    assert convert(tmp_path / "m.safetensors", tmp_path / "again.safetensors") == 0
    assert "modelspec.prediction_type" not in read_header(tmp_path / "again.safetensors").metadata


def scheduler_of(folder):
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


def said_by(path):
    metadata = read_header(path).metadata
    return [metadata.get(key) for key in ("modelspec.prediction_type", "ss_zero_terminal_snr")]


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_what_a_model_predicts_survives_there_and_back(kind, source, tmp_path):
    """And what its schedule ends in."""
    folder, back = tmp_path / "folder", tmp_path / "back.safetensors"
    assert convert(source[kind], folder, "--prediction_type", "v_prediction", "--zero_terminal_snr") == 0
    settings = scheduler_of(folder)
    assert (settings["prediction_type"], settings["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert convert(folder, back) == 0
    assert said_by(back) == ["v", "True"]
    assert convert(back, tmp_path / "again") == 0
    assert scheduler_of(tmp_path / "again") == settings
    assert convert(back, tmp_path / "again.safetensors", "--fp16") == 0
    assert said_by(tmp_path / "again.safetensors") == ["v", "True"]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_guess_is_told_and_does_not_become_a_statement(kind, source, tmp_path, capsys):
    assert convert(source[kind], tmp_path / "folder") == 0
    told = capsys.readouterr().err
    assert "does not say what it predicts, so noise is taken. If that is wrong, give --prediction_type" in told
    assert "prediction_type" not in scheduler_of(tmp_path / "folder")
    assert convert(tmp_path / "folder", tmp_path / "back.safetensors") == 0
    assert said_by(tmp_path / "back.safetensors") == [None, None]


def test_an_option_against_what_the_model_says_is_obeyed_with_a_warning(source, tmp_path, capsys):
    marked, other = tmp_path / "v.safetensors", tmp_path / "e.safetensors"
    assert convert(source["sd1"], marked, "--prediction_type", "v_prediction") == 0
    assert "WARNING" not in capsys.readouterr().err
    assert convert(marked, other, "--prediction_type", "epsilon") == 0
    assert "says that it predicts the velocity. With --prediction_type epsilon the new" in capsys.readouterr().err
    assert said_by(other) == ["epsilon", None]


def test_a_pickle_of_sd1_that_predicts_the_velocity_cannot_say_so(source, tmp_path, capsys):
    flags = ("--prediction_type", "v_prediction", "--zero_terminal_snr")
    assert convert(source["sd1"], tmp_path / "m.ckpt", *flags) == 0
    assert "Use it with --v_parameterization and --zero_terminal_snr." in capsys.readouterr().err


def test_a_reference_that_never_reaches_pure_noise_is_not_taken_for_a_model_that_does(
    source, folders, tmp_path, capsys
):
    flags = ("--prediction_type", "v_prediction", "--zero_terminal_snr", "--reference_model", folders["sd1"])
    assert convert(source["sd1"], tmp_path / "folder", *flags) == 0
    settings = scheduler_of(tmp_path / "folder")
    assert (settings["prediction_type"], settings["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert "never reaches pure noise" in capsys.readouterr().err


LINEAR = {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195}


@pytest.fixture
def scheduled(folders, tmp_path):
    """scheduled(name, settings): the folder of SD1 with these settings changed in its scheduler."""

    def make(name, settings):
        own = Path(shutil.copytree(folders["sd1"], tmp_path / name))
        (own / SCHEDULER).write_text(json.dumps({**scheduler_of(own), **settings}))
        return own

    return make


EULER = {"_class_name": "EulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("reference", "is_taken", "told"),
    [
        (EULER, True, "is for other models: its betas become linear, 0.0015 to 0.0195."),
        ({**EULER, "beta_schedule": "exp"}, True, "is for other models: its betas become linear, 0.0015 to 0.0195."),
        ({**EULER, **LINEAR}, True, ""),
        ({"_class_name": "EDMEulerScheduler"}, False, "is for models of another kind: the usual one is written."),
    ],
    ids=["other betas", "unknown betas", "the same", "another kind"],
)
def test_betas_that_a_model_names_go_before_those_of_a_reference(
    scheduled, tmp_path, capsys, reference, is_taken, told
):
    model, other = scheduled("m", LINEAR), scheduled("r", reference)
    assert convert(model, tmp_path / "folder", "--reference_model", other) == 0
    written, said = scheduler_of(tmp_path / "folder"), " ".join(capsys.readouterr().err.split())
    assert {name: written[name] for name in LINEAR} == LINEAR
    assert (written["_class_name"] == "EulerDiscreteScheduler") is is_taken
    assert told in said if told else "WARNING" not in said


def test_betas_of_a_reference_are_taken_for_a_file_which_names_none(source, scheduled, tmp_path, capsys):
    assert convert(source["sd1"], tmp_path / "folder", "--reference_model", scheduled("r", LINEAR)) == 0
    assert schedule_of(scheduler_of(tmp_path / "folder")) == schedule_of(LINEAR)
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize("has_reference", [False, True], ids=["alone", "with a reference"])
def test_what_a_folder_gets_in_place_of_an_unknown_schedule_is_told(scheduled, tmp_path, capsys, has_reference):
    model, other = scheduled("m", {"beta_schedule": "exp"}), scheduled("r", LINEAR)
    flags = ("--reference_model", other) if has_reference else ()
    assert convert(model, tmp_path / "folder", *flags) == 0
    assert schedule_of(scheduler_of(tmp_path / "folder")) == schedule_of(LINEAR if has_reference else {})
    instead = f"the scheduler of {other}" if has_reference else "the usual scheduler"
    said = " ".join(capsys.readouterr().err.split())
    fault = "beta_schedule 'exp' is not known; known are linear, scaled_linear, squaredcos_cap_v2"
    assert said.count(f"{model / SCHEDULER}: {fault}. The folder that is written gets {instead}.") == 1


def test_a_merged_model_predicts_what_the_first_one_says(source, tmp_path):
    marked = tmp_path / "v.safetensors"
    assert convert(source["sd1"], marked, "--prediction_type", "v_prediction", "--zero_terminal_snr") == 0
    assert merge("--models", marked, source["sd1"], "--output", tmp_path / "m.safetensors") == 0
    assert said_by(tmp_path / "m.safetensors") == ["v", "True"]


def test_what_a_folder_says_of_the_prediction_goes_into_a_file_of_sdxl(source, tmp_path, capsys):
    assert convert(source["sdxl"], tmp_path / "folder", "--prediction_type", "v_prediction") == 0
    scheduler = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
    assert "scaled_linear" in scheduler.read_text()
    scheduler.write_text(scheduler.read_text().replace("scaled_linear", "linear"))
    assert "schedule of noise" not in capsys.readouterr().err
    assert convert(tmp_path / "folder", tmp_path / "m.safetensors") == 0
    assert "(linear, 0.00085 to 0.012): programs take the usual schedule of noise" in capsys.readouterr().err
    assert "v_pred" in load_file(tmp_path / "m.safetensors")
    assert read_header(tmp_path / "m.safetensors").metadata["modelspec.prediction_type"] == "v"


def test_a_folder_without_tokenizers_is_named_with_the_option_of_this_tool(source, tmp_path, capsys):
    shutil.copy(source["sd1"], tmp_path / "alone.safetensors")
    assert convert(tmp_path / "alone.safetensors", tmp_path / "new" / "folder") == 0
    told = capsys.readouterr().err
    assert f"{tmp_path / 'new' / 'folder'} is written without tokenizers" in told
    assert "Give --reference_model: " in told and "--tokenizer_dir" not in told


def test_metadata_is_kept_and_added_to(source, tmp_path):
    save_file(load_file(source["sd1"]), tmp_path / "a.safetensors", {"modelspec.architecture": "x", "mine": "1"})
    said = ("--metadata", '{"modelspec.title": "T", "n": 2}', "--bf16")
    assert convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", *said) == 0
    found = read_header(tmp_path / "b.safetensors")
    expected = {"modelspec.architecture": "x", "mine": "1", "modelspec.title": "T", "n": "2"}
    assert expected.items() <= found.metadata.items()
    assert {info.dtype for info in found.tensors.values()} == {"BF16", "I64"}


def test_merging_half_and_half_and_one_and_none_of_sd3(source, tmp_path):
    first = load_file(source["sd3"])
    save_file({name: tensor * 0.5 for name, tensor in first.items()}, tmp_path / "b.safetensors")
    models = ("--models", source["sd3"], tmp_path / "b.safetensors", "--output", tmp_path / "m.safetensors")
    assert merge(*models, "--ratios", 1, 0, "--saving_precision", "fp16") == 0
    same(load_file(tmp_path / "m.safetensors"), first)
    assert merge(*models) == 0
    found = load_file(tmp_path / "m.safetensors")
    assert all(torch.allclose(found[name], first[name].float() * 0.75, atol=1e-3) for name in first)


def test_models_that_predict_different_things_are_told(source, tmp_path, capsys):
    save_file({**load_file(source["sdxl"]), "v_pred": torch.zeros(0)}, tmp_path / "v.safetensors")
    models = ("--models", source["sdxl"], tmp_path / "v.safetensors", "--output", tmp_path / "m.safetensors")
    assert merge(*models) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "predicts the noise" in said and "v.safetensors predicts the velocity" in said


def test_a_merged_model_is_a_model(source, tmp_path):
    from tests.tiny_unets import write_sdxl

    other = write_sdxl(tmp_path / "b", seed=1).path
    assert merge("--models", source["sdxl"], other, "--output", tmp_path / "m.safetensors", "--unet_only") == 0
    assert convert(tmp_path / "m.safetensors", tmp_path / "folder", "--reference_model", source["sdxl"].parent) == 0


def test_the_parts_of_a_folder_of_sd3_go_into_one_file_and_apart(folders, source, tmp_path):
    assert parts("--dit", folders["sd3"], "--output", tmp_path / "m.safetensors") == 0
    same(load_file(tmp_path / "m.safetensors"), load_file(source["sd3"]))
    assert parts("--split", tmp_path / "m.safetensors", "--output_dir", tmp_path / "p") == 0
    files = {file.stem: file for file in (tmp_path / "p").iterdir()}
    again = [word for name, file in files.items() for word in (f"--{name}", file)]
    assert parts(*again, "--output", tmp_path / "again.safetensors") == 0
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def wrong_cases(source, folders, place):
    """(what is called, its arguments, exit code, what the error says)"""
    shutil.copy(source["sd1"], place / "own.safetensors")
    content = source["sd1"].read_bytes()
    (place / "short.safetensors").write_bytes(content[:-100])
    (place / "page.safetensors").write_text("<!DOCTYPE html><html></html>")
    tensors = load_file(source["sd1"])
    denoiser = {name: tensor for name, tensor in tensors.items() if name.startswith("model.diffusion_model.")}
    save_file(denoiser, place / "unet.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1, 1)}, place / "lora.safetensors")
    save_file(
        {**tensors, "first_stage_model.quant_conv.bias": torch.full((8,), float("nan"))}, place / "nan.safetensors"
    )
    target = place / "target.safetensors"
    sd1, own = source["sd1"], place / "own.safetensors"
    return [
        (convert, (place / "no.safetensors", target), 2, "MODEL_TO_LOAD: .*no.safetensors does not exist"),
        (convert, (place / "short.safetensors", target), 2, "is truncated"),
        (convert, (place / "page.safetensors", target), 2, "is a web page"),
        (convert, (place / "unet.safetensors", target), 2, "has no CLIP text encoder inside. Use a complete model"),
        (convert, (place / "lora.safetensors", target), 2, "is a LoRA .* Convert it with networks/convert_lora.py"),
        (convert, (place / "nan.safetensors", target), 2, "quant_conv.bias has NaN"),
        (convert, (sd1, target, "--v2"), 2, "--v2: .* is a Stable Diffusion 1.x model"),
        (convert, (source["sd3"], target, "--prediction_type", "epsilon"), 2, "predicts a flow"),
        (convert, (source["sd3"], target, "--zero_terminal_snr"), 2, "which has no such schedule"),
        (convert, (sd1, target, "--variant", "fp16"), 2, "--variant is for diffusers folders"),
        (convert, (own, own), 2, "MODEL_TO_SAVE .* is also read"),
        (convert, (folders["sd1"], folders["sd1"]), 2, "has the model inside that is read"),
        (convert, (sd1, place), 2, "MODEL_TO_SAVE .* has files inside already"),
        (convert, (sd1, folders["sdxl"]), 2, "MODEL_TO_SAVE .* has a model inside already"),
        (convert, (sd1, place / "folder", "--reference_model", place / "no"), 2, "is not a folder on this machine"),
        (convert, (sd1, place / "folder", "--reference_model", place), 2, "--reference_model: .*tokenizer of CLIP"),
        (convert, (sd1,), 2, "MODEL_TO_SAVE is needed"),
        (merge, ("--models", sd1, folders["sd1"], "--output", target), 2, "is a folder. Convert it to one file first"),
        (merge, ("--models", sd1, source["sdxl"], "--output", target), 2, "Only models of one family"),
        (merge, ("--models", sd1, own, "--output", own), 2, "is also read"),
        (merge, ("--models", sd1, place / "nan.safetensors", "--output", target), 2, "has NaN"),
        (merge, ("--models", sd1, own, "--output", target, "--device", "cuda:99"), 3, "there is no such device"),
        (merge, ("--models", sd1, own), 2, "--output is needed"),
        (parts, ("--split", sd1, "--output_dir", place / "p"), 2, "is a Stable Diffusion 1.x model, not an SD3"),
        (parts, ("--dit", place / "lora.safetensors", "--output", target), 2, "--dit: .* is a LoRA"),
        (parts, ("--dit", source["sd3"], "--split", source["sd3"], "--output_dir", place), 2, "one after the other"),
        (parts, (), 2, "One of --dit, --split is needed"),
    ]


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(source, folders, tmp_path, capsys):
    import re

    cases = wrong_cases(source, folders, tmp_path)
    (tmp_path / "target.safetensors").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    for call, arguments, code, said in cases:
        capsys.readouterr()
        assert call(*arguments) == code, arguments
        shown = capsys.readouterr().err
        errors = [line for line in shown.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and re.search(said, errors[0]) and "Traceback" not in shown, shown
        assert "pretrained_model_name_or_path" not in shown and "Train it" not in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "target.safetensors").read_text() == "mine"


@pytest.mark.skipif(not hasattr(shutil.os, "geteuid") or shutil.os.geteuid() == 0, reason="all may be written")
def test_a_folder_that_may_not_be_written_to_is_told_before_anything_is_read(source, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert convert(source["sd1"], tmp_path / "closed" / "m.safetensors") == 2
    assert "nothing may be written to" in capsys.readouterr().err
