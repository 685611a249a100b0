"""The memory table of docs/sd3_train.md is what is computed, and what is computed is what real tensors take."""

from pathlib import Path

import pytest
import torch

from benchmarks.memory_table import (
    FUSED,
    GIB,
    MODELS,
    SETTINGS,
    Setting,
    compute,
    gradient_bytes,
    sizes_of,
    state_bytes,
    step_bytes,
    weight_bytes,
)
from benchmarks.step_memory import Work, count_passes, make_model, weights_alone
from library.memory.fused_backward import BackwardParts, each_alone
from library.memory.live_memory import LiveMemory, num_bytes
from library.models.mmdit import MMDiTConfig
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.part_steps import PartSteps

PAGE = Path(__file__).resolve().parents[3] / "docs" / "sd3_train.md"
PUBLISHED = {  # numbers in the MMDiT of the published files: with and without the table of positions
    "SD3-medium": (2_084_951_104, 2_028_328_000),
    "SD3.5-medium": (2_469_663_936, 2_243_171_520),
    "SD3.5-large": (8_146_280_768, 8_056_627_520),
}
SMALL = MMDiTConfig(depth=2, num_heads=2, context_dim=96, pooled_dim=80, position_side=16, qk_norm=True)
OPTIMIZERS = ("AdamW", "AdamW8bit", "Adafactor")


@pytest.fixture(scope="module")
def documented():
    """{(model, setting): cells of its row}."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {(row[0], row[1]): row[2:] for row in rows if row[0] in MODELS}


def optimizer_over(parameters, setting):
    arguments = ["relative_step=False", "scale_parameter=False"] if setting.optimizer == "Adafactor" else None
    rounding = "stochastic" if setting.is_half else None
    groups = [{"params": list(parameters)}]
    return make_optimizer(setting.optimizer, groups, learning_rate=1e-3, args=arguments, rounding=rounding)


def kept_by(optimizer):
    """Bytes of what it keeps, but for counts, and tables that all weights share."""
    states = [value for state in optimizer.state.values() for key, value in state.items() if "qmap" not in key]
    return num_bytes(value for value in states if isinstance(value, torch.Tensor) and value.ndim)


def test_models_have_as_many_numbers_as_the_published_files():
    for name, (whole, trained) in PUBLISHED.items():
        sizes = sizes_of(MODELS[name])
        assert (sizes.count + sizes.num_positions, sizes.count) == (whole, trained)


def test_weights_state_and_gradients_in_the_page_are_counts_times_bytes(documented):
    assert len(documented) == len(MODELS) * len(SETTINGS)
    for name, config in MODELS.items():
        sizes = sizes_of(config)
        for setting in SETTINGS:
            state = state_bytes(sizes.shapes, setting.optimizer, is_half=setting.is_half) // setting.cards
            figures = (weight_bytes(sizes, setting), state, gradient_bytes(sizes, setting))
            assert documented[name, setting.words][:3] == [f"{figure / GIB:.1f}" for figure in figures]


def test_a_row_of_the_page_is_what_is_computed(documented):
    setting = Setting(True, "Adafactor", stepping=FUSED)
    assert documented["SD3-medium", setting.words] == compute(MODELS["SD3-medium"], setting).cells()


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_a_step_a_real_model_takes_what_is_computed(name, is_half):
    setting, sizes = Setting(is_half, name), sizes_of(SMALL)
    model = make_model(SMALL, setting.dtype)
    optimizer = optimizer_over(model.parameters(), setting)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert num_bytes(model.parameters()) == weight_bytes(sizes, setting)
    assert num_bytes(parameter.grad for parameter in model.parameters()) == gradient_bytes(sizes, setting)
    assert kept_by(optimizer) == state_bytes(sizes.shapes, name, is_half=is_half)


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_of_a_weight_takes_for_a_moment_what_is_computed(name, is_half):
    setting = Setting(is_half, name, stepping=FUSED)
    weight = torch.nn.Parameter(torch.ones(256, 512, dtype=setting.dtype))
    optimizer = optimizer_over([weight], setting)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    with LiveMemory([weight, weight.grad, *state]) as live:
        optimizer.step()
    sizes = sizes_of(SMALL)
    each = step_bytes(sizes, setting) / sizes.largest
    assert live.peak / weight.numel() == pytest.approx(each, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_tensors_without_numbers_count_like_real_ones(dtype, recomputes):
    work = Work(dtype, recomputes, side=128, num_tokens=20)
    assert count_passes(SMALL, work) == count_passes(SMALL, work, is_fake=False)


def test_stepping_inside_the_backward_pass_really_stays_below_what_is_computed():
    setting, sizes = Setting(True, "AdamW", stepping=FUSED), sizes_of(SMALL)
    work = Work(torch.bfloat16, True, weights_alone, side=128, num_tokens=20)
    model = make_model(SMALL, torch.bfloat16)
    parts = each_alone(model.parameters())
    steps = PartSteps(optimizer_over(model.parameters(), setting), parts)
    listener = BackwardParts(parts, steps.step)
    model.gradient_checkpointing = True
    inputs = (torch.ones(1, 16, 16, 16), torch.ones(1), torch.ones(1, 20, 96), torch.ones(1, 80))
    with LiveMemory([*model.parameters(), model.pos_embed, *inputs]) as live:
        with torch.autocast("cpu", torch.bfloat16):
            prediction = model(*inputs)
        with listener.listening():
            prediction.float().square().mean().backward()
    state = state_bytes(sizes.shapes, "AdamW", is_half=True)
    computed = state + count_passes(SMALL, work).peak + step_bytes(sizes, setting)
    all_gradients = gradient_bytes(sizes, Setting(True, "AdamW"))
    assert computed - all_gradients < live.peak <= computed
