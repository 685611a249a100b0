"""Launches that are refused and allowed, by what launchers leave in the environment."""

import pytest
import torch

from library.errors import EnvironmentFault
from library.training.processes import check_launch, exchanges, num_processes, shared_gradients

LAUNCHER = {"MASTER_ADDR", "WORLD_SIZE", "RANK", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"}
LAUNCHER |= {"ACCELERATE_USE_DEEPSPEED", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"}
ONE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
RANKS = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": "1"}


@pytest.fixture
def launched_with(monkeypatch):
    """launched_with(variables) gives the process these launcher variables and no others."""

    def change(variables):
        for name in LAUNCHER:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"MASTER_ADDR": "10.0.0.7"},
        {"WORLD_SIZE": ""},
        RANKS,
        ONE,
        {**ONE, **RANKS},
        {**ONE, "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "0"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ""},
    ],
    ids=["python", "cluster", "empty", "torchrun", "accelerate", "accelerate of two", "switched off", "no number"],
)
def test_launch_that_does_what_it_says_is_allowed(launched_with, variables):
    launched_with(variables)
    check_launch()
    assert num_processes() == (2 if "RANK" in variables else 1)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({**ONE, "MASTER_ADDR": "127.0.0.1"}, ("several processes", "torchrun")),
        ({**ONE, "ACCELERATE_USE_FSDP": "true"}, ("FSDP", "multi-GPU")),
        ({**ONE, **RANKS, "ACCELERATE_USE_FSDP": "1"}, ("FSDP", "multi-GPU")),
        ({**ONE, "ACCELERATE_USE_DEEPSPEED": "True"}, ("DeepSpeed", "multi-GPU")),
        ({"ACCELERATE_USE_DEEPSPEED": "yes"}, ("DeepSpeed", "multi-GPU")),
        ({**ONE, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, ("twice", "--gradient_accumulation_steps")),
    ],
)
def test_launch_that_would_do_something_else_is_refused(launched_with, variables, words):
    launched_with(variables)
    with pytest.raises(EnvironmentFault) as refusal:
        check_launch()
    assert refusal.value.exit_code == 3
    for word in words:
        assert word in str(refusal.value)


def test_a_script_that_shards_takes_a_launch_with_fsdp_or_deepspeed(launched_with):
    for name in ("FSDP", "DEEPSPEED"):
        launched_with({**ONE, **RANKS, f"ACCELERATE_USE_{name}": "true"})
        check_launch(can_shard=True)


def test_gradients_that_are_missing_are_shared_as_zeros_but_for_what_trains_no_more():
    known, missing, frozen = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    known.grad = torch.full((3,), 2.0)
    frozen.requires_grad_(False)
    shared = shared_gradients([known, frozen, missing])
    assert [gradient.tolist() for gradient in shared] == [[2.0] * 3, [0.0] * 3]
    assert shared[1] is missing.grad and frozen.grad is None


def test_what_is_averaged_at_once_is_not_larger_than_asked_unless_it_is_one_tensor():
    sizes = [3, 4, 2, 9, 1, 5]
    tensors = [torch.empty(size, dtype=torch.bfloat16 if size == 2 else torch.float32) for size in sizes]
    groups = list(exchanges(tensors, 7))
    assert [[tensor.numel() for tensor in group] for group in groups] == [[3, 4], [9], [1, 5], [2]]
    assert {id(tensor) for group in groups for tensor in group} == {id(tensor) for tensor in tensors}
    assert [len(group) for group in exchanges(tensors)] == [5, 1]
