"""Options of finetune/make_captions.py and finetune/make_captions_by_git.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt
from library.preparing.options.folder import PictureFolderOptions
from library.preparing.options.text_files import extension_problems, line_problems, with_dot

BLIP = "Salesforce/blip-image-captioning-large"
GIT = "microsoft/git-large-textcaps"
LONG_CAPTION = 300  # tokens that a model has which was told to describe, if --max_length is not given
CHAT_PIXELS = 1024 * 1024  # of what models that chat are shown, if --max_pixels is not given

_MODEL_HELP = (
    "Captioner: a folder in the layout of transformers, or owner/name on the hub. BLIP, BLIP-2, InstructBLIP, Git, "
    "Kosmos-2, Florence-2, PaliGemma, Qwen-VL, SmolVLM, Llava and others that transformers loads without code of "
    "their own."
)
_OLD_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".gguf")
_OLD_BLIP = "model_large_caption.pth"  # the same weights as BLIP
_DEVICES = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class CaptionModelOptions(OptionGroup):
    """Which model describes the pictures, and how it is loaded."""

    title: ClassVar[str] = "Captioner"
    usual: ClassVar[str] = BLIP

    model: str = opt(BLIP, _MODEL_HELP, aliases=("caption_weights",))
    prompt: str | None = opt(
        None,
        "BLIP, Git: the beginning of every caption. Florence-2: its task, such as <CAPTION> or "
        "<MORE_DETAILED_CAPTION>; not set means <DETAILED_CAPTION>. Others: what the model is told to do; not set "
        "asks for a caption of a few sentences.",
        free_text=True,
    )
    mixed_precision: str | None = opt(
        None,
        "Format of the weights and computations. Not set means bf16 or fp16 on a GPU, as it can, and float32 on a CPU.",
        choices=("no", "fp16", "bf16"),
        aliases=("precision",),
    )
    load_in_8bit: bool = opt(False, "Load the weights in 8 bits (bitsandbytes); needs an NVIDIA GPU.")
    load_in_4bit: bool = opt(False, "Load the weights in 4 bits (bitsandbytes); needs an NVIDIA GPU.")
    device: str | None = opt(None, "Where to compute, for instance cpu or cuda:1. Not set means a GPU if there is one.")

    def check(self) -> Iterator[str]:
        if not self.model.strip():
            yield "--model needs a folder or owner/name, got an empty text."
        elif "://" in self.model or self.model.lower().endswith(_OLD_WEIGHTS):
            yield f"--model {self.model} is {self._in_place_of_file()}"
        if self.device is not None and not _DEVICES.fullmatch(self.device):
            yield f"--device {self.device} is no device. Give cpu, cuda, cuda:1 (the second GPU), mps or xpu."
        if self.load_in_8bit and self.load_in_4bit:
            yield "--load_in_8bit and --load_in_4bit exclude each other. Keep one of them."

    def _in_place_of_file(self) -> str:
        """What a model is that is no folder, and what to name in its place."""
        path, is_web = Path(self.model), "://" in self.model
        what = "a web address" if is_web else "a single weights file"
        if not is_web and (path.parent / "config.json").is_file():
            return f"{what}. Name its folder, {path.parent}."
        if path.name == _OLD_BLIP:
            return f"{what}. Give {BLIP}, which has the same weights in the layout of transformers."
        return (
            f"{what}. Give a captioner: a folder in the layout of transformers, or owner/name on the hub, for instance "
            f"{self.usual}."
        )

    @property
    def bits(self) -> int | None:
        """Of a weight; None where they are as wide as computations."""
        return 8 if self.load_in_8bit else 4 if self.load_in_4bit else None


@dataclass(frozen=True, kw_only=True)
class GitModelOptions(CaptionModelOptions):
    """The same with a Git as default."""

    usual: ClassVar[str] = GIT

    model: str = opt(GIT, _MODEL_HELP, aliases=("model_id", "caption_weights"))


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(OptionGroup):
    """How words are chosen."""

    title: ClassVar[str] = "Choice of words"

    beam_search: bool = opt(False, "Take the likeliest words (of --num_beams beginnings) instead of drawing them.")
    num_beams: int = opt(1, "Beginnings that --beam_search follows.", minimum=1)
    top_p: float = opt(0.9, "Draw among the likeliest words that together have this chance.", above=0, maximum=1)
    temperature: float = opt(1.0, "Chances of words are drawn flatter above 1, and steeper below.", above=0)
    max_length: int = opt(
        75,
        "Longest caption, in tokens. BLIP, Git: with --prompt. Models that are told what to do have "
        f"{LONG_CAPTION} if this is not given.",
        minimum=1,
    )
    min_length: int = opt(5, "Shortest caption, in tokens.", minimum=0)
    seed: int = opt(42, "Beginning of the draws. Each picture has its own, whatever is captioned beside it.")

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.beam_search:
            for name in ("top_p", "temperature", "seed"):
                yield name, "--beam_search draws nothing"
        else:
            yield "num_beams", "no --beam_search"


@dataclass(frozen=True, kw_only=True)
class CaptionFileOptions(OptionGroup):
    """What is written."""

    title: ClassVar[str] = "Caption files"

    caption_extension: str = opt(".caption", "Ending of caption files.", aliases=("caption_extention",))
    overwrite: bool = opt(False, "Write captions anew that are there, those corrected by hand too.")
    trigger_word: str | None = opt(None, "Comes first in every caption that does not begin with it.", free_text=True)
    postfix: str | None = opt(None, "Comes last in every caption that does not end with it.", free_text=True)
    caption_separator: str = opt(", ", "Between trigger word, caption and postfix.", free_text=True)

    @property
    def extension(self) -> str:
        """With its dot."""
        return with_dot(self.caption_extension)

    def check(self) -> Iterator[str]:
        yield from extension_problems("--caption_extension", self.caption_extension)
        yield from line_problems("--trigger_word", self.trigger_word)
        yield from line_problems("--postfix", self.postfix)
        yield from line_problems("--caption_separator", self.caption_separator, may_be_blank=True)


@dataclass(frozen=True, kw_only=True)
class GitCaptionFileOptions(CaptionFileOptions):
    """What is written, and what is left out of it."""

    remove_words: bool = opt(
        False,
        'Leave out phrases such as "with the words ... on it", which Git makes up. How many captions that changes is '
        "told.",
    )


@dataclass(frozen=True, kw_only=True)
class CaptionSpeedOptions(OptionGroup):
    """How many pictures are worked on at once."""

    title: ClassVar[str] = "Speed"

    batch_size: int = opt(1, "Pictures that are captioned together.", minimum=1)
    max_pixels: int | None = opt(
        None,
        "Larger pictures are made smaller for the model, in their shape, to this number of pixels. Not set means "
        f"{CHAT_PIXELS} for models that chat, some of which take more tokens, time and memory for larger pictures; "
        "others bring all pictures to one size themselves.",
        minimum=1024,
    )
    max_data_loader_n_workers: int | None = opt(
        None,
        "Threads that decode pictures while others are captioned. Not set means one for each processor, at most 8; 0 "
        "decodes in turn.",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class CaptioningOptions(CommonOptions):
    """All options of finetune/make_captions.py."""

    pictures: PictureFolderOptions = field(default_factory=PictureFolderOptions)
    captioner: CaptionModelOptions = field(default_factory=CaptionModelOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    files: CaptionFileOptions = field(default_factory=CaptionFileOptions)
    speed: CaptionSpeedOptions = field(default_factory=CaptionSpeedOptions)

    leading: ClassVar[tuple[str, ...]] = ("pictures", "captioner")

    @property
    def max_length(self) -> int | None:
        """As it was given; None where the model may choose its own default."""
        return self.generation.max_length if "max_length" in self.given else None

    def check(self) -> Iterator[str]:
        longest = self.max_length or LONG_CAPTION  # that of the model, if it is less, is compared when it is known
        if self.generation.min_length > longest:
            yield f"--min_length {self.generation.min_length} is above --max_length {longest}. Lower it."


@dataclass(frozen=True, kw_only=True)
class GitCaptioningOptions(CaptioningOptions):
    """All options of finetune/make_captions_by_git.py."""

    captioner: GitModelOptions = field(default_factory=GitModelOptions)
    files: GitCaptionFileOptions = field(default_factory=GitCaptionFileOptions)


CAPTIONING_SCRIPT: ScriptText = {
    "prog": "finetune/make_captions.py",
    "description": "Write a caption for every picture of a folder, with BLIP or any other captioner of transformers. "
    "Captions that are there are kept; an interrupted run continues.",
    "example": "python finetune/make_captions.py my_pictures --batch_size=8 --caption_extension=.txt",
    "ignored": {},
}

GIT_CAPTIONING_SCRIPT: ScriptText = {
    "prog": "finetune/make_captions_by_git.py",
    "description": "Write a caption for every picture of a folder, with Git. Takes the options of make_captions.py.",
    "example": "python finetune/make_captions_by_git.py my_pictures --batch_size=8 --remove_words",
    "ignored": {},
}
