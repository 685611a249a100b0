"""Steps inside the backward pass of a tiny MMDiT: the same weights as after it, with hardly a gradient in memory."""

import pytest
import torch

from examples.tiny_sd3.make import CLIP_G_WIDTH, CLIP_L_WIDTH, CONTEXT_WIDTH
from library.diffusion.loss import LossSettings
from library.errors import EnvironmentFault
from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.memory.fused_backward import by_block, each_alone
from library.options.spec import parse_options
from library.records import Batch, BatchPlan, PlannedItem, Size
from library.training.encoding.text_stage import TextStage
from library.training.optimization.optimizer_rates import learning_rates
from library.training.optimization.optimizer_state import load_optimizer_state, optimizer_state
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.schedules import make_schedule
from library.training.stepping.batch_loss import BatchLoss
from library.training.stepping.fused_step import FusedStep
from library.training.stepping.optimizer_step import OptimizerStep

CPU = torch.device("cpu")
OPTIMIZERS = ["AdamW", "AdamW8bit", "Adafactor"]
ARGUMENTS = {"Adafactor": ["relative_step=False", "scale_parameter=False"]}
FUSED, BLOCKWISE = each_alone, by_block


@pytest.fixture(scope="module")
def family(tiny_sd3, tmp_path_factory):
    arguments = [f"--pretrained_model_name_or_path={tiny_sd3}", f"--output_dir={tmp_path_factory.mktemp('out')}"]
    arguments += ["--dataset_config=none.toml", "--network_module=networks.lora", "--t5xxl_max_token_length=16"]
    return Sd3Family.from_options(parse_options(Sd3NetworkOptions, arguments, **NETWORK_SCRIPT))


@pytest.fixture(scope="module")
def batches():
    """batches(first, last) are pictures of those numbers in one batch, as the loader makes it from caches."""
    widths = {"clip_l": CLIP_L_WIDTH, "clip_g": CLIP_G_WIDTH}
    generator = torch.Generator().manual_seed(7)
    text = {
        name: torch.randn(1, 8, width, generator=generator)
        for name, width in {**widths, "t5xxl": CONTEXT_WIDTH}.items()
    }
    text |= {f"{name}_pooled": torch.randn(1, width, generator=generator) for name, width in widths.items()}

    def make(*numbers, scale=1.0):
        plan = BatchPlan(1, 0, 0, Size(64, 64), tuple(PlannedItem(number, 0) for number in numbers))
        latents = [torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(number)) for number in numbers]
        states = {name: state.repeat_interleave(len(numbers), 0) for name, state in text.items()}
        ids = tuple(f"{number}#0" for number in numbers)
        captions = ("a star",) * len(numbers)
        return Batch(plan, ids, captions, torch.ones(len(numbers)), latents=torch.stack(latents) * scale, text=states)

    return make


