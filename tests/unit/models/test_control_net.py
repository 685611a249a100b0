"""ControlNets from files in every layout."""

import pytest
import torch
from diffusers import ControlNetModel

from library.errors import CheckpointError
from library.models.control_net import open_control_net
from library.models.unet import UNet
from library.models.unet_key_map import unet_from_diffusers
from library.tensorfile import write_tensors
from tests.tiny_unets import unet_settings


def tiny_control_net(kind):
    """With outputs that are not zero, as those of a new one are."""
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(UNet(**unet_settings(kind)), conditioning_embedding_out_channels=(16, 32, 48, 64))
    for parameter in net.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    return net.eval()


def published(net):
    """The tensors under the names of published files."""
    hints = {"conv_in": 0, **{f"blocks.{number}": 2 * number + 2 for number in range(6)}, "conv_out": 14}
    own, shared = {}, {}
    for name, tensor in net.state_dict().items():
        first, _, rest = name.partition(".")
        stem, _, end = rest.rpartition(".")
        if first == "controlnet_cond_embedding":
            own[f"input_hint_block.{hints[stem]}.{end}"] = tensor
        elif first == "controlnet_down_blocks":
            own[f"zero_convs.{stem}.0.{end}"] = tensor
        elif first == "controlnet_mid_block":
            own[f"middle_block_out.0.{rest}"] = tensor
        else:
            shared[name] = tensor
    return {f"control_model.{name}": tensor for name, tensor in {**own, **unet_from_diffusers(shared)}.items()}


def outputs(net, kind):
    draws = torch.Generator().manual_seed(1)
    latents, picture = torch.randn(2, 4, 8, 8, generator=draws), torch.rand(2, 3, 64, 64, generator=draws)
    context = torch.randn(2, 77, net.config.cross_attention_dim, generator=draws)
    width = net.config.projection_class_embeddings_input_dim
    added = {"text_embeds": torch.zeros(2, width - 6 * 32), "time_ids": torch.zeros(2, 6)} if width else None
    with torch.no_grad():
        down, middle = net(latents, torch.tensor(500.0), context, picture, added_cond_kwargs=added, return_dict=False)
    return [*down, middle]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_all_layouts_give_the_same_control_net(tmp_path, kind):
    net = tiny_control_net(kind)
    expected = outputs(net, kind)
    net.save_pretrained(tmp_path / "folder")
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    write_tensors(tmp_path / "diffusers.safetensors", state)
    whole = {**published(net), "model.diffusion_model.out.2.bias": torch.zeros(4)}
    write_tensors(tmp_path / "published.safetensors", whole)
    plain = {name.removeprefix("control_model."): tensor for name, tensor in published(net).items()}
    write_tensors(tmp_path / "plain.safetensors", plain)
    torch.save(whole, tmp_path / "published.pth")
    for name in ("folder", "diffusers.safetensors", "published.safetensors", "plain.safetensors", "published.pth"):
        file = open_control_net(tmp_path / name)
        assert file.widths == (net.config.block_out_channels[0], net.config.cross_attention_dim)
        found = outputs(file.load(torch.float32, torch.device("cpu")), kind)
        torch.testing.assert_close(found, expected)


def test_what_is_no_control_net_is_named(tmp_path):
    unet = UNet(**unet_settings("sd1")).state_dict()
    write_tensors(tmp_path / "unet.safetensors", unet)
    with pytest.raises(CheckpointError, match="is no ControlNet"):
        open_control_net(tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointError, match="has no diffusion_pytorch_model"):
        open_control_net(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_control_net(tmp_path / "missing.safetensors")


def test_missing_tensors_are_named(tmp_path):
    tensors = published(tiny_control_net("sd1"))
    del tensors["control_model.zero_convs.3.0.weight"]
    write_tensors(tmp_path / "net.safetensors", tensors)
    file = open_control_net(tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"are missing \(controlnet_down_blocks.3.weight"):
        file.load(torch.float32, torch.device("cpu"))
    del tensors["control_model.input_blocks.0.0.weight"]
    write_tensors(tmp_path / "net.safetensors", tensors)
    with pytest.raises(CheckpointError, match="cannot be used as a ControlNet"):
        open_control_net(tmp_path / "net.safetensors")
