"""Sample prompts: one frozen value for each picture, and the file that they come from.

The file is looked at again before every drawing, so that prompts can be edited while a training runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.training.sampling.prompt_files import FLAG, parse_settings, read_prompt_file, warn
from library.training.sampling.prompt_lines import MAX_STEPS, shortened

if TYPE_CHECKING:
    from library.families.base import ModelFamily

MIN_SIDE = 64
MAX_SIDE = 8192  # more than any model draws
MAX_SEED = 2**63 - 1
CONDITION = "controlnet_image"
NEVER_USED = frozenset({"guidance_scale", CONDITION, "cfg_trunc_ratio", "renorm_cfg", "flow_shift"})
"""Settings of a prompt that are for models of other trainers."""
_WEIGHT = re.compile(r"(?<!\\)\([^()]*:\s*[0-9]*\.?[0-9]+\s*\)")


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to draw while training.

    Attributes:
        prompt: Its text; may be empty.
        negative_prompt: What guidance leads away from; empty is encoded like any text.
        width: In pixels, a multiple of what the model needs.
        height: As above.
        seed: None for another picture each time.
        sample_steps: 1..1000.
        scale: Guidance scale; 1 is without guidance.
        index: Place in the file, from 0.
        sampler: One of SAMPLERS; None for models that have one sampler only.
        condition: A picture that a network is told; None for none.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    seed: int | None
    sample_steps: int
    scale: float
    index: int = 0
    sampler: str | None = None
    condition: str | None = None

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt plays a part."""
        return self.scale != 1.0

    @property
    def texts(self) -> tuple[str, ...]:
        """What has to be encoded: the prompt, then the negative prompt if it plays a part."""
        return (self.prompt, self.negative_prompt) if self.is_guided else (self.prompt,)


@dataclass(frozen=True, kw_only=True)
class PromptDefaults:
    """What prompts get that leave it open.

    Attributes:
        size: Width and height in pixels.
        steps: Sampling steps.
        scale: Guidance scale.
        multiple: Sides are rounded down to multiples of this.
        samplers: Those that the model may be sampled with; empty where there is only one.
        sampler: Of them.
        is_weighted: Brackets weigh words.
        is_conditioned: A prompt may name a conditioning picture.
    """

    size: int = 1024
    steps: int = 28
    scale: float = 4.5
    multiple: int = 16
    samplers: Collection[str] = ()
    sampler: str | None = None
    is_weighted: bool = False
    is_conditioned: bool = False

    @classmethod
    def of_family(
        cls, family: ModelFamily, sampler: str | None = None, *, is_conditioned: bool = False
    ) -> PromptDefaults:
        """What its models draw best, with the sampler of `--sample_sampler` where they have several."""
        return cls(
            size=family.sample_size,
            steps=family.sample_steps,
            scale=family.sample_guidance,
            multiple=family.sample_multiple,
            samplers=family.samplers,
            sampler=sampler if family.samplers else None,
            is_weighted=family.is_weighted,
            is_conditioned=is_conditioned,
        )

    @property
    def no_effect(self) -> Collection[str]:
        """Settings of a prompt that change nothing; giving one is a warning."""
        never = NEVER_USED - {CONDITION} if self.is_conditioned else NEVER_USED
        return never if self.samplers else never | {"sample_sampler"}


class PromptFile:
    """The prompts of a file, which is read again when it has changed.

    Args:
        path: A `.txt`, `.toml` or `.json` file.
        defaults: Usually of the model family.

    Attributes:
        prompts: As they were when the file was last without fault; at least one.

    Raises:
        OptionError: The file is missing, unreadable, of another type, or malformed.
    """

    def __init__(self, path: Path, defaults: PromptDefaults) -> None:
        self.path, self.defaults = path, defaults
        self._seen: bytes | str = read_prompt_file(path)
        self.prompts = parse_prompts(path, self._seen, defaults)

    def reread(self, check: Callable[[Sequence[SamplePrompt]], None] | None = None) -> bool:
        """Take over what has changed in the file.

        Args:
            check: Raises an OptionError for prompts that the model cannot draw.

        Returns:
            Whether there are other prompts than before.

        Raises:
            OptionError: The file cannot be used as it is now; `prompts` stay. Raised once for each state of the file.
        """
        try:
            content = read_prompt_file(self.path)
        except OptionError as error:
            if self._has_changed_to(str(error)):
                raise
            return False
        if not self._has_changed_to(content):
            return False
        prompts = parse_prompts(self.path, content, self.defaults)
        if check is not None:
            check(prompts)
        before, self.prompts = self.prompts, prompts
        return prompts != before

    def _has_changed_to(self, state: bytes | str) -> bool:
        """The content, or why there is none: a time of change would miss an edit within one tick of the clock."""
        before, self._seen = self._seen, state
        return state != before


