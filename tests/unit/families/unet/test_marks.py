"""What the file of a model with a U-Net says that it predicts, and what a training and a drawing make of it."""

import logging
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.checkpoint.metadata_copy import copy_with_metadata
from library.errors import CheckpointError
from library.families.sd.family import SdFamily
from library.families.unet.marks import file_marks, header_marks
from library.tensorfile import read_header
from tests import tiny_unets

SAYS_BOTH = {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}
SAYS_NOISE = {"modelspec.prediction_type": "epsilon"}
TELLTALE = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """tiny(kind): a single file, which stays as it is."""
    return cache(lambda kind: getattr(tiny_unets, f"write_{kind}")(tmp_path_factory.mktemp(kind), dtype="fp16").path)


@pytest.fixture
def said(tiny, tmp_path):
    """said(kind, metadata): the tiny model with another header."""

    def make(kind, metadata):
        copy_with_metadata(read_header(tiny(kind)), tmp_path / "said.safetensors", metadata)
        return tmp_path / "said.safetensors"

    return make


@pytest.fixture
def told(caplog, monkeypatch):
    """The lines of the log."""
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize(
    ("tensors", "metadata", "marks"),
    [
        ((), {}, set()),
        ((), SAYS_BOTH, {"v_pred", "ztsnr"}),
        ((), {**SAYS_NOISE, "ss_zero_terminal_snr": "False"}, {"epsilon"}),
        ((), {"ss_v_parameterization": "True"}, {"v_pred"}),
        ((), {"ss_v_parameterization": "True", "modelspec.prediction_type": "epsilon"}, {"epsilon"}),
        (("v_pred", "ztsnr"), SAYS_NOISE, {"v_pred", "ztsnr"}),
    ],
)
def test_tensors_and_the_header_say_what_a_model_predicts(tensors, metadata, marks):
    assert file_marks(tensors, metadata) == marks


@pytest.mark.parametrize("marks", [{"v_pred", "ztsnr"}, {"epsilon"}, set()])
def test_what_is_written_into_a_header_is_read_from_it(marks):
    assert file_marks((), header_marks(marks)) == marks


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_training_follows_the_header_as_it_follows_a_tensor(said, kind):
    path = said(kind, SAYS_BOTH)
    with pytest.raises(CheckpointError) as caught:
        SdFamily(pretrained=path).inspect()
    assert str(caught.value).endswith("Add --v_parameterization and --zero_terminal_snr.")
    noise = {"v_parameterization": True, "zero_terminal_snr": True}
    assert SdFamily(pretrained=path, noise=noise).inspect().marks == {"v_pred", "ztsnr"}


def drawn(path, **noise):
    """The family that draws."""
    family = SdFamily(pretrained=path, noise=noise, follows_marks=True)
    return family.as_marked(family.inspect())


def test_a_drawing_follows_the_header(said, tiny):
    family = drawn(said("sd1", SAYS_BOTH))
    assert (family.prediction_type, family.is_zero_terminal) == ("v", True)
    family = drawn(tiny("sd1"))
    assert (family.prediction_type, family.is_zero_terminal) == ("epsilon", False)


def test_an_option_against_the_header_draws_with_a_warning(said, told):
    assert drawn(said("sd1", SAYS_NOISE), v_parameterization=True).is_velocity
    assert "says that it predicts noise, --v_parameterization the velocity" in told.text


@pytest.fixture
def spread_out(tiny, tmp_path):
    """spread_out(spread, metadata): the tiny SD2 with this deviation of the weight that tells."""

    def make(spread, metadata):
        tensors = load_file(tiny("sd2"))
        tensors[TELLTALE] = torch.randn(tensors[TELLTALE].shape, generator=torch.Generator().manual_seed(0)) * spread
        save_file(tensors, tmp_path / "m.safetensors", metadata)
        return tmp_path / "m.safetensors"

    return make


@pytest.mark.parametrize(
    ("spread", "metadata", "predicted", "is_told"),
    [
        (0.3, {}, "v", True),
        (0.3, SAYS_NOISE, "epsilon", False),
        (0.02, {}, "epsilon", False),
    ],
)
def test_a_weight_of_sd2_decides_where_the_file_says_nothing(spread_out, told, spread, metadata, predicted, is_told):
    path = spread_out(spread, metadata)
    assert drawn(path).prediction_type == predicted
    assert ("does not say what it predicts" in told.text) is is_told
    told.clear()
    SdFamily(pretrained=path).inspect()
    assert ("If it predicts the velocity, add --v_parameterization." in told.text) is is_told


def test_a_training_to_predict_the_velocity_is_not_doubted(spread_out, told):
    SdFamily(pretrained=spread_out(0.3, {}), noise={"v_parameterization": True}).inspect()
    assert "does not say" not in told.text


def test_nothing_is_said_of_a_model_of_sd2_that_needs_no_option(tiny, told):
    SdFamily(pretrained=tiny("sd2")).inspect()
    assert "--v2" not in told.text
