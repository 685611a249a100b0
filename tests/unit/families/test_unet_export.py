"""Whole models around a U-Net that are written hold what was trained and, bit by bit, what was not."""

from functools import cached_property

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library.checkpoint.weights import part_identity
from library.errors import OutputError
from library.families.unet.checkpoint import inspect_files, load_encoder, read_part
from library.families.unet.export import UnetModel, check_places, model_bytes, write_model
from library.models.tokenizers import load_tokenizers
from library.training.sharding.gathered import LaterTensor
from tests import tiny_unets

KINDS = ("sd1", "sd2", "sdxl")
NAMES = {"safetensors": "m.safetensors", "ckpt": "m.ckpt", "diffusers": "m"}
NOT_WRITTEN = ("model_ema.", "betas", "alphas_cumprod")
MARKS = ("v_pred", "ztsnr")
CLIP_G = "conditioner.embedders.1.model."


class Published:
    """A tiny model in a published file, and what is written of it without any training."""

    def __init__(self, kind, place):
        how = {"marks": MARKS} if kind == "sdxl" else {}
        self.kind, self.place = kind, place
        self.tiny = getattr(tiny_unets, f"write_{kind}")(place / "base", **how)
        self.files = self.open(self.tiny.path)
        self.untrained = self.model()

    def open(self, path):
        return inspect_files(path, kinds=(self.kind,))

    def model(self, denoiser=None, encoders=None, **how):
        return UnetModel(self.files, denoiser or {}, encoders or {}, **{"marks": frozenset(MARKS), **how})

    def write(self, place, model, layout="safetensors", metadata=None):
        def tokenizers():
            return load_tokenizers(tuple(self.files.encoders), tokenizer_dir=self.tiny.tokenizer_dir)

        return write_model(place / NAMES[layout], model, layout=layout, metadata=metadata, tokenizers=tokenizers)[0]

    @cached_property
    def published_names(self):
        return {name for name in load_file(self.tiny.path) if not name.startswith(NOT_WRITTEN)}

    @cached_property
    def as_safetensors(self):
        return self.open(self.write(self.place, self.untrained))

    @cached_property
    def as_ckpt(self):
        return self.open(self.write(self.place, self.untrained, "ckpt"))

    @cached_property
    def as_folder(self):
        return self.open(self.write(self.place, self.untrained, "diffusers"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Of each kind."""
    return {kind: Published(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def one(request, published):
    """One kind after the other."""
    return published[request.param]


def parts_of(files):
    return {"unet": files.unet, "vae": files.vae, **files.encoders}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def test_a_published_file_is_written_as_it_was_but_for_averages_and_schedules(one):
    expected = {name: tensor for name, tensor in load_file(one.tiny.path).items() if name in one.published_names}
    assert_equal(load_file(one.as_safetensors.unet.path), expected)
    assert_equal(torch.load(one.as_ckpt.unet.path, weights_only=True)["state_dict"], expected)


@pytest.mark.parametrize("layout", ["as_safetensors", "as_ckpt"])
def test_what_is_written_is_the_same_model_for_whoever_opens_it(layout, one):
    again = getattr(one, layout)
    assert (again.kind, again.config, again.marks) == (one.kind, one.files.config, one.files.marks)
    for name, part in parts_of(again).items():
        assert part_identity(part) == part_identity(parts_of(one.files)[name])
        assert_equal(read_part(part), read_part(parts_of(one.files)[name]))


def test_a_folder_has_the_weights_that_are_used_and_says_what_it_predicts(one):
    again = one.as_folder
    assert (again.kind, again.config, again.marks) == (one.kind, one.files.config, frozenset(MARKS))
    for name, part in parts_of(again).items():
        source, found = read_part(parts_of(one.files)[name]), read_part(part)
        assert_equal(found, {key: source[key] for key in found})
        unused = {key for key in source if "layers.2." in key or key in ("logit_scale", "text_projection.weight")}
        assert source.keys() - found.keys() == (unused if name != "clip_g" else {"logit_scale"})


def test_a_file_from_a_folder_has_all_published_names(one, tmp_path):
    folder = one.as_folder
    assert folder.unet.is_diffusers and folder.vae.is_diffusers
    again = one.open(one.write(tmp_path, UnetModel(folder, {}, {}, marks=frozenset(MARKS))))
    assert set(load_file(again.unet.path)) == one.published_names
    for name, part in parts_of(again).items():
        expected, found = read_part(parts_of(folder)[name]), read_part(part)
        assert_equal({key: found[key] for key in expected}, expected)
    if one.kind == "sd2":  # what folders lack, and nobody uses
        clip = read_part(again.encoders["clip"])
        last, copied = (
            {key.partition(at)[2]: tensor for key, tensor in clip.items() if at in key} for at in (".1.", ".2.")
        )
        assert_equal(copied, last)
        assert torch.equal(clip["text_projection.weight"], torch.eye(tiny_unets.CLIP_L_WIDTH))
    if one.kind != "sd1":
        assert read_part(next(reversed(again.encoders.values())))["logit_scale"].item() == pytest.approx(4.6052)


def test_what_was_trained_takes_its_place_and_the_rest_is_kept(one, tmp_path):
    some = list(read_part(one.files.unet).items())[5:9]
    denoiser = {name: tensor * 1.25 for name, tensor in some}
    name = next(reversed(one.files.encoders))
    encoder = load_encoder(one.files, name, torch.float32, "cpu")
    with torch.no_grad():
        encoder.text_model.encoder.layers[1].mlp.fc1.weight.mul_(1.25)
        encoder.text_model.encoder.layers[0].self_attn.k_proj.bias.add_(1)
    again = one.open(one.write(tmp_path, one.model(denoiser, {name: encoder.state_dict()})))
    assert_equal(read_part(again.unet), {**read_part(one.files.unet), **denoiser})
    assert_equal(read_part(again.vae), read_part(one.files.vae))
    source, found = read_part(one.files.encoders[name]), read_part(again.encoders[name])
    trained = {key: tensor for key, tensor in encoder.state_dict().items() if key.startswith("text_model.encoder")}
    assert_equal(found, {**source, **trained})
    assert sum(not torch.equal(found[key], source[key]) for key in found) == 2


def test_the_projection_of_sdxl_trains_and_is_turned_as_open_clip_has_it(published, tmp_path):
    sdxl = published["sdxl"]
    encoder = load_encoder(sdxl.files, "clip_g", torch.float32, "cpu")
    with torch.no_grad():
        encoder.text_projection.weight.mul_(1.25)
    path = sdxl.write(tmp_path, sdxl.model(encoders={"clip_g": encoder.state_dict()}))
    before, after = (load_file(file)[f"{CLIP_G}text_projection"] for file in (sdxl.tiny.path, path))
    assert torch.equal(after, before * 1.25) and torch.equal(after, encoder.text_projection.weight.t())


def test_marks_are_of_what_was_trained_and_not_of_the_source(published):
    sdxl = published["sdxl"]
    assert sdxl.files.marks == frozenset(MARKS)
    assert not set(MARKS) & set(sdxl.model(marks=frozenset()).single_file())
    assert not set(MARKS) & set(published["sd2"].untrained.single_file())


@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
def test_every_float_is_cast_and_what_it_takes_is_known_before(layout, published, tmp_path):
    sdxl = published["sdxl"]
    model = sdxl.model(dtype=torch.float16, marks=frozenset())
    path = sdxl.write(tmp_path, model, layout, {"modelspec.title": "t"})
    files = [path] if path.is_file() else list(path.rglob("*.safetensors"))
    tensors = [tensor for file in files for tensor in load_file(file).values()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float16}
    assert model_bytes(model, layout=layout) == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if path.is_file():
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"modelspec.title": "t"}


def test_tensors_that_are_gathered_when_they_are_used_are_written_alike(published, tmp_path):
    sdxl = published["sdxl"]
    states = read_part(sdxl.files.unet), load_encoder(sdxl.files, "clip_g", torch.float32, "cpu").state_dict()
    later = [{name: LaterTensor(tensor, torch.Tensor.clone) for name, tensor in state.items()} for state in states]
    path = sdxl.write(tmp_path, sdxl.model(later[0], {"clip_g": later[1]}))
    assert path.read_bytes() == sdxl.as_safetensors.unet.path.read_bytes()


def test_the_models_own_files_are_never_written_over(published):
    sd1 = published["sd1"]
    with pytest.raises(OutputError, match="is of the model that this training reads"):
        check_places(sd1.files, [sd1.tiny.path], layout="safetensors")
    with pytest.raises(OutputError, match="is of the model that this training reads"):
        sd1.write(sd1.place, UnetModel(sd1.as_folder, {}, {}), "diffusers")