@pytest.fixture
def training(family):
    """training(name, parts) builds the step of a whole denoiser, which comes with it; without parts, the plain one."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def build(
        name, parts=None, *, dtype=torch.float32, accumulation=1, max_grad_norm=0.0, rate=1e-3, rounding="stochastic"
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision="bf16" if dtype is torch.bfloat16 else "no")
        denoiser = family.load_denoiser(family.inspect(), dtype, CPU).requires_grad_(True)
        parameters = list(denoiser.parameters())
        optimizer = make_optimizer(
            name,
            [{"params": parameters[::2]}, {"params": parameters[1::2]}],
            learning_rate=rate,
            args=ARGUMENTS.get(name),
            seed=1,
            rounding=rounding,
        )
        schedule = make_schedule(optimizer, "cosine", num_steps=20)
        loss = BatchLoss(
            family,
            denoiser,
            TextStage(family, CPU),
            lambda: None,
            LossSettings(),
            accelerator.autocast,
            torch.no_grad,
            seed=1,
        )
        prepared = accelerator.prepare_optimizer(optimizer)
        arguments = (
            accelerator,
            loss,
            prepared,
            schedule,
            accumulation,
            max_grad_norm,
            lambda: learning_rates(prepared),
        )
        if parts is None:
            return OptimizerStep(*arguments), denoiser, optimizer
        dealt = parts(parameters) if parts is FUSED else parts([denoiser], parameters)
        return FusedStep(*arguments, parts=dealt), denoiser, optimizer

    yield build
    AcceleratorState._reset_state(reset_partial_state=True)


def step_with(step, *batches):
    return step(list(batches), is_stop_asked=False, has_failed=False)


def values(denoiser):
    return torch.cat([parameter.detach().float().flatten() for parameter in denoiser.parameters()])


def largest_gap(first, second):
    return (values(first) - values(second)).abs().max().item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_blockwise_accumulated_and_plain_steps_give_the_same_weights(training, batches, name):
    plain, expected, _ = training(name)
    start = values(expected)
    numbers = [step_with(plain, batches(0, step))[1] for step in (1, 2)]
    assert (values(expected) - start).abs().max() > 1e-3
    for parts in (FUSED, BLOCKWISE):
        step, denoiser, _ = training(name, parts)
        told = [step_with(step, batches(0, number))[1] for number in (1, 2)]
        assert largest_gap(denoiser, expected) < 2e-6
        for one, other in zip(told, numbers, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    step, denoiser, _ = training(name, accumulation=2)
    for number in (1, 2):
        step_with(step, batches(0), batches(number))
    gap = values(denoiser) - values(expected)  # Adam makes steps of one size of the smallest gradients, rounded or not
    assert gap.norm() < 1e-3 * (values(expected) - start).norm()


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("parts", [FUSED, BLOCKWISE])
def test_bytes_of_gradients_that_live_at_a_time(training, batches, parts, checkpoints):
    step, denoiser, _ = training("AdamW", parts)
    denoiser.gradient_checkpointing = checkpoints
    parameters = list(denoiser.parameters())
    live = []

    def count(_):
        live.append(sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None))

    handles = [parameter.register_post_accumulate_grad_hook(count) for parameter in parameters]
    step_with(step, batches(0, 1))
    for handle in handles:
        handle.remove()
    everything = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    largest_part = max(sum(p.numel() * p.element_size() for p in part) for part in step.parts)
    largest = max(parameter.numel() * parameter.element_size() for parameter in parameters)
    assert len(live) == len(parameters)
    assert max(live) <= largest_part + largest
    assert max(live) < everything / (4 if parts is FUSED else 1.5)
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("parts", [FUSED, BLOCKWISE])
def test_clipping_acts_on_each_part(training, batches, parts):
    step, _, optimizer = training("AdamW", parts, max_grad_norm=1e-3)
    step_with(step, batches(0, 1))
    for part in step.parts:
        norms = [optimizer.state[parameter]["exp_avg"].norm() / 0.1 for parameter in part]
        assert torch.stack(norms).norm() <= 1.001e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_with_fused_steps_in_bf16_changes_no_bit(training, batches, name):
    whole, denoiser, optimizer = training(name, FUSED, dtype=torch.bfloat16)
    for number in (1, 2):
        step_with(whole, batches(0, number))
    weights = {key: value.clone() for key, value in denoiser.state_dict().items()}
    state, schedule = optimizer_state(optimizer), whole.schedule.state_dict()
    for number in (3, 4):
        step_with(whole, batches(0, number))
    rest, again, other = training(name, FUSED, dtype=torch.bfloat16)
    again.load_state_dict(weights)
    load_optimizer_state(other, state)
    rest.schedule.load_state_dict(schedule)
    for number in (3, 4):
        step_with(rest, batches(0, number))
    assert torch.equal(values(again), values(denoiser))
    assert optimizer.rounded_steps == other.rounded_steps == 4


@pytest.mark.parametrize("parts", [FUSED, BLOCKWISE])
def test_fused_steps_in_bf16_round_as_plain_ones(training, batches, parts):
    """The random bits of a weight do not depend on when it takes its step."""
    plain, expected, _ = training("AdamW", dtype=torch.bfloat16)
    step, denoiser, _ = training("AdamW", parts, dtype=torch.bfloat16)
    for number in (1, 2):
        step_with(plain, batches(0, number))
        step_with(step, batches(0, number))
    assert torch.equal(values(denoiser), values(expected))


def test_bf16_learns_at_a_learning_rate_at_which_plain_bf16_stalls(training, batches):
    """Of the way that weights in float32 go, and of what they take from the loss on what is trained."""

    def trained(dtype, rounding):
        step, denoiser, optimizer = training("AdamW", FUSED, dtype=dtype, rate=5e-6, rounding=rounding)
        start, parameters = values(denoiser), list(denoiser.parameters())
        losses = [step_with(step, batches(0))[1][0].item() for _ in range(8)]
        rests = [optimizer.state[p].get("rest_of_weight", torch.zeros_like(p)) for p in parameters]
        moved = values(denoiser) - start
        return moved + torch.cat([rest.detach().float().flatten() for rest in rests]), losses[0] - losses[-1]

    way, drop = trained(torch.float32, "nearest")
    shares, drops = {}, {}
    for rounding in ("nearest", "stochastic", "kahan"):
        moved, dropped = trained(torch.bfloat16, rounding)
        shares[rounding], drops[rounding] = (moved @ way / (way @ way)).item(), dropped / drop
    assert shares["nearest"] < 0.1 and drops["nearest"] < 0.1
    assert 0.9 < shares["stochastic"] < 1.1 and drops["stochastic"] > 0.8
    assert 0.9 < shares["kahan"] < 1.1  # with the rests; the loss follows when they have grown to a bit


def test_a_loss_that_is_not_finite_changes_nothing(training, batches):
    step, denoiser, optimizer = training("AdamW", FUSED)
    step_with(step, batches(0, 1))
    before, state = values(denoiser), optimizer_state(optimizer)["tensors"]
    told = step_with(step, batches(0, 1, scale=float("nan")))[1]
    assert told[2] == 1 and told[0].isnan()
    assert torch.equal(values(denoiser), before)
    assert all(torch.equal(*pair) for pair in zip(optimizer_state(optimizer)["tensors"], state, strict=True))
    told = step_with(step, batches(0, 1))[1]
    assert told[2] == 0 and told.isfinite().all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_is_passed_over(training, batches, name):
    step, denoiser, _ = training(name, FUSED)
    step_with(step, batches(0, 1))
    before = {key: value.clone() for key, value in denoiser.named_parameters()}
    damaged = next(key for key in before if key.endswith("0.x_block.mlp.fc1.weight"))
    handle = denoiser.get_parameter(damaged).register_hook(lambda gradient: gradient * float("inf"))
    told = step_with(step, batches(0, 2))[1]
    handle.remove()
    changed = {key for key, value in denoiser.named_parameters() if not torch.equal(value, before[key])}
    assert told[2] == 1 and not told[1].isfinite()
    assert damaged not in changed and len(changed) > len(before) // 2
    assert values(denoiser).isfinite().all()


def test_no_memory_before_the_backward_pass_leaves_the_weights(training, batches):
    step, denoiser, _ = training("AdamW", FUSED)
    before = values(denoiser)
    handle = denoiser.register_forward_hook(lambda *_: no_memory())
    with pytest.raises(EnvironmentFault, match="2 pictures at 64x64 .*cannot be split"):
        step_with(step, batches(0, 1))
    handle.remove()
    assert torch.equal(values(denoiser), before) and not step.is_halfway


def test_no_memory_inside_the_backward_pass_leaves_a_step_half_way(training, batches, caplog):
    step, denoiser, _ = training("AdamW", FUSED)
    handle = denoiser.get_parameter("joint_blocks.0.x_block.mlp.fc1.weight").register_hook(lambda _: no_memory())
    with caplog.at_level("ERROR", logger="easel"), pytest.raises(EnvironmentFault, match="cannot be split"):
        step_with(step, batches(0, 1))
    handle.remove()
    assert "parts of the weights have made the step that failed" in caplog.text
    assert step.is_halfway
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def no_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
