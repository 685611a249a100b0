"""How a captioner is recognised, from its config.json and before any weight is read, and how it is prompted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from library.errors import CheckpointError, EnvironmentFault

Prompting = Literal["none", "prefix", "task", "instruction", "chat"]

CONFIG = "config.json"
INSTRUCTION = (
    "Describe this picture in two or three plain sentences: what is shown, where it is and how it looks. "
    "Begin with the description itself."
)
_OTHER_TASKS = ("ForQuestionAnswering", "ForImageTextRetrieval", "ForSequenceClassification")
_OTHER_INPUTS = ("pix2struct",)  # of patches in place of pixels
_EXAMPLE = "for instance Salesforce/blip-image-captioning-large"


@dataclass(frozen=True)
class CaptionerKind:
    """What is known of a model without its weights.

    Attributes:
        model_type: As transformers calls it.
        class_name: Of the model, in transformers.
        prompting: "none": it takes no words. "prefix": they begin the caption. "task": one token says what to do.
            "instruction": words beside the picture, which are no part of the caption. "chat": a message, put in the
            form that the model's chat template says.
        prompt: What it is given where the user says nothing.
    """

    model_type: str
    class_name: str
    prompting: Prompting
    prompt: str | None = None

    @property
    def is_told(self) -> bool:
        """Whether words beside the picture say what to do, so that captions may be long."""
        return self.prompting in ("task", "instruction", "chat")


_PROMPTING: Mapping[str, tuple[Prompting, str | None]] = {
    "blip": ("prefix", None),
    "git": ("prefix", None),
    "vision-encoder-decoder": ("none", None),
    "florence2": ("task", "<DETAILED_CAPTION>"),
    "blip-2": ("instruction", None),
    "instructblip": ("instruction", "Describe the picture in detail."),
    "kosmos-2": ("instruction", "Describe this image in detail:"),
    "paligemma": ("instruction", "caption en"),
}


def read_config(folder: Path) -> Mapping[str, Any]:
    """The settings of a model's folder.

    Raises:
        CheckpointError: There is no config.json, or it cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"--model: {folder} {_of_other_files(folder)}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"--model: {path} cannot be read ({reason}). Download it again.") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"--model: {path} names no model_type, so it is no model of transformers. Name another.")
    return config


def _of_other_files(folder: Path) -> str:
    """What a folder without settings is, and what to do, to follow its name."""
    if (folder / "adapter_config.json").is_file():
        return "is an adapter, not a model. Merge it into its model first"
    if (folder / "model_index.json").is_file():
        return f"is a model that draws pictures and does not describe them. Choose a captioner, {_EXAMPLE}"
    if (folder / "model.onnx").is_file():
        return f"is a tagger. Give it to finetune/tag_images_by_wd14_tagger.py, or choose a captioner, {_EXAMPLE}"
    return f"has no {CONFIG}. Name the folder that has all files of the model"


def recognise(config: Mapping[str, Any], name: str) -> CaptionerKind:
    """What kind of captioner a model is.

    Args:
        config: Of its config.json.
        name: How the user calls the model.

    Raises:
        CheckpointError: It is none, or needs code of its own.
        EnvironmentFault: The installed transformers does not know it.
    """
    from transformers import CONFIG_MAPPING, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CAPTIONERS

    model_type = config["model_type"]
    _refuse_own_code(config, name, is_known=model_type in CONFIG_MAPPING)
    if model_type not in CONFIG_MAPPING:
        raise EnvironmentFault(
            f"--model: transformers {__version__} does not know the type {model_type} of {name}. Install a newer one "
            "(pip install -U transformers), or choose another model."
        )
    if model_type not in CAPTIONERS or model_type in _OTHER_INPUTS:
        raise CheckpointError(
            f"--model: {name} is a {model_type} model, which does not describe pictures here. "
            f"Choose a captioner, {_EXAMPLE}."
        )
    for architecture in config.get("architectures") or ():
        if architecture.endswith(_OTHER_TASKS):
            raise CheckpointError(f"--model: {name} is a {architecture}, no captioner. Choose another, {_EXAMPLE}.")
    prompting, prompt = _PROMPTING.get(model_type, ("chat", INSTRUCTION))
    return CaptionerKind(model_type, CAPTIONERS[model_type], prompting, prompt)


def _refuse_own_code(config: Mapping[str, Any], name: str, *, is_known: bool) -> None:
    """Code that lies beside weights is never run. transformers has code of its own for most such models."""
    if "auto_map" not in config:
        return
    if config["model_type"] == "florence2":
        raise CheckpointError(
            f"--model: {name} needs code that lies beside its weights, which is not run here. The same model in the "
            "form of transformers is florence-community/Florence-2-large (or -base, -large-ft, -base-ft)."
        )
    if not is_known:
        raise CheckpointError(
            f"--model: {name} needs code that lies beside its weights, which is not run here. Choose a model that "
            f"transformers has the code of, {_EXAMPLE}."
        )


def checked_prompt(kind: CaptionerKind, prompt: str | None) -> str | None:
    """What the model is given: the user's prompt, or that of its kind.

    Raises:
        CheckpointError: The model takes none.
    """
    if prompt is None:
        return kind.prompt
    if kind.prompting == "none":
        raise CheckpointError(f"--prompt: a {kind.model_type} model takes no words. Leave it out.")
    is_task = prompt.startswith("<") and prompt.endswith(">")
    if kind.prompting == "task" and not is_task:
        raise CheckpointError(
            f"--prompt {prompt!r}: Florence-2 takes a task, such as <CAPTION>, <DETAILED_CAPTION> or "
            "<MORE_DETAILED_CAPTION>. Give one of them."
        )
    return prompt
