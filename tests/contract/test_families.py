"""Every family keeps to the protocol of `library/families/base.py`: its names and arguments, and what they promise."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from library.families.base import ModelFamily
from library.options.spec import options_of, parse_options
from library.records import Size, View

COMPLETE = "Use a complete model file, or a diffusers folder"
CPU = torch.device("cpu")
KINDS = ("sd3", "sdxl", "sd1", "sd2")
CONSTANTS = [name for name, member in vars(ModelFamily).items() if isinstance(member, property)]
MEMBERS = [name for name, member in vars(ModelFamily).items() if inspect.isfunction(member) and name[0] != "_"]


def scripts(kind: str) -> tuple[Any, Any, Any]:
    """Options, text of the script and family."""
    if kind == "sd3":
        from library.families.sd3.family import Sd3Family
        from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions

        return Sd3NetworkOptions, NETWORK_SCRIPT, Sd3Family
    if kind == "sdxl":
        from library.families.sdxl.family import SdxlFamily
        from library.families.sdxl.options import SDXL_NETWORK_SCRIPT, SdxlNetworkOptions

        return SdxlNetworkOptions, SDXL_NETWORK_SCRIPT, SdxlFamily
    from library.families.sd.family import SdFamily
    from library.families.sd.options import SD_NETWORK_SCRIPT, SdNetworkOptions

    return SdNetworkOptions, SD_NETWORK_SCRIPT, SdFamily


@pytest.fixture(scope="module")
def family_of(tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The family of a tiny model, as a command line without further options makes it."""
    from tests.tiny_unets import write_sd1, write_sd2, write_sdxl

    def make(kind: str) -> Any:
        writers = {"sd1": write_sd1, "sd2": write_sd2, "sdxl": write_sdxl}
        path = tiny_sd3 if kind == "sd3" else writers[kind](tmp_path_factory.mktemp(kind)).path
        options_class, text, family = scripts(kind)
        needed = ("--output_dir=out", "--network_module=networks.lora", "--train_data_dir=pictures")
        tokenizers = () if kind == "sd3" else (f"--tokenizer_dir={path.parent}",)
        arguments = [f"--pretrained_model_name_or_path={path}", *needed, *tokenizers]
        return family.from_options(parse_options(options_class, arguments, **text))

    made: dict[str, Any] = {}
    return lambda kind: made.setdefault(kind, make(kind)) if kind not in made else made[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_every_function_with_the_same_arguments(kind: str):
    family = scripts(kind)[2]
    assert len(MEMBERS) > 30
    for name in MEMBERS:
        wanted, own = (inspect.signature(getattr(place, name)).parameters for place in (ModelFamily, family))
        assert list(own) == list(wanted), name
        assert [p.kind for p in own.values()] == [p.kind for p in wanted.values()], name


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_every_constant(kind: str, family_of: Callable[[str], Any]):
    family = family_of(kind)
    assert len(CONSTANTS) > 10
    for name in CONSTANTS:
        assert getattr(family, name) is not None, name
    assert family.bucket_multiple % family.pixels_per_latent == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_the_denoiser_is_in_one_part(kind: str, family_of: Callable[[str], Any]):
    family = family_of(kind)
    files = family.inspect()
    denoiser = family.denoiser_outline(files)
    parts = family.denoiser_parts(denoiser)
    assert tuple(parts) == family.part_names(files)
    owned = [id(weight) for modules in parts.values() for module in modules for weight in module.parameters()]
    assert sorted(owned) == sorted(id(weight) for weight in denoiser.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_goes_from_captions_and_pictures_to_a_prediction(kind: str, family_of: Callable[[str], Any]):
    family, size = family_of(kind), Size(64, 128)
    files = family.inspect()
    vae = family.load_vae(files, torch.float32, CPU)
    shape = (2, family.latent_channels, size.height // 8, size.width // 8)
    latents = family.encode_images(vae, torch.zeros(2, 3, size.height, size.width), torch.zeros(shape))
    assert latents.shape == shape
    assert family.decode_latents(vae, latents).shape == (2, 3, size.height, size.width)

    captions = ["a red square", "a blue circle, on green"]
    encoders = family.load_text_encoders(files, torch.float32, CPU, family.network_encoders({}))
    tokenizers = family.load_tokenizers(files, list(encoders))
    with torch.no_grad():
        states = family.encode_text(encoders, family.tokenize(tokenizers, captions))
        denoiser = family.load_denoiser(files, torch.float32, CPU)
        placed = family.place(family.join_text(states, denoiser), [View.whole(size)] * 2)
        prediction = family.predict(denoiser, latents, torch.tensor([10.0, 900.0]), placed)
    assert prediction.shape == shape and prediction.isfinite().all()
    taken = placed.take(torch.tensor([1]), torch.tensor([1]))
    with torch.no_grad():
        alone = family.predict(denoiser, latents[1:], torch.tensor([900.0]), taken)
    assert torch.allclose(alone, prediction[1:], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_told_before_anything_is_read(kind: str, family_of: Callable[[str], Any]):
    family, size = family_of(kind), Size(64, 64)
    files = family.inspect()
    inputs = family.denoiser_inputs(files, size, 2, torch.float32)
    denoiser = family.load_denoiser(files, torch.float32, CPU)
    with torch.no_grad():
        denoiser(**inputs)
    for name in family.network_encoders({}):
        encoder = family.load_text_encoders(files, torch.float32, CPU, [name])[name]
        outline = family.encoder_outline(files, name, torch.float32)
        assert {k: t.shape for k, t in outline.state_dict().items()} == {
            k: t.shape for k, t in encoder.state_dict().items()
        }
        own = dict(encoder.named_parameters())
        assert all(own[key] is weight for key, weight in family.encoder_parameters(name, encoder).items())


@pytest.mark.parametrize("kind", KINDS)
def test_for_a_missing_encoder_only_options_that_there_are_are_advised(kind: str, family_of: Callable[[str], Any]):
    known = {f"--{name}" for name in options_of(scripts(kind)[0])}
    advice = {name: family_of(kind).advice_for_missing(name) for name in family_of(kind).encoder_names}
    assert all(set(re.findall(r"--\w+", text)) <= known and text[-1] != "." for text in advice.values())
    assert not known.isdisjoint(advice["t5xxl"].split()) if kind == "sd3" else set(advice.values()) == {COMPLETE}
