import pytest
import torch

from library.models.mmdit import MMDiT, MMDiTConfig


@pytest.fixture
def mmdit():
    """A frozen MMDiT of three blocks, the first with a second attention."""
    torch.manual_seed(0)
    config = MMDiTConfig(
        depth=3, num_heads=2, head_dim=8, in_channels=4, out_channels=4, context_dim=12, pooled_dim=10,
        frequencies=16, position_side=8, qk_norm=True, dual_attention=(0,),
    )  # fmt: skip
    return MMDiT(config).requires_grad_(False)


@pytest.fixture
def predict():
    """The output of the model above for fixed inputs of two samples."""

    def run(model, dtype=torch.float32):
        draw = torch.Generator().manual_seed(1)
        latents = torch.randn(2, 4, 6, 4, generator=draw).to(dtype)
        context = torch.randn(2, 5, 12, generator=draw).to(dtype)
        pooled = torch.randn(2, 10, generator=draw).to(dtype)
        return model(latents, torch.tensor([900.0, 100.0]), context, pooled)

    return run


@pytest.fixture
def fill():
    """Gives every adapter of a network values that change the output."""

    def run(network, seed=2):
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
        return network

    return run
