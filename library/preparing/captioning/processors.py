"""What turns pictures and words into a captioner's inputs, and its tokens into words: the processor of transformers.

Some processors ask for a part that reads videos, and that part for torchvision. Pictures need neither, so such a
processor is put together without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.errors import CheckpointError, EnvironmentFault
from library.preparing.captioning.kinds import CaptionerKind

# What transformers raises where a file is missing, damaged, or does not fit.
LOADING_FAULTS = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)
# Without any of these transformers makes a tokenizer that knows no word.
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json", "*.model")
_QUIET: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Processor:
    """A processor, and the two parts of it that are asked alone.

    Args:
        whole: Takes pictures and words together; None where a model has only parts.
        pictures: Turns pictures into pixels.
        tokenizer: Turns words into tokens and back.
    """

    def __init__(self, whole: Any, pictures: Any, tokenizer: Any) -> None:
        self.whole, self.pictures, self.tokenizer = whole, pictures, tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether it says how a message is put to the model."""
        return any(getattr(part, "chat_template", None) for part in (self.whole, self.tokenizer))


def load_processor(folder: Path, kind: CaptionerKind) -> Processor:
    """The processor of a captioner.

    Args:
        folder: Of the model.
        kind: Of the model.

    Raises:
        CheckpointError: Its files are missing or damaged.
        EnvironmentFault: It needs a package that is not installed.
    """
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise CheckpointError(
            f"--model: {folder} has no tokenizer (tokenizer.json or vocab.txt). Download all files of the model."
        )
    try:
        return _parts_of(folder, kind)
    except ImportError as error:
        raise EnvironmentFault(
            f"--model: the processor of {folder} needs a package that is not installed ({first_line(error)}). "
            "Install it, or choose another model."
        ) from None
    except LOADING_FAULTS as error:
        raise CheckpointError(
            f"--model: {folder} has no processor that can be read ({first_line(error)}). Download all its files: "
            "preprocessor_config.json, tokenizer_config.json, tokenizer.json or vocab.txt, and processor_config.json."
        ) from None


def first_line(error: Exception) -> str:
    """The beginning of an error of transformers, in one line."""
    text = " ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _parts_of(folder: Path, kind: CaptionerKind) -> Processor:
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    if kind.prompting == "none":  # models that are two models have no processor of their own
        pictures = AutoImageProcessor.from_pretrained(folder, **_QUIET)
        return _checked(Processor(None, pictures, AutoTokenizer.from_pretrained(folder, **_QUIET)))
    try:
        whole = AutoProcessor.from_pretrained(folder, **_QUIET)
    except LOADING_FAULTS:
        base = _video_class(kind)
        if base is None:
            raise
        whole = _without_videos(folder, base)
    return _checked(Processor(whole, getattr(whole, "image_processor", None), getattr(whole, "tokenizer", None)))


def _checked(processor: Processor) -> Processor:
    if processor.pictures is None or processor.tokenizer is None:
        missing = "preprocessor_config.json" if processor.pictures is None else "tokenizer"
        raise ValueError(f"no {missing}")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _video_class(kind: CaptionerKind) -> Any:
    """The class of a kind's processor where it asks for a part for videos and that cannot be had; else None."""
    import inspect
    from importlib.util import find_spec

    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(kind.model_type)
    base = getattr(transformers, name, None) if name and find_spec("torchvision") is None else None
    return base if base is not None and "video_processor" in inspect.signature(base.__init__).parameters else None


def _without_videos(folder: Path, base: Any) -> Any:
    """A processor of the class `base`, for pictures only."""
    from transformers import AutoImageProcessor, AutoTokenizer

    settings = _processor_settings(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, **_QUIET)
    settings.setdefault("chat_template", tokenizer.chat_template)
    pictures = AutoImageProcessor.from_pretrained(folder, **_QUIET)
    return _for_pictures(base)(pictures, tokenizer, None, **settings)


def _for_pictures(base: Any) -> Any:
    """A class of processors that may have no part for videos."""

    class PictureProcessor(base):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None and argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    return PictureProcessor


def _processor_settings(folder: Path) -> dict[str, Any]:
    """What processor_config.json says beside the parts, and the chat template, where that has a file."""
    import json

    content: dict[str, Any] = {}
    for path in (folder / "chat_template.json", folder / "processor_config.json"):
        content |= json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    template = folder / "chat_template.jinja"
    settings = {
        name: value
        for name, value in content.items()
        if not name.endswith("_processor") and name not in ("processor_class", "auto_map", "tokenizer")
    }
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return settings