def load_prompts(path: Path, defaults: PromptDefaults = PromptDefaults()) -> tuple[SamplePrompt, ...]:
    """Read a prompt file once.

    Raises:
        OptionError: The file is missing, unreadable, of another type, or malformed.
    """
    return PromptFile(path, defaults).prompts


def parse_prompts(path: Path, content: bytes, defaults: PromptDefaults) -> tuple[SamplePrompt, ...]:
    """The prompts in the content of a file, with what they leave open filled in.

    Raises:
        OptionError: As `PromptFile`.
    """
    prompts: list[SamplePrompt] = []
    asked = parse_settings(path, content)
    for place, settings in asked:
        idle = [key for key in settings if key in defaults.no_effect]
        if idle:
            warn(place, f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect for this model")
        prompts.append(_complete(settings, place, defaults, index=len(prompts)))
    if not prompts:
        raise OptionError(f"{FLAG}: {path} has no prompts. Write one a line.")
    if not defaults.is_weighted:
        _warn_of_weights(asked)
    return tuple(prompts)


def _warn_of_weights(asked: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Once for the whole file, at the first prompt whose brackets would weigh words and are read as text."""
    for place, settings in asked:
        for key in ("prompt", "negative_prompt"):
            if found := _WEIGHT.search(settings.get(key, "")):
                weight = shortened(found.group())
                advice = "only with --weighted_captions, then in captions too, and not for every model"
                warn(place, f"{weight} is read as text: brackets weigh words {advice}")
                return


def _complete(settings: Mapping[str, Any], place: str, defaults: PromptDefaults, *, index: int) -> SamplePrompt:
    seed = settings.get("seed")
    if seed is not None and seed > MAX_SEED:
        warn(place, f"the seed {shortened(str(seed))} is too large and is left out; the largest is {MAX_SEED}")
        seed = None
    return SamplePrompt(
        prompt=settings["prompt"],
        negative_prompt=settings.get("negative_prompt", ""),
        width=_side(settings, "width", place, defaults),
        height=_side(settings, "height", place, defaults),
        seed=None if seed is None else int(seed),
        sample_steps=min(max(int(settings.get("sample_steps", defaults.steps)), 1), MAX_STEPS),
        scale=float(settings.get("scale", defaults.scale)),
        index=index,
        sampler=_sampler(settings, place, defaults),
        condition=settings.get(CONDITION) if defaults.is_conditioned else None,
    )


def _sampler(settings: Mapping[str, Any], place: str, defaults: PromptDefaults) -> str | None:
    asked = settings.get("sample_sampler")
    if asked is None or not defaults.samplers:
        return defaults.sampler
    if asked.lower() in defaults.samplers:
        return str(asked.lower())
    known = ", ".join(defaults.samplers)
    warn(place, f"there is no sampler {shortened(asked)}, so {defaults.sampler} draws it; known are {known}")
    return defaults.sampler


def _side(settings: Mapping[str, Any], key: str, place: str, defaults: PromptDefaults) -> int:
    asked, multiple = int(settings.get(key, defaults.size)), defaults.multiple
    if asked > MAX_SIDE:
        raise OptionError(f"{FLAG}: {place}: {key} {shortened(str(asked))} is too large. Give at most {MAX_SIDE}.")
    smallest = -(-MIN_SIDE // multiple) * multiple
    side = max(asked // multiple * multiple, smallest)
    if side != asked:
        warn(place, f"{key} {asked} becomes {side}: sides are multiples of {multiple}, at least {smallest}")
    return side
