"""Folders whose files have a word before their ending, as in NAME.fp16.safetensors."""

import pytest
import torch
from safetensors.torch import load_file

from library.checkpoint.tensor_stream import plan_tensor
from library.checkpoint.weights import open_weights
from library.errors import CheckpointError
from library.families.model_folder import write_shards
from tests.tiny_unets import write_sd1_folder

STEM = "diffusion_pytorch_model"


def write(folder, variant, number):
    plan = {name: plan_tensor(torch.full((100,), float(number))) for name in ("a", "b", "c")}
    write_shards(folder, STEM, plan, 800, variant)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_of_two_forms_in_shards_the_one_that_is_asked_for_is_read(variant, tmp_path):
    write(tmp_path, None, 1)
    write(tmp_path, "fp16", 2)
    opened = open_weights(tmp_path, variant=variant)
    assert set(opened.tensors) == {"a", "b", "c"} and len(opened.headers) == 2
    assert {".fp16" in header.path.name for header in opened.headers} == {variant is not None}


def test_a_form_that_is_not_there_is_told(tmp_path):
    write_shards(tmp_path, STEM, {"a": plan_tensor(torch.ones(1))}, 800)
    with pytest.raises(CheckpointError, match=r"without diffusion_pytorch_model.fp16.safetensors or model.fp16"):
        open_weights(tmp_path, variant="fp16")


def test_diffusers_reads_shards_of_a_form(tmp_path):
    from diffusers import UNet2DConditionModel

    unet = write_sd1_folder(tmp_path / "m").path / "unet"
    stored = load_file(unet / f"{STEM}.safetensors")
    (unet / f"{STEM}.safetensors").unlink()
    plan = {name: plan_tensor(tensor) for name, tensor in stored.items()}
    write_shards(unet, STEM, plan, 4_000_000, "fp16")
    read = UNet2DConditionModel.from_pretrained(unet, variant="fp16").state_dict()
    assert read.keys() == stored.keys() and all(torch.equal(read[name], stored[name]) for name in stored)
