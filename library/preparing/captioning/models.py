"""Captioners: found, checked before their weights are read, and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.device import choose_device
from library.errors import CheckpointError, EnvironmentFault
from library.memory_use import is_out_of_memory
from library.preparing.captioning.kinds import CaptionerKind, checked_prompt, read_config, recognise
from library.preparing.captioning.lengths import WordChoice
from library.preparing.captioning.processors import LOADING_FAULTS, Processor, first_line, load_processor
from library.preparing.captioning.weight_files import SMALL_FILES, folder_with_weights, is_safe
from library.preparing.hub_files import may_be_on_hub, model_folder

if TYPE_CHECKING:
    import torch

_NUM_LISTED = 3
_PADS_BADLY = {"qwen2_5_vl": (4, 57)}  # and the first version of transformers in which it does not


@dataclass(frozen=True)
class Captioner:
    """A model that describes pictures, ready to be used.

    Attributes:
        kind: What it is.
        prompt: What it is given beside pictures.
        processor: What makes its inputs.
        model: Of transformers, in evaluation mode.
        device: Where it computes.
        dtype: Of its pixels.
        choice: How it chooses words.
    """

    kind: CaptionerKind
    prompt: str | None
    processor: Processor
    model: Any
    device: torch.device
    dtype: torch.dtype
    choice: WordChoice


@dataclass(frozen=True)
class Found:
    """A captioner whose small files are here and make sense.

    Attributes:
        name: As the user gave it.
        folder: Where it is.
        kind: What it is.
        prompt: What it will be given.
        processor: What makes its inputs.
        config: Its settings.
    """

    name: str
    folder: Path
    kind: CaptionerKind
    prompt: str | None
    processor: Processor
    config: Any


def check_folder(name: str, prompt: str | None) -> None:
    """See what the settings of a captioner tell, if it is a folder of this machine.

    Args:
        name: A folder, or owner/name, of which nothing is told.
        prompt: Of the user, or None.

    Raises:
        CheckpointError: The folder is not there, is of no captioner, or that takes no such prompt.
        EnvironmentFault: The installed packages do not know it.
    """
    path = Path(name)
    if path.exists() or not may_be_on_hub(name):
        config = read_config(model_folder(name, "--model", SMALL_FILES))
        checked_prompt(recognise(config, name), prompt)


def find_captioner(name: str, prompt: str | None) -> Found:
    """Recognise a captioner. Its weights are not read, and of the hub's models not downloaded.

    Args:
        name: A folder, or owner/name.
        prompt: Of the user, or None.

    Raises:
        CheckpointError: It is not there, is no captioner, or files are missing.
        EnvironmentFault: The installed packages do not know it.
    """
    folder = model_folder(name, "--model", SMALL_FILES)
    kind = recognise(read_config(folder), name)
    prompt = checked_prompt(kind, prompt)
    _be_quiet()
    processor = load_processor(folder, kind)
    if kind.prompting == "task":
        _check_task(processor, prompt)
    return Found(name, folder, kind, prompt, processor, _config_of(folder))


def load_captioner(
    found: Found, choice: WordChoice, *, device: torch.device, dtype: torch.dtype, bits: int | None = None
) -> Captioner:
    """Read the weights.

    Args:
        found: The captioner.
        choice: How it shall choose words.
        device: Where to.
        dtype: In which format; with `bits` that of the computations.
        bits: 8 or 4 to have the weights in fewer bits.

    Raises:
        CheckpointError: Weights are missing or damaged.
        EnvironmentFault: They do not fit in memory, or the machine has no such format.
    """
    folder = folder_with_weights(found.name)
    further = _in_fewer_bits(bits, dtype, device)
    try:
        model = _read(folder, found.kind, dtype, further)
        model = model if bits else model.to(device)
    except (*LOADING_FAULTS, MemoryError, *_damage()) as error:
        if is_out_of_memory(error):
            raise EnvironmentFault(
                f"out of memory while {found.name} was loaded. Give --load_in_4bit or a smaller --model, or close "
                "other programs."
            ) from None
        # transformers tells of sizes in its log, which is quiet, and names only its own setting in the error.
        is_size = any(words in str(error) for words in ("ignore_mismatched_sizes", "size mismatch"))
        reason = "their sizes are not those of config.json" if is_size else first_line(error)
        raise CheckpointError(
            f"--model: the weights of {folder} cannot be read ({reason}). Download all files of the model again."
        ) from None
    if found.kind.model_type != "florence2" and not model.config.is_encoder_decoder:
        found.processor.tokenizer.padding_side = "left"  # what is generated follows the last word
    return Captioner(found.kind, found.prompt, found.processor, model.eval(), device, dtype, choice)


def pads_well(model_type: str, version: str) -> bool:
    """Whether prompts of different lengths may be in a batch. With older versions of transformers some models then
    give other words to the shorter ones.

    Args:
        model_type: As transformers calls it.
        version: Of transformers.
    """
    since = _PADS_BADLY.get(model_type)
    return since is None or tuple(int(part) for part in version.split(".")[:2]) >= since


def chosen_device(name: str | None, rank_here: int) -> torch.device:
    """The device that a process works on.

    Args:
        name: As the user gave it; None takes a GPU if there is one.
        rank_here: Which process of this machine it is: each has a GPU of its own, as far as there are.
    """
    import torch

    device = choose_device() if name is None else torch.device(name)
    if device.type == "cuda" and ":" not in (name or ""):
        return torch.device("cuda", rank_here % torch.cuda.device_count())
    return device


def chosen_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """The format that `--mixed_precision` means on a device; None takes the best that a GPU computes in by itself."""
    import torch

    from library.device import encoder_dtype, precision_dtype

    if precision is not None:
        return encoder_dtype(precision_dtype(precision), device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.float32 if device.type == "cpu" else torch.float16


def check_few_bits(bits: int | None, device: torch.device) -> None:
    """See whether weights can be held in fewer bits, before anything is loaded.

    Raises:
        EnvironmentFault: They cannot.
    """
    if bits is None:
        return
    if device.type != "cuda":
        raise EnvironmentFault(
            f"--load_in_{bits}bit needs an NVIDIA GPU, and {device.type} is used. Leave it out, or "
            "choose a smaller --model."
        )
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise EnvironmentFault(f"--load_in_{bits}bit needs bitsandbytes. Install it: pip install bitsandbytes.")


def _be_quiet() -> None:
    """No bars and warnings of transformers between the lines of the log; what matters is checked here."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _check_task(processor: Processor, prompt: str | None) -> None:
    """Of Florence-2's tasks refuse those whose answers are boxes or polygons. Unknown ones are of fine-tuned models."""
    whole = processor.whole
    answer = getattr(whole, "tasks_answer_post_processing_type", {}).get(prompt, "pure_text")
    needs_more = prompt in getattr(whole, "task_prompts_with_input", {})
    if answer != "pure_text" or needs_more:
        raise CheckpointError(
            f"--prompt {prompt}: this task gives no caption. Use <CAPTION>, <DETAILED_CAPTION> or "
            "<MORE_DETAILED_CAPTION>."
        )


