"""What launchers ask for with FSDP: taken over, or refused in a sentence."""

import os
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState

from library.errors import EnvironmentFault, OptionError
from library.families.sd3.options import FULL_SCRIPT, Sd3FullOptions
from library.options.spec import parse_options
from library.training.optimization.optimizer_kinds import find_optimizer
from library.training.sharding.launch import plain_processes, read_settings
from library.training.sharding.limits import check_sharding
from library.training.sharding.settings import ShardingSettings

TORCHRUN = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "4"}
ACCELERATE = TORCHRUN | {  # what `accelerate launch` hands on beside, where the configuration has nothing else
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_USE_ORIG_PARAMS": "true",
}
CONFIGURATIONS = Path(__file__).resolve().parents[4] / "docs" / "accelerate"


@pytest.mark.parametrize("variables", [{}, {"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}])
def test_nothing_is_sharded_where_nobody_asks(variables):
    assert read_settings(variables) is None


def test_torchrun_and_accelerate_ask_for_the_same():
    assert read_settings(TORCHRUN) == read_settings(ACCELERATE) == ShardingSettings(True, False)


def test_the_configuration_says_what_is_freed_and_what_lies_in_host_memory():
    variables = ACCELERATE | {"FSDP_RESHARD_AFTER_FORWARD": "false", "FSDP_OFFLOAD_PARAMS": "true"}
    assert read_settings(variables) == ShardingSettings(False, True)


@pytest.mark.parametrize("name", ["fsdp2.yaml", "fsdp2_offload.yaml"])
def test_shipped_configurations_are_taken(name):
    """As accelerate hands them on: each key of fsdp_config as a variable."""
    content = yaml.safe_load((CONFIGURATIONS / name).read_text(encoding="utf-8"))
    assert content["distributed_type"] == "FSDP" and content["num_processes"] == 4
    variables = {key.upper(): str(value).lower() for key, value in content["fsdp_config"].items()}
    settings = read_settings(ACCELERATE | variables)
    assert settings == ShardingSettings(True, name == "fsdp2_offload.yaml")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"WORLD_SIZE": "1"}, "--num_processes"),
        ({"FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, "fsdp_reshard_after_forward"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "each block"),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "JointBlock"}, "Leave it out"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "saved whole"),
        ({"FSDP_FORWARD_PREFETCH": "true"}, "by itself"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--gradient_checkpointing"),
        ({"FSDP_IGNORED_MODULES": ".*norm"}, "all weights"),
        ({"FSDP_OFFLOAD_PARAMS": "sometimes"}, "true or false"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "all processes"),
    ],
)
def test_what_would_be_ignored_is_refused(variables, words):
    with pytest.raises(EnvironmentFault, match=words):
        read_settings(ACCELERATE | variables)


def test_accelerate_is_not_told_of_shards_when_it_starts_and_the_launch_is_as_before(monkeypatch):
    """It would shard on GPUs and train copies without them, and end where the deepspeed package is missing."""
    asked = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    for variable in asked:
        monkeypatch.setenv(variable, "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    with plain_processes():
        assert not set(asked) & os.environ.keys()
        accelerator = Accelerator(cpu=True)
    assert accelerator.distributed_type == DistributedType.NO
    assert accelerator.state.deepspeed_plugin is None
    assert [os.environ[variable] for variable in asked] == ["true", "true"]


@pytest.mark.parametrize(
    ("flags", "offloads", "words"),
    [
        ((), False, None),
        (("--optimizer_type=PagedAdamW8bit", "--mixed_precision=bf16", "--full_bf16"), False, None),
        (("--optimizer_type=AdamW",), True, None),
        (("--optimizer_type=Adafactor",), False, "AdamW8bit or Lion"),
        (("--optimizer_type=LAMB8bit",), False, "AdamW8bit or Lion"),
        (("--optimizer_type=AdamW8bit",), True, "fsdp_offload_params"),
        (("--train_text_encoder",), True, "fsdp_offload_params"),
        (("--mixed_precision=fp16",), False, "bf16"),
    ],
)
def test_options_that_cannot_be_sharded_are_refused(flags, offloads, words):
    options = parse_options(
        Sd3FullOptions,
        ["--pretrained_model_name_or_path=x", "--output_dir=y", "--train_data_dir=z", *flags],
        **FULL_SCRIPT,
    )
    arguments = options, find_optimizer(options.optimizer.optimizer_name), ShardingSettings(True, offloads)
    if words is None:
        check_sharding(*arguments)
    else:
        with pytest.raises(OptionError, match=words):
            check_sharding(*arguments)
