"""Extras of gen_img.py on a GPU: everything is where it is used, in bf16 as well."""

import numpy
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from gen_img import main
from library.models.unet import UNet
from networks.control_net_lllite import create_network
from tests import tiny_unets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
GUIDE = "--guide_image_path=guide.png"
GROWING = ("--gradual_latent_timesteps=900", "--gradual_latent_ratio_step=0.5", "--steps=6", "--sampler=euler_a")
EXTRAS = {
    "two passes": ("--highres_fix_scale=0.5", "--highres_fix_steps=2"),
    "two passes of latents": ("--highres_fix_scale=0.5", "--highres_fix_steps=2", "--highres_fix_latents_upscaling"),
    "deep shrink": ("--ds_depth_1=3", "--ds_timesteps_1=100"),
    "gradual latents": (*GROWING, "--gradual_latent_unsharp_params=3,0.5,0.5,0"),
    "ControlNet": ("--control_net_models=net", GUIDE),
    "ControlNet of growing latents": ("--control_net_models=net", GUIDE, *GROWING),
    "LLLite": ("--control_net_lllite_models=lines.safetensors", GUIDE),
    "regions": ("--network_regional_mask_max_color_codes=2", GUIDE),
    "offset": ("--noise_offset_prob=1", "--noise_offset_range", "0.2", "0.3"),
    "coarse noise": ("--pyramid_noise_prob=1", "--pyramid_noise_discount_range", "0.3", "0.6"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SDXL with what guides it."""
    folder = tmp_path_factory.mktemp("gpu")
    tiny_unets.write_sdxl(folder)
    torch.manual_seed(0)
    unet = UNet(**tiny_unets.unet_settings("sdxl"))
    net = ControlNetModel.from_unet(unet)
    network = create_network(1.0, 8, None, None, None, unet, generator=torch.manual_seed(1), cond_emb_dim="8")
    for parameter in (*net.parameters(), *network.parameters()):
        parameter.data += torch.randn_like(parameter) * 0.1
    net.save_pretrained(folder / "net")
    network.save_weights(folder / "lines.safetensors", torch.float32, {})
    guide = Image.new("RGB", (128, 128), (255, 0, 0))
    guide.paste((0, 255, 0), (64, 0, 128, 128))
    guide.save(folder / "guide.png")
    return folder


@pytest.mark.parametrize("precision", [(), ("--bf16",)], ids=["float32", "bf16"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_act_and_draw_the_same_picture_twice(folder, monkeypatch, extra, precision):
    monkeypatch.chdir(folder)
    names = [f"{extra} {number} {precision}".replace("'", "") for number in range(3)]
    for name, more in zip(names, ((), EXTRAS[extra], EXTRAS[extra]), strict=True):
        asked = [
            "--ckpt=sdxl.safetensors",
            f"--prompt=a cat AND a dog --d 5 --f {name}",
            "--W=128",
            "--H=128",
            "--steps=2",
        ]
        assert main([*asked, "--outdir=out", *more, *precision]) == 0
    plain, first, second = (numpy.array(Image.open(f"out/{name}.png")).astype(int) for name in names)
    assert first.shape == plain.shape == (128, 128, 3)
    assert abs(first - second).mean() < 1
    assert (first != plain).any()
