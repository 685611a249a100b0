"""Pictures and words as a captioner takes them, and captions out of the tokens that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError
from library.preparing.captioning.kinds import CaptionerKind
from library.preparing.captioning.processors import LOADING_FAULTS, Processor, first_line
from library.preparing.captioning.wording import joined_pieces
from library.records import Size

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Inputs = Mapping[str, "Tensor"]
Encode = Callable[[Sequence["Image"]], Inputs]


def encoder(kind: CaptionerKind, processor: Processor, prompt: str | None) -> Encode:
    """What makes the inputs of a batch of pictures: the same for a picture alone and in a batch, but for padding.

    Raises:
        CheckpointError: It is not known how the model is told what to do.
    """
    if kind.prompting in ("none", "prefix"):
        return lambda images: _with_beginning(kind, processor, prompt, images)
    if kind.prompting == "chat":
        text = _message(processor, kind, prompt)
        bos = getattr(processor.tokenizer, "bos_token", None)
        # A template that writes the token of the beginning itself leaves none to be added.
        further = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        return lambda images: processor.whole(
            images=[[image] for image in images],
            text=[text] * len(images),
            padding=True,
            return_tensors="pt",
            **further,
        )
    if prompt is None:
        return lambda images: processor.whole(images=list(images), return_tensors="pt")
    return lambda images: processor.whole(
        images=list(images), text=[prompt] * len(images), padding=True, return_tensors="pt"
    )


def words_of(tokens: Tensor, inputs: Inputs, kind: CaptionerKind, tokenizer: Any) -> list[str]:
    """The captions. Answers to Florence-2's caption tasks are words alone, so they need no parsing.

    Args:
        tokens: What the model gave. Shape [B, L].
        inputs: What it was given.
        kind: Of the model.
        tokenizer: Of the model; not the one that is encoding the next batch meanwhile.
    """
    if kind.is_told:
        tokens = behind_prompt(tokens, inputs.get("input_ids"))
    if not _is_of_pieces(tokenizer):
        return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [joined_pieces(text.strip()) for text in texts]


def behind_prompt(tokens: Tensor, prompt: Tensor | None) -> Tensor:
    """Tokens without those of the prompt, which some models give back before their own and others do not.

    Args:
        tokens: Shape [B, L].
        prompt: Shape [B, P].
    """
    if prompt is None or tokens.shape[1] < prompt.shape[1]:
        return tokens
    length = prompt.shape[1]
    is_repeated = bool((tokens[:, :length] == prompt.to(tokens.device)).all())
    return tokens[:, length:] if is_repeated else tokens


def is_padded(inputs: Inputs) -> bool:
    """Whether prompts of a batch differ in length, because their pictures take different numbers of tokens."""
    mask = inputs.get("attention_mask")
    return mask is not None and not bool(mask.all())


def least_size(kind: CaptionerKind, processor: Processor) -> Size | None:
    """The size that every picture is brought to, so that large ones may be decoded smaller; None where there is none.

    Models that chat cut large pictures into tiles.
    """
    if kind.prompting == "chat":
        return None
    size = getattr(processor.pictures, "size", None) or {}
    if not getattr(processor.pictures, "do_resize", False):
        return None
    read: Callable[[str], Any] = size.get if hasattr(size, "get") else lambda name: getattr(size, name, None)
    width, height = (read(side) or read("shortest_edge") for side in ("width", "height"))
    return Size(int(width), int(height)) if width and height else None


def _with_beginning(kind: CaptionerKind, processor: Processor, prompt: str | None, images: Sequence[Image]) -> Inputs:
    """Pixels, and the beginning of the captions in tokens. BLIP puts its own first token in the place of the first
    and cuts the last; Git goes on behind the last."""
    import torch

    pixels = processor.pictures(images=list(images), return_tensors="pt")["pixel_values"]
    tokenizer = processor.tokenizer
    if kind.prompting == "none" or (kind.model_type == "blip" and not prompt):
        return {"pixel_values": pixels}
    words = tokenizer(prompt or "", add_special_tokens=False)["input_ids"]
    end = [tokenizer.sep_token_id] if kind.model_type == "blip" else []
    row = torch.tensor([tokenizer.cls_token_id, *words, *end])
    ids = row.repeat(len(images), 1)  # [B, P]
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _is_of_pieces(tokenizer: Any) -> bool:
    """Whether it makes words of their own of all signs, as those of BERT do, which BLIP and Git have."""
    return type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__ == "WordPiece"


def _message(processor: Processor, kind: CaptionerKind, prompt: str | None) -> str:
    from jinja2 import TemplateError

    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    template = getattr(processor.whole, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if template is None:
        raise CheckpointError(
            f"--model: this {kind.model_type} model has no chat template, so nothing says how it is told what to do. "
            "Put its chat_template.jinja beside its other files, or choose another model."
        )
    try:
        text: str = processor.whole.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, chat_template=template, tokenize=False
        )
    except (*LOADING_FAULTS, TemplateError) as error:
        raise unfit_template(kind, first_line(error)) from None
    return text


def unfit_template(kind: CaptionerKind, reason: str) -> CheckpointError:
    """What is raised where a chat template makes no message of a picture and words."""
    return CheckpointError(
        f"--model: the chat template of this {kind.model_type} model makes no message of a picture and a prompt "
        f"({reason}). Put a chat_template.jinja that takes pictures beside its files, or choose another model."
    )
