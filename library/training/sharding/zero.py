"""DeepSpeed's ZeRO stages 2 and 3, asked for by a launcher or by --deepspeed, as settings of FSDP2.

FSDP2 shards the same: stage 3 frees gathered weights after the forward pass, stage 2 keeps them until the backward
pass. DeepSpeed itself is not used: its engine takes the place of backward pass, clipping, optimizer and loss scaling,
so that steps, states and averages would be others than without it. Importing this file imports nothing heavy.

Source: Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO); variables as of accelerate 1.x, `utils/launch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from library.errors import EnvironmentFault, OptionError, UserError
from library.training.sharding.settings import ShardingSettings, is_asked, refuse_without_effect

if TYPE_CHECKING:
    from library.options.groups import DistributedOptions

ASKED = "ACCELERATE_USE_DEEPSPEED"
_STAGE, _OPTIMIZER, _WEIGHTS = "zero_stage", "offload_optimizer_device", "offload_param_device"
_NOTHING = ("none",)
_KEYS = {  # variable: (values that change nothing here, what to do about others)
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": (
        _NOTHING,
        f"give {_STAGE}, {_OPTIMIZER} and {_WEIGHTS} in the configuration of accelerate, and all else as options of "
        "the script",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": (_NOTHING, "give --max_grad_norm to the script"),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": (_NOTHING, "each block of the model is gathered by itself"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (("false",), "weights are sharded over all processes"),
}
_OTHER_STAGES = {
    "0": "it shards nothing. Use plain multi-GPU without DeepSpeed.",
    "1": "gradients are sharded with the optimizer here. Use 2.",
}


def zero_of_launcher(environment: Mapping[str, str]) -> ShardingSettings | None:
    """What accelerate's environment asks for; None where it does not ask for DeepSpeed.

    Raises:
        EnvironmentFault: A setting that has no counterpart or would be ignored.
    """
    if not is_asked(environment, ASKED):
        return None
    refuse_without_effect(environment, _KEYS)
    devices = {name: environment.get(f"ACCELERATE_DEEPSPEED_{name.upper()}", "") for name in (_OPTIMIZER, _WEIGHTS)}
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") or "2"
    return _as_settings(stage, devices, "{}: {}", EnvironmentFault)


def zero_of_options(options: DistributedOptions) -> ShardingSettings | None:
    """What --deepspeed and the options beside it ask for; None without it.

    Raises:
        OptionError: An option that has no counterpart.
    """
    if not options.deepspeed:
        return None
    if options.fp16_master_weights_and_gradients:
        raise OptionError(
            "--fp16_master_weights_and_gradients has no counterpart: master weights are kept in float32, or in "
            "bf16 with --full_bf16. Leave it out."
        )
    devices = {_OPTIMIZER: options.offload_optimizer_device or "", _WEIGHTS: options.offload_param_device or ""}
    return _as_settings(str(options.zero_stage), devices, "--{}={}", OptionError)


def _as_settings(stage: str, devices: Mapping[str, str], words: str, fault: type[UserError]) -> ShardingSettings:
    """Settings of FSDP2.

    Args:
        stage: Of ZeRO.
        devices: {setting: where it puts what belongs to it}.
        words: How name and value of a setting are written.
        fault: Is raised where there is no counterpart.
    """
    if stage not in ("2", "3"):
        advice = _OTHER_STAGES.get(stage, "there is no such stage. Use 2 or 3.")
        raise fault(f"{words.format(_STAGE, stage)} has no counterpart: {advice}")
    for name, device in devices.items():
        if device.lower() not in ("", "none", "cpu"):
            raise fault(
                f"{words.format(name, device)} has no counterpart: shards lie on the GPU or in host memory. Use "
                "cpu, or leave it out."
            )
    asked = [words.format(name, device) for name, device in devices.items() if device.lower() == "cpu"]
    return ShardingSettings(
        reshards_after_forward=stage == "3",
        offloads=bool(asked),
        name=f"ZeRO-{stage}",
        offload_name=asked[0] if asked else words.format(_WEIGHTS, "cpu"),
    )
