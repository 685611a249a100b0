"""ZeRO stages, asked for by a launcher or by options: carried out by FSDP2, or refused in a sentence."""

from pathlib import Path

import pytest
import yaml

from library.errors import EnvironmentFault, OptionError
from library.families.sd3.options import FULL_SCRIPT, NETWORK_SCRIPT, Sd3FullOptions, Sd3NetworkOptions
from library.options.groups import DistributedOptions
from library.options.spec import parse_options
from library.training.optimization.optimizer_kinds import find_optimizer
from library.training.sharding.launch import read_settings
from library.training.sharding.limits import check_sharding
from library.training.sharding.settings import ShardingSettings
from sd3_train_network import Sd3NetworkTrainer

ACCELERATE = {  # what `accelerate launch` hands on, where the configuration has nothing else
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,mixed_precision",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "WORLD_SIZE": "4",
}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "4"}
TORCHRUN = {"WORLD_SIZE": "2"}
CONFIGURATIONS = Path(__file__).resolve().parents[4] / "docs" / "accelerate"
NEEDED = ["--pretrained_model_name_or_path=x", "--output_dir=y", "--train_data_dir=z"]


def asked(**options):
    return DistributedOptions(deepspeed=True, **options)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stage_says_when_gathered_weights_are_freed(stage):
    expected = ShardingSettings(reshards_after_forward=stage == 3, offloads=False)
    assert read_settings(ACCELERATE | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}) == expected
    assert read_settings(TORCHRUN, asked(zero_stage=stage)) == expected


def test_stage_2_is_the_default():
    launched = {name: value for name, value in ACCELERATE.items() if name != "ACCELERATE_DEEPSPEED_ZERO_STAGE"}
    assert read_settings(launched) == read_settings(TORCHRUN, asked()) == ShardingSettings(reshards_after_forward=False)


@pytest.mark.parametrize("what", ["offload_optimizer_device", "offload_param_device"])
def test_what_lies_in_host_memory_lets_all_shards_lie_there(what):
    variable = f"ACCELERATE_DEEPSPEED_{what.upper()}"
    settings = [read_settings(ACCELERATE | {variable: "cpu"}), read_settings(TORCHRUN, asked(**{what: "cpu"}))]
    assert all(item.offloads for item in settings)
    assert [item.offload_name for item in settings] == [f"{what}: cpu", f"--{what}=cpu"]
    assert not read_settings(ACCELERATE | {variable: "none"}).offloads


def test_it_is_said_that_fsdp2_carries_it_out(caplog):
    with caplog.at_level("INFO", "easel"):
        read_settings(FSDP)
        assert not caplog.messages
        read_settings(ACCELERATE)
    assert caplog.messages == ["ZeRO-3 is carried out by FSDP2; the deepspeed package is not used"]


@pytest.mark.parametrize("stage", [2, 3])
def test_shipped_configurations_are_taken(stage):
    """As accelerate hands them on: each key of deepspeed_config as a variable."""
    content = yaml.safe_load((CONFIGURATIONS / f"zero{stage}.yaml").read_text(encoding="utf-8"))
    assert content["distributed_type"] == "DEEPSPEED" and content["num_processes"] == 4
    handed = {f"ACCELERATE_DEEPSPEED_{key.upper()}": str(value) for key, value in content["deepspeed_config"].items()}
    assert read_settings(ACCELERATE | handed) == ShardingSettings(reshards_after_forward=stage == 3)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "plain multi-GPU"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "Use 2"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "4"}, "Use 2 or 3"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "offload_param_device: nvme .* Use cpu"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}, "offload_optimizer_device: nvme .* Use cpu"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "deepspeed_config_file=ds.json .* zero_stage"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "^gradient_clipping=0.5 .* --max_grad_norm"),
        ({"ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "Experts"}, "each block"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "all processes"),
        ({"WORLD_SIZE": "1"}, "ZeRO-3 .* --num_processes"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "Keep one of them"),
    ],
)
def test_what_a_launcher_sets_in_vain_is_refused(variables, words):
    with pytest.raises(EnvironmentFault, match=words):
        read_settings(ACCELERATE | variables)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"zero_stage": 0}, "--zero_stage=0 .* plain multi-GPU"),
        ({"zero_stage": 1}, "Use 2"),
        ({"offload_param_device": "nvme"}, "--offload_param_device=nvme .* Use cpu"),
        ({"offload_optimizer_device": "nvme"}, "Use cpu"),
        ({"fp16_master_weights_and_gradients": True}, "--full_bf16"),
    ],
)
def test_options_without_counterpart_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        read_settings(TORCHRUN, asked(**options))


def test_launcher_and_options_may_say_the_same_and_nothing_else():
    assert read_settings(ACCELERATE, asked(zero_stage=3)) == read_settings(FSDP, asked(zero_stage=3))
    for launched in (ACCELERATE, FSDP):
        with pytest.raises(EnvironmentFault, match="ZeRO-2 is asked for beside it"):
            read_settings(launched, asked(zero_stage=2))


def test_without_deepspeed_the_options_beside_it_are_one_warning():
    flags = ("--zero_stage=3", "--offload_param_device=cpu", "--fp16_master_weights_and_gradients", "--zero3_init_flag")
    options = parse_options(Sd3FullOptions, [*NEEDED, *flags], **FULL_SCRIPT)
    (line,) = options.warnings
    assert "--zero_stage, --offload_param_device, --fp16_master_weights_and_gradients (without --deepspeed)" in line
    assert "--zero3_init_flag (weights are" in line
    assert read_settings(TORCHRUN, options.distributed) is None


def test_limits_are_told_in_the_words_of_who_asked():
    flags = [*NEEDED, "--optimizer_type=AdamW8bit", "--deepspeed", "--offload_optimizer_device=cpu"]
    options = parse_options(Sd3FullOptions, flags, **FULL_SCRIPT)
    settings = read_settings(TORCHRUN, options.distributed)
    with pytest.raises(OptionError, match="AdamW8bit needs .* --offload_optimizer_device=cpu keeps"):
        check_sharding(options, find_optimizer("AdamW8bit"), settings)
    with pytest.raises(OptionError, match="cannot be used with ZeRO-2"):
        check_sharding(options, find_optimizer("Adafactor"), settings)


def test_a_lora_is_not_sharded():
    options = parse_options(
        Sd3NetworkOptions, [*NEEDED, "--network_module=networks.lora_sd3", "--deepspeed"], **NETWORK_SCRIPT
    )
    with pytest.raises(OptionError, match="--deepspeed shards a model that trains as a whole"):
        Sd3NetworkTrainer(options).check_options()
