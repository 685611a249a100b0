"""Networks of --base_weights that a package makes which is neither ours nor LyCORIS."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from library.errors import CheckpointError
from networks.base_networks import merge_base_network, module_of_file


class ForeignNetwork(nn.Module):
    """One whose parts are named as those of LyCORIS are, and that merges as ours do."""

    def __init__(self, multiplier, tensors):
        super().__init__()
        self.text_encoder_loras, self.unet_loras = [], [nn.Identity()]
        self.multiplier, self.tensors = multiplier, tensors

    def merge_to(self, encoders, denoiser, tensors, dtype, device):
        denoiser.weight.data += self.multiplier * tensors["lora_unet_a.sum"].to(device, dtype)


@pytest.fixture
def foreign():
    """Its module, which notes what file it is told."""
    module = ModuleType("foreign.kohya")
    module.files = []

    def create_network_from_weights(multiplier, file, vae, encoders, denoiser, weights_sd, for_inference):
        module.files.append(file)
        return ForeignNetwork(multiplier, weights_sd), weights_sd

    module.create_network_from_weights = create_network_from_weights
    return module


def merge(module, tensors, denoiser):
    path, dtype = Path("a.safetensors"), torch.float32
    merge_base_network(module_of_file(tensors, module), path, tensors, 0.5, [], denoiser, dtype=dtype, device="cpu")


def test_it_merges_in_its_own_way_and_is_told_the_file(foreign):
    denoiser = nn.Linear(2, 2).requires_grad_(False)
    before = denoiser.weight.clone()
    merge(foreign, {"lora_unet_a.sum": torch.ones(2, 2)}, denoiser)
    assert torch.equal(denoiser.weight, before + 0.5)
    assert foreign.files == ["a.safetensors"]


def test_a_file_that_it_cannot_merge_is_one_sentence(foreign):
    with pytest.raises(CheckpointError, match=r"--base_weights a\.safetensors: foreign\.kohya cannot merge it \(Key"):
        merge(foreign, {"lora_unet_b.sum": torch.ones(2, 2)}, nn.Linear(2, 2))
