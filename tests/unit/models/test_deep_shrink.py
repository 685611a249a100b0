"""A U-Net whose middle is smaller while there is much noise."""

import pytest
import torch

from library.models.deep_shrink import DeepShrink, before_skips, input_blocks, shrinking
from library.models.unet import UNet
from library.unet_names import to_published
from tests.tiny_unets import unet_settings


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def unet(request):
    torch.manual_seed(0)
    return UNet(**unet_settings(request.param)).eval()


def predicted(unet, timestep, size=(24, 16)):
    draws = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, *size, generator=draws)
    context = torch.randn(2, 77, unet.config.cross_attention_dim, generator=draws)
    width = unet.config.projection_class_embeddings_input_dim
    added = width and {"text_embeds": torch.zeros(2, width - 6 * 32), "time_ids": torch.zeros(2, 6)}
    with torch.no_grad():
        return unet(latents, torch.full((2,), timestep), context, added_cond_kwargs=added, return_dict=False)[0]


def sizes_in(unet, call):
    """Sides of what the middle of the U-Net gives."""
    seen = []
    with unet.mid_block.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[-2:]))):
        call()
    return seen[0]


def test_blocks_are_those_of_published_files(unet):
    names = {module: name for name, module in unet.named_modules()}
    layers = [f"{name}.weight" for name, module in unet.named_modules() if hasattr(module, "weight")]
    published = to_published(layers)
    for number, (first, _) in enumerate(input_blocks(unet)):
        own = [published[layer] for layer in layers if layer.startswith(f"{names[first]}.")]
        assert {name.split(".")[1] for name in own} == {str(number)}
    assert len(before_skips(unet)) == len(input_blocks(unet))


def test_features_are_smaller_in_the_middle_above_the_timestep_only(unet):
    whole = sizes_in(unet, lambda: predicted(unet, 700.0))
    for depth in range(1, len(input_blocks(unet))):
        with shrinking(unet, DeepShrink(depth, timesteps_1=650, ratio=0.5)):
            small = sizes_in(unet, lambda: predicted(unet, 700.0))
            same = sizes_in(unet, lambda: predicted(unet, 649.0))
        assert small < whole
        assert same == whole


def test_the_prediction_has_the_size_of_the_latents_and_is_another_one(unet):
    whole = predicted(unet, 700.0)
    for depth in range(1, len(input_blocks(unet))):
        with shrinking(unet, DeepShrink(depth, ratio=0.4)):
            small = predicted(unet, 700.0)
        assert small.shape == whole.shape
        assert (small - whole).abs().max() > 1e-4


def test_below_the_timestep_with_ratio_1_and_afterwards_the_u_net_is_as_it_was(unet):
    whole, later = predicted(unet, 700.0), predicted(unet, 600.0)
    with shrinking(unet, DeepShrink(3, timesteps_1=650)):
        assert torch.equal(predicted(unet, 600.0), later)
    with shrinking(unet, DeepShrink(3, ratio=1.0)):
        assert torch.equal(predicted(unet, 700.0), whole)
    assert torch.equal(predicted(unet, 700.0), whole)


def test_a_second_block_takes_over_below_the_first_timestep():
    settings = DeepShrink(3, timesteps_1=800, depth_2=6, timesteps_2=500)
    assert [settings.depth_at(timestep) for timestep in (999, 800, 799, 500, 499)] == [3, 3, 6, 6, None]
    alone = DeepShrink(3, timesteps_1=800, timesteps_2=500)
    assert alone.depth_at(700) is None


@pytest.mark.parametrize("depth", [-1, 0, 12])
def test_blocks_that_are_not_there_are_refused(unet, depth):
    with pytest.raises(ValueError, match="there are blocks 1 to"), shrinking(unet, DeepShrink(depth)):
        pass