def _config_of(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except LOADING_FAULTS as error:
        raise CheckpointError(
            f"--model: config.json of {folder} cannot be used ({first_line(error)}). Download it again."
        ) from None


def _in_fewer_bits(bits: int | None, dtype: torch.dtype, device: torch.device) -> Mapping[str, Any]:
    if bits is None:
        return {}
    from transformers import BitsAndBytesConfig

    if bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")
    return {"quantization_config": config, "device_map": {"": device}}


def _damage() -> tuple[Any, ...]:
    """Further errors of damaged files."""
    import pickle

    from safetensors import SafetensorError

    return (SafetensorError, pickle.UnpicklingError, EOFError)


def _read(folder: Path, kind: CaptionerKind, dtype: torch.dtype, further: Mapping[str, Any]) -> Any:
    import transformers

    model, told = getattr(transformers, kind.class_name).from_pretrained(
        folder,
        torch_dtype=dtype,
        local_files_only=True,
        output_loading_info=True,
        use_safetensors=is_safe(folder),
        **further,
    )
    missing = sorted(set(told["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        listed = ", ".join(missing[:_NUM_LISTED])
        raise ValueError(f"{len(missing)} weights of a {kind.class_name} are missing: {listed}")
    for name in ("temperature", "top_p", "top_k"):  # what the options say counts
        setattr(model.generation_config, name, None)
    return model
