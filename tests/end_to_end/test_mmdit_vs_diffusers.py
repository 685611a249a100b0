"""The same random weights in our MMDiT and in diffusers' SD3Transformer2DModel: equal outputs and gradients."""

import pytest
import torch

from library.families.sd3.key_map import mmdit_from_diffusers, mmdit_to_diffusers
from library.models.mmdit import MMDiT, MMDiTConfig, config_from_shapes

SIZES = {"num_heads": 2, "context_dim": 24, "pooled_dim": 20, "position_side": 12}
CONFIGS = {
    "medium": MMDiTConfig(depth=3, **SIZES),
    "5-medium": MMDiTConfig(depth=3, qk_norm=True, dual_attention=(0, 1), **SIZES),
    "5-large": MMDiTConfig(depth=3, qk_norm=True, **SIZES),
}


def ours(config):
    torch.manual_seed(1)
    model = MMDiT(config)
    for name, parameter in model.named_parameters():  # also the norms, which start at 1
        torch.nn.init.normal_(parameter, mean=1.0 if ".ln_" in name else 0.0, std=0.06)
    return model


def theirs(config):
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        caption_projection_dim=config.hidden,
        joint_attention_dim=config.context_dim,
        pooled_projection_dim=config.pooled_dim,
        pos_embed_max_size=config.position_side,
        qk_norm="rms_norm" if config.qk_norm else None,
        dual_attention_layers=config.dual_attention,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_equal_those_of_diffusers(name):
    config = CONFIGS[name]
    mmdit, transformer = ours(config), theirs(config)
    transformer.load_state_dict(mmdit_to_diffusers(mmdit.state_dict()))  # strict
    latents, context, pooled = torch.randn(2, 16, 12, 8), torch.randn(2, 7, 24), torch.randn(2, 20)
    timesteps = torch.tensor([3.25, 871.5])
    output = mmdit(latents, timesteps, context, pooled)
    expected = transformer(latents, context, pooled, timesteps, return_dict=False)[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)

    output.square().mean().backward()
    expected.square().mean().backward()
    gradients = {key: parameter.grad for key, parameter in mmdit.named_parameters()}
    for key, gradient in mmdit_to_diffusers(gradients).items():
        reference = transformer.get_parameter(key).grad
        assert (gradient - reference).abs().max() <= 1e-3 * reference.abs().max() + 1e-7, key


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_that_diffusers_made_give_the_same_output_in_our_model(name):
    config = CONFIGS[name]
    torch.manual_seed(2)
    transformer = theirs(config)
    weights = mmdit_from_diffusers(transformer.state_dict())
    assert config_from_shapes({key: tuple(tensor.shape) for key, tensor in weights.items()}) == config
    mmdit = MMDiT(config)
    mmdit.load_state_dict(weights)
    latents, context, pooled = torch.randn(1, 16, 8, 8), torch.randn(1, 5, 24), torch.randn(1, 20)
    with torch.no_grad():
        output = mmdit(latents, torch.tensor([400.0]), context, pooled)
        expected = transformer(latents, context, pooled, torch.tensor([400.0]), return_dict=False)[0]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
