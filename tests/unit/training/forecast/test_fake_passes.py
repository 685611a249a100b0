"""Passes that are counted block by block are those of the whole model, and of real tensors."""

import pytest
import torch

from benchmarks.memory_table import GIB, MODELS
from benchmarks.step_memory import Work, count_passes
from library.memory.live_memory import LiveMemory
from library.memory.quantized_layers import replace_layers
from library.models.mmdit import MMDiT, MMDiTConfig
from library.models.unet import UNet
from library.training.forecast.fake_passes import BLOCK, EACH, FakeDenoiser, Passes
from library.training.forecast.segments import Segment, highest, highest_forward
from networks.adapters import Dropouts
from networks.lora_sd3 import create_network
from networks.network import AdapterNetwork, PlannedModule, make_part

CONFIG = MMDiTConfig(
    depth=5, num_heads=2, context_dim=96, pooled_dim=80, position_side=16, qk_norm=True, dual_attention=(0, 1)
)
SIDE, TOKENS = 16, 20


def inputs():
    return {
        "latents": torch.ones(1, 16, SIDE, SIDE),
        "timesteps": torch.full((1,), 500.0),
        "context": torch.ones(1, TOKENS, CONFIG.context_dim, dtype=torch.bfloat16),
        "pooled": torch.ones(1, CONFIG.pooled_dim, dtype=torch.bfloat16),
        "positions": torch.ones(1, (SIDE // 2) ** 2, CONFIG.hidden),
    }


def outline(dtype=torch.float32, form=None, *, has_network=True, device="meta"):
    with torch.device(device):
        model = MMDiT(CONFIG).to(dtype).requires_grad_(not has_network)
        if form:
            replace_layers(model.joint_blocks, form, lambda _: dtype)
        if has_network:
            network = create_network(1.0, 4, 4.0, None, None, model, train_block_indices="0-1,3-4")
            network.apply_to(None, model)
    return model


@pytest.mark.parametrize(
    ("dtype", "form", "stepping", "has_network", "recomputes"),
    [
        (torch.float32, None, "", True, False),
        (torch.bfloat16, "int8", EACH, True, True),
        (torch.float32, None, EACH, False, True),
        (torch.bfloat16, None, BLOCK, False, False),
    ],
)
def test_one_block_of_each_kind_tells_of_all(dtype, form, stepping, has_network, recomputes):
    passes = Passes(torch.bfloat16, recomputes, stepping)
    counted, whole = (
        FakeDenoiser(outline(dtype, form, has_network=has_network), is_whole=is_whole).count(inputs, passes)
        for is_whole in (False, True)
    )
    assert counted == whole
    assert len(counted.blocks) == CONFIG.depth and highest(counted.segments) > 0


def test_what_is_put_together_is_what_the_whole_model_takes():
    work = Work(torch.float32, recomputes=False, side=8 * SIDE, num_tokens=TOKENS)
    whole = count_passes(CONFIG, work)
    counted = FakeDenoiser(outline(has_network=False)).count(inputs, Passes(torch.bfloat16))
    prediction = 4 * 16 * SIDE**2  # which the other one keeps alive, in both precisions at most
    assert highest(counted.segments) == pytest.approx(whole.peak, abs=2 * prediction)


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_adapters_beside_a_real_model_take_what_is_counted(recomputes):
    counted = FakeDenoiser(outline()).count(inputs, Passes(torch.bfloat16, recomputes))
    model = outline(device="cpu")
    model.gradient_checkpointing = recomputes
    given = inputs()
    with LiveMemory([*model.parameters(), *_factors(model), *given.values()]) as live:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            prediction = model(**given)
        loss = (prediction.float() - 1).square().mean()
        del prediction
        loss.backward()
    assert live.peak == highest(counted.segments)


def _factors(model):
    owners = {
        id(m.__dict__["forward"].__self__): m.__dict__["forward"].__self__
        for m in model.modules()
        if "forward" in m.__dict__
    }
    return [factor for owner in owners.values() for factor in owner.parameters()]


def test_without_gradients_nothing_is_kept():
    denoiser = FakeDenoiser(outline())
    drawn = denoiser.count(inputs, Passes(torch.bfloat16, has_backward=False))
    trained = denoiser.count(inputs, Passes(torch.bfloat16))
    assert highest_forward(drawn.segments) < highest(trained.segments) / 3
    assert all(block.backward_peak == 0 for block in drawn.blocks)


def test_gradients_of_an_earlier_batch_are_there_from_the_beginning():
    rows = [Segment(10, 15, backward_change=-7, backward_peak=8, gradients=3), Segment(20, 20, -16, 5, 4)]
    assert highest(rows) == 35  # all that is kept, and the backward pass of the last
    assert highest(rows, has_gradients=True) == 35 + 7


def test_the_published_models_are_counted_without_their_weights():
    """Per picture of 1024 px, rank 16 and bf16: the larger model keeps more, and recomputing leaves little of it."""
    keeps = {}
    for name in ("SD3.5-medium", "SD3.5-large"):
        with torch.device("meta"):
            model = MMDiT(MODELS[name]).to(torch.bfloat16).requires_grad_(False)
            create_network(1.0, 16, 16.0, None, None, model).apply_to(None, model)
        config, denoiser = model.config, FakeDenoiser(model)

        def full(config=config):
            text = torch.ones(1, 333, config.context_dim, dtype=torch.bfloat16)
            pooled = torch.ones(1, config.pooled_dim, dtype=torch.bfloat16)
            given = {"latents": torch.ones(1, 16, 128, 128), "timesteps": torch.ones(1)}
            return {**given, "context": text, "pooled": pooled, "positions": torch.ones(1, 4096, config.hidden)}

        counts = [denoiser.count(full, Passes(torch.bfloat16, recomputes)) for recomputes in (False, True)]
        assert len(counts[0].blocks) == config.depth
        keeps[name] = [highest(count.segments) / GIB for count in counts]
        assert keeps[name][1] < keeps[name][0] / 8
    assert 6 < keeps["SD3.5-medium"][0] < 10 < keeps["SD3.5-large"][0] < 20


UNET = {
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": 24,
    "transformer_layers_per_block": [1, 4],
    "attention_head_dim": [2, 2],
    "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}


def unet_of(device="meta"):
    """With adapters on queries, but not in the first attention."""
    with torch.device(device):
        model = UNet(**UNET).requires_grad_(False)
        names = [n for n, _ in model.named_modules() if n.endswith("to_q") and not n.startswith("down_blocks")]
        layers = {name: model.get_submodule(name) for name in names}
        planned = [PlannedModule(name, 2, 2.0) for name in names]
        part = make_part("unet", "lora_unet", layers, planned, is_denoiser=True, multiplier=1.0, dropouts=Dropouts())
        AdapterNetwork([part], family="SDXL").apply_to([], model)
    return model


def unet_inputs():
    context = torch.ones(1, 7, 24, dtype=torch.bfloat16)
    return {"sample": torch.ones(1, 4, 8, 8), "timestep": torch.ones(1), "encoder_hidden_states": context}


def test_a_real_unet_takes_what_is_counted_of_one_of_its_equal_blocks():
    denoiser, model = FakeDenoiser(unet_of()), unet_of("cpu")
    counted = denoiser.count(unet_inputs, Passes(torch.bfloat16, recomputes=True))
    assert len(denoiser.chosen) < len(counted.blocks) - 4 and len(counted.blocks) == len(model.block_row())
    model.gradient_checkpointing = True
    given = unet_inputs()
    with LiveMemory([*model.parameters(), *_factors(model), *given.values()]) as live:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            prediction = model(**given).sample
        loss = (prediction.float() - 1).square().mean()
        del prediction
        loss.backward()
    assert live.peak == highest(counted.segments)
