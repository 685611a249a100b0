"""Whole models around a U-Net that are written open in diffusers without network, and compute there the same."""

import socket
from functools import partial

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from library.families.unet.checkpoint import inspect_files, load_encoder, load_unet, load_vae
from library.families.unet.export import UnetModel, write_model
from library.models.tokenizers import load_tokenizers
from tests import tiny_unets

KINDS = {"sd1": (), "sd2": ("v_pred",), "sdxl": ("v_pred", "ztsnr")}
PIPELINES = {"sd1": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
ENCODERS = {"clip": "text_encoder", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
TOLERANCE = 1e-5
CPU = torch.device("cpu")


class Written:
    """A tiny model, changed as training changes it, as one file and as a folder."""

    def __init__(self, kind, marks, place):
        tiny = getattr(tiny_unets, f"write_{kind}")(place / "base")
        self.kind, self.marks, self.files = kind, marks, inspect_files(tiny.path, kinds=(kind,))
        names = tuple(self.files.encoders)
        self.unet = moved(load_unet(self.files, torch.float32, CPU))
        self.encoders = {name: moved(load_encoder(self.files, name, torch.float32, CPU)) for name in names}
        self.vae = load_vae(self.files, torch.float32, CPU)
        self.tokenizers = partial(load_tokenizers, names, tokenizer_dir=tiny.tokenizer_dir)
        self.folder = self.write(place / "m", "diffusers")

    def write(self, path, layout):
        states = {name: encoder.state_dict() for name, encoder in self.encoders.items()}
        model = UnetModel(self.files, self.unet.state_dict(), states, marks=frozenset(self.marks))
        return write_model(path, model, layout=layout, metadata=None, tokenizers=self.tokenizers)[0]

    def single_file(self, layout):
        path = self.write(self.folder.with_name(f"m.{layout}"), layout)
        return PIPELINES[self.kind].from_single_file(str(path), config=str(self.folder), local_files_only=True)

    def from_folder(self):
        return PIPELINES[self.kind].from_pretrained(self.folder, local_files_only=True)


def moved(module):
    """Other weights than in the file; not the projection that stands in where none is read."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "text_projection.weight" or parameter.shape[0] == tiny_unets.CLIP_G_WIDTH:
                parameter.mul_(1.05)
    return module


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    return Written(request.param, KINDS[request.param], tmp_path_factory.mktemp("written"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def close(found, expected):
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max())


def check_complete(pipeline):
    """What a file lacks stays without numbers there, and is noticed only when it is used."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            tensors = [*part.named_parameters(), *part.named_buffers()]
            assert [f"{name}.{key}" for key, tensor in tensors if tensor.is_meta] == []


@torch.no_grad()
def check_equal(pipeline, written):
    """Every network computes what ours does."""
    check_complete(pipeline)
    ids = torch.tensor([[500, 3, 77, 501]])
    for name, encoder in written.encoders.items():
        theirs, ours = (model(ids, output_hidden_states=True) for model in (getattr(pipeline, ENCODERS[name]), encoder))
        assert len(theirs.hidden_states) == len(ours.hidden_states)
        close(theirs.hidden_states[-1], ours.hidden_states[-1])
        close(theirs.hidden_states[-2], ours.hidden_states[-2])
        if name == "clip_g":
            close(theirs.text_embeds, ours.text_embeds)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    close(pipeline.vae.decode(latents).sample, written.vae.decode(latents).sample)
    context = torch.randn(1, 5, written.files.config["cross_attention_dim"], generator=generator)
    more = {}
    if written.kind == "sdxl":
        pooled = torch.randn(1, tiny_unets.CLIP_G_WIDTH, generator=generator)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.tensor([[64, 64, 0, 8, 64, 64]])}
    arguments = (latents, torch.tensor([400]), context)
    close(pipeline.unet(*arguments, **more).sample, written.unet(*arguments, **more).sample)


def test_the_folder_opens_with_equal_networks_and_draws(written):
    pipeline = written.from_folder()
    check_equal(pipeline, written)
    assert pipeline.vae.config.scaling_factor == (0.13025 if written.kind == "sdxl" else 0.18215)
    assert (pipeline.scheduler.config.prediction_type == "v_prediction") == ("v_pred" in written.marks)
    assert bool(pipeline.scheduler.config.get("rescale_betas_zero_snr")) == ("ztsnr" in written.marks)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a red circle", num_inference_steps=2, height=64, width=64, output_type="latent").images
    assert torch.isfinite(drawn).all() and drawn.std() > 0.1


def test_a_single_file_opens_with_equal_networks(written):
    """The folder tells sizes; diffusers knows only files of real size, as test_unet_export_manifests.py shows."""
    check_equal(written.single_file("ckpt" if written.kind == "sd2" else "safetensors"), written)
