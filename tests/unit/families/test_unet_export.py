"""Whole models around a U-Net that are written hold what was trained and, bit by bit, what was not."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library.checkpoint.weights import part_identity
from library.errors import OutputError
from library.families.unet.checkpoint import inspect_files, load_encoder, read_part
from library.families.unet.export import UnetModel, model_bytes, write_model
from library.models.tokenizers import load_tokenizers
from library.training.sharding.gathered import LaterTensor
from tests import tiny_unets

KINDS = ("sd1", "sd2", "sdxl")
FILES = {"safetensors": "m.safetensors", "ckpt": "m.ckpt", "diffusers": "m"}
NOT_WRITTEN = ("model_ema.", "betas", "alphas_cumprod")
UNET, CLIP_G = "model.diffusion_model.", "conditioner.embedders.1.model."


@pytest.fixture(scope="module", params=KINDS)
def single(request, tmp_path_factory):
    """The files of a published model."""
    return opened(tmp_path_factory.mktemp(request.param), request.param)


def opened(place, kind, **how):
    return inspect_files(getattr(tiny_unets, f"write_{kind}")(place, **how).path, kinds=(kind,))


def write(place, model, layout="safetensors", metadata=None):
    def tokenizers():
        source = model.files.unet.path
        folder = source.parent if source.is_file() or source.name == "unet" else source
        return load_tokenizers(tuple(model.files.encoders), tokenizer_dir=folder)

    return write_model(place / FILES[layout], model, layout=layout, metadata=metadata, tokenizers=tokenizers)[0]


def reopened(place, model, layout):
    return inspect_files(write(place, model, layout), kinds=(model.files.kind,))


def parts_of(files):
    return {"unet": files.unet, "vae": files.vae, **files.encoders}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("layout", ["safetensors", "ckpt"])
def test_a_published_file_is_written_as_it_was_but_for_averages_and_schedules(layout, single, tmp_path):
    path = write(tmp_path, UnetModel(single, {}, {}), layout)
    written = load_file(path) if layout == "safetensors" else torch.load(path, weights_only=True)["state_dict"]
    source = load_file(single.unet.path)
    assert_equal(written, {name: tensor for name, tensor in source.items() if not name.startswith(NOT_WRITTEN)})


@pytest.mark.parametrize("layout", FILES)
def test_what_is_written_opens_with_equal_tensors_and_identities(layout, single, tmp_path):
    model = UnetModel(single, {}, {})
    again = reopened(tmp_path, model, layout)
    assert (again.kind, again.config, again.marks) == (single.kind, single.config, single.marks)
    for name, part in parts_of(again).items():
        expected, found = read_part(parts_of(single)[name]), read_part(part)
        if layout == "diffusers":  # folders leave out what is not used
            expected = {key: tensor for key, tensor in expected.items() if key in found}
        else:
            assert part_identity(part) == part_identity(parts_of(single)[name])
        assert_equal(found, expected)


def test_a_diffusers_folder_becomes_a_published_file_and_comes_back_unchanged(single, tmp_path):
    folder = reopened(tmp_path, UnetModel(single, {}, {}), "diffusers")
    assert folder.unet.is_diffusers and folder.vae.is_diffusers
    (tmp_path / "b").mkdir()
    written = reopened(tmp_path / "b", UnetModel(folder, {}, {}), "safetensors")
    source = {name for name in load_file(single.unet.path) if not name.startswith(NOT_WRITTEN)}
    assert set(load_file(written.unet.path)) == source
    for name, part in parts_of(written).items():
        expected, found = read_part(parts_of(folder)[name]), read_part(part)
        assert_equal({key: found[key] for key in expected}, expected)


def test_stand_ins_fill_what_a_folder_of_sd2_lacks(tmp_path):
    folder = (
        opened(tmp_path / "a", "sd2_folder")
        if False
        else inspect_files(tiny_unets.write_sd2_folder(tmp_path / "a").path, kinds=("sd2",))
    )
    encoder = read_part(reopened(tmp_path, UnetModel(folder, {}, {}), "safetensors").encoders["clip"])
    layers = {
        number: {
            name.partition(f".{number}.")[2]: tensor for name, tensor in encoder.items() if f"layers.{number}." in name
        }
        for number in (1, 2)
    }
    assert_equal(layers[2], layers[1])
    assert torch.equal(encoder["text_projection.weight"], torch.eye(tiny_unets.CLIP_L_WIDTH))
    assert encoder["logit_scale"].item() == pytest.approx(4.6052)


def test_what_was_trained_takes_its_place_and_the_rest_is_kept(single, tmp_path):
    some = dict(list(read_part(single.unet).items())[5:9])
    denoiser = {name: tensor * 1.25 for name, tensor in some.items()}
    name = next(reversed(single.encoders))
    encoder = load_encoder(single, name, torch.float32, "cpu")
    with torch.no_grad():
        encoder.text_model.encoder.layers[1].mlp.fc1.weight.mul_(1.25)
        encoder.text_model.encoder.layers[0].self_attn.k_proj.bias.add_(1)
    again = reopened(tmp_path, UnetModel(single, denoiser, {name: encoder.state_dict()}), "safetensors")
    assert_equal(read_part(again.unet), {**read_part(single.unet), **denoiser})
    assert_equal(read_part(again.vae), read_part(single.vae))
    changed = {key: t for key, t in encoder.state_dict().items() if key.startswith("text_model.encoder")}
    found = read_part(again.encoders[name])
    assert_equal(found, {**read_part(single.encoders[name]), **changed})
    assert torch.equal(
        found["text_model.encoder.layers.1.mlp.fc1.weight"], changed["text_model.encoder.layers.1.mlp.fc1.weight"]
    )


def test_the_projection_of_sdxl_trains_and_is_turned_as_open_clip_has_it(tmp_path):
    files = opened(tmp_path / "a", "sdxl")
    encoder = load_encoder(files, "clip_g", torch.float32, "cpu")
    with torch.no_grad():
        encoder.text_projection.weight.mul_(1.25)
    path = write(tmp_path, UnetModel(files, {}, {"clip_g": encoder.state_dict()}))
    before, after = (load_file(file)[f"{CLIP_G}text_projection"] for file in (files.unet.path, path))
    assert torch.equal(after, before * 1.25) and torch.equal(after, encoder.text_projection.weight.t())


def test_marks_say_what_an_sdxl_model_predicts_and_other_files_have_none(single, tmp_path):
    model = UnetModel(single, {}, {}, marks=frozenset(("v_pred", "ztsnr")))
    again = reopened(tmp_path, model, "safetensors")
    assert again.marks == (model.marks if single.kind == "sdxl" else frozenset())
    assert reopened(tmp_path, model, "diffusers").marks == model.marks
    plain = UnetModel(again, {}, {})  # trained for noise from a file with marks
    (tmp_path / "b").mkdir()
    assert reopened(tmp_path / "b", plain, "safetensors").marks == frozenset()


@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
def test_every_float_is_cast_and_what_it_takes_is_known_before(layout, single, tmp_path):
    model = UnetModel(single, {}, {}, torch.float16)
    path = write(tmp_path, model, layout, {"modelspec.title": "t"})
    files = [path] if path.is_file() else list(path.rglob("*.safetensors"))
    tensors = {f"{file.parent.name}/{name}": t for file in files for name, t in load_file(file).items()}
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    assert model_bytes(model, layout=layout) == sum(t.numel() * t.element_size() for t in tensors.values())
    if path.is_file():
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"modelspec.title": "t"}


def test_tensors_that_are_gathered_when_they_are_used_are_written_alike(tmp_path):
    files = opened(tmp_path / "a", "sdxl")
    states = read_part(files.unet), load_encoder(files, "clip_g", torch.float32, "cpu").state_dict()

    def later(state):
        return {name: LaterTensor(tensor, torch.Tensor.clone) for name, tensor in state.items()}

    (tmp_path / "b").mkdir()
    at_hand = write(tmp_path, UnetModel(files, states[0], {"clip_g": states[1]}))
    gathered = write(tmp_path / "b", UnetModel(files, later(states[0]), {"clip_g": later(states[1])}))
    assert gathered.read_bytes() == at_hand.read_bytes()


def test_the_models_own_files_are_never_written_over(tmp_path):
    files = opened(tmp_path, "sd1")
    source = files.unet.path.rename(tmp_path / FILES["safetensors"])
    files = inspect_files(source, kinds=("sd1",))
    before = source.read_bytes()
    with pytest.raises(OutputError, match="is of the model that this training reads"):
        write(tmp_path, UnetModel(files, {}, {}))
    assert source.read_bytes() == before


def test_a_ckpt_trains_on_from_what_it_holds(single, tmp_path):
    again = reopened(tmp_path, UnetModel(single, {}, {}), "ckpt")
    (tmp_path / "b").mkdir()
    path = write(tmp_path / "b", UnetModel(again, {}, {}))
    twin = write(tmp_path, UnetModel(single, {}, {}))
    assert path.read_bytes() == twin.read_bytes()
