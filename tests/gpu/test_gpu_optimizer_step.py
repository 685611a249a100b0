"""A whole optimizer step on a GPU: it never waits for the device, not even where the step is passed over."""

from contextlib import contextmanager

import pytest
import torch

from library.diffusion.loss import LossSettings
from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import parse_options
from library.records import Batch, BatchPlan, PlannedItem, Size
from library.training.encoding.text_stage import TextStage
from library.training.optimization.optimizer_modes import skips_on_device
from library.training.optimization.optimizer_rates import learning_rates
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.schedules import make_schedule
from library.training.stepping.batch_loss import BatchLoss
from library.training.stepping.optimizer_step import OptimizerStep
from networks import lora_sd3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
DEVICE = torch.device("cuda")
CPU = torch.device("cpu")
NAMES = ("clip_l", "clip_g", "t5xxl")
CAPTIONS = ("a red circle", "a star")


@pytest.fixture(scope="module")
def family(tiny_sd3, tmp_path_factory):
    arguments = [f"--pretrained_model_name_or_path={tiny_sd3}", f"--output_dir={tmp_path_factory.mktemp('out')}"]
    arguments += ["--dataset_config=none.toml", "--network_module=networks.lora", "--t5xxl_max_token_length=16"]
    arguments += ["--clip_l_dropout_rate=0.5", "--t5_dropout_rate=0.5"]
    return Sd3Family.from_options(parse_options(Sd3NetworkOptions, arguments, **NETWORK_SCRIPT))


@pytest.fixture(scope="module")
def text(family):
    """States of the captions, as a cache has them."""
    files = family.inspect()
    encoders = family.load_text_encoders(files, torch.float32, CPU, NAMES)
    states = TextStage(family, CPU, encoders, family.load_tokenizers(files, NAMES)).encode(CAPTIONS)
    return {name: state.detach() for name, state in states.items()}


@pytest.fixture
def batch(text):
    """batch(index, scale) makes one in page-locked memory, as the loader does."""

    def make(index, scale=1.0):
        plan = BatchPlan(1, index, index, Size(64, 64), tuple(PlannedItem(record, 0) for record in range(2)))
        latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(index)) * scale
        return Batch(plan, ("a#0", "b#0"), CAPTIONS, torch.ones(2), latents=latents, text=text).pin_memory()

    return make


@pytest.fixture
def training(family):
    """training(name, args) builds the step over a new network, which comes with it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def build(name, args=None):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(mixed_precision="bf16")
        denoiser = family.load_denoiser(family.inspect(), torch.bfloat16, DEVICE)
        network = lora_sd3.create_network(1.0, 4, 4, None, [], denoiser)
        network.apply_to([], denoiser)
        network.to(DEVICE)
        groups, _ = network.prepare_optimizer_params(None, 1e-3)
        optimizer = make_optimizer(name, groups, learning_rate=1e-3, args=args)
        schedule = make_schedule(optimizer, "cosine", num_steps=20)
        stage = TextStage(family, DEVICE)
        loss = BatchLoss(
            family, denoiser, stage, lambda: None, LossSettings(), accelerator.autocast, torch.no_grad, seed=1
        )
        prepared = accelerator.prepare_optimizer(optimizer)
        step = OptimizerStep(accelerator, loss, prepared, schedule, 2, 1.0, lambda: learning_rates(prepared))
        return step, network, optimizer

    yield build
    AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def waiting_is_an_error():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def values(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


def are_equal(first, second):
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def step_with(step, *batches):
    return step(list(batches), is_stop_asked=False, has_failed=False)[1]


@pytest.mark.parametrize(("name", "args"), [("AdamW", None), ("SGD", ["momentum=0.9"])])
def test_steps_do_not_wait_for_the_device(training, batch, name, args):
    step, network, _ = training(name, args)
    step_with(step, batch(0), batch(1))  # libraries are loaded
    start = values(network)
    batches = [batch(index) for index in range(2, 8)]
    with waiting_is_an_error():
        for first in (0, 2, 4):
            told = step_with(step, batches[first], batches[first + 1])
            network.apply_max_norm_regularization(10.0)
    assert told.isfinite().all() and told[2] == 0
    assert not are_equal(values(network), start)


@pytest.mark.parametrize(("name", "args"), [("AdamW", None), ("SGD", ["momentum=0.9"])])
def test_a_step_that_is_not_finite_is_passed_over_without_waiting(training, batch, name, args):
    step, network, optimizer = training(name, args)
    step_with(step, batch(0), batch(1))
    assert skips_on_device(optimizer)
    before = values(network)
    state = [value.clone() for kept in optimizer.state.values() for value in kept.values() if value is not None]
    batches = [batch(2), batch(3, scale=float("nan"))]
    with waiting_is_an_error():
        told = step_with(step, *batches)
    assert told[2] == 1 and are_equal(values(network), before)
    kept = [value for kept in optimizer.state.values() for value in kept.values() if value is not None]
    assert are_equal(kept, state)


def test_a_first_step_that_is_not_finite_leaves_no_momentum(training, batch):
    step, network, _ = training("SGD", ["momentum=0.9"])
    before = values(network)
    assert step_with(step, batch(0, scale=float("nan")), batch(1))[2] == 1
    assert are_equal(values(network), before)
    assert step_with(step, batch(2), batch(3))[2] == 0
    assert all(value.isfinite().all() for value in values(network))
