"""What is drawn, one after the other: from a prompt's line and the options to everything that makes each picture."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.generation.extras import asked_extras, batch_extras, check_extras, ignored_switches
from library.generation.guides import GuidePictures
from library.generation.naming import safe_name
from library.generation.options.prompts import MAX_SEED
from library.generation.options.scripts import GenerationOptions
from library.generation.png_reading import NETWORK_WORDS
from library.generation.prompt_lines import PromptOptions
from library.generation.record import GenerationRecord, NetworkUse, PictureSizes
from library.generation.sources import SourcePictures, picture_size
from library.generation.supply import AskedPrompt
from library.log import get_logger
from library.records import Size

if TYPE_CHECKING:
    from library.families.base import ModelFamily

logger = get_logger(__name__)

DEFAULT_STRENGTH = 0.8
MAX_SIDE = 16384
_SEED_BITS = 32


@dataclass
class Seeds:
    """Seeds of pictures whose prompts give none.

    Attributes:
        first: Of `--seed`; None draws each.
        is_same: All pictures of an iteration have one.
    """

    first: int | None
    is_same: bool = False
    _numbers: Iterator[int] = field(default_factory=count)
    _of_iteration: dict[int, int] = field(default_factory=dict)

    def next(self, iteration: int) -> int:
        """That of the next picture."""
        if not self.is_same:
            return self._drawn() if self.first is None else self._behind(next(self._numbers))
        if iteration not in self._of_iteration:
            self._of_iteration[iteration] = self._drawn() if self.first is None else self._behind(iteration)
        return self._of_iteration[iteration]

    def _behind(self, number: int) -> int:
        """A seed that follows the first one; 0 comes after the largest."""
        return ((self.first or 0) + number) % (MAX_SEED + 1)

    @staticmethod
    def _drawn() -> int:
        return secrets.randbits(_SEED_BITS)


@dataclass(frozen=True)
class JobMaker:
    """Turns prompts into records.

    Attributes:
        options: Decide what a prompt leaves open.
        family: Of the model, as its files mark it.
        base: A record with what all pictures of the run share.
        longest: Longest side that the model can place, in pixels; None for any.
        sources: What prompts are drawn over.
        guides: What they are guided by.
    """

    options: GenerationOptions
    family: ModelFamily
    base: GenerationRecord
    longest: int | None
    sources: SourcePictures
    guides: GuidePictures = field(default_factory=GuidePictures)
    _told: set[str] = field(default_factory=set)

    def records(self, asked: AskedPrompt, *, iteration: int, seeds: Seeds) -> list[GenerationRecord]:
        """The pictures of a prompt, without networks and lengths of texts.

        Args:
            asked: The prompt and its options.
            iteration: From 0.
            seeds: For pictures whose prompt gives none.

        Raises:
            OptionError: The prompt asks for what cannot be drawn.
            DatasetError: Its source picture cannot be read.
        """
        prompt = asked.options
        self._check_multipliers(prompt)
        record = self._record(prompt, asked.number)
        check_extras(record)
        given = prompt.seeds or ()
        how_many = max(asked.num_pictures, len(given))
        own = [given[place] if place < len(given) else seeds.next(iteration) for place in range(how_many)]
        return [replace(record, seed=seed) for seed in own]

    def _record(self, prompt: PromptOptions, number: int) -> GenerationRecord:
        picture, (image, mask) = self.options.picture, self.sources.of_prompt(number)
        size = self._size(prompt, image)
        negative_scale = picture.negative_scale if prompt.negative_scale is None else prompt.negative_scale
        asked = self.options.source.strength if prompt.strength is None else prompt.strength
        strength = DEFAULT_STRENGTH if asked is None else asked
        extras = asked_extras(self.options, prompt, self.guides.at(number), ignored=ignored_switches(self.family))
        is_drawn_over = image is not None or "highres_fix_scale" in extras
        if image is not None and strength == 0:
            self._tell("With a strength of 0 nothing is drawn anew: pictures only go through the VAE.")
        self._tell_without_effect(prompt, is_drawn_over)
        return replace(
            self.base,
            prompt=prompt.prompt,
            negative_prompt=prompt.negative_prompt or "",
            width=size.width,
            height=size.height,
            steps=prompt.steps or picture.steps,
            sampler=self._sampler(prompt),
            scale=picture.scale if prompt.scale is None else prompt.scale,
            negative_scale=None if negative_scale == "none" else negative_scale,
            strength=strength if is_drawn_over else None,
            image=None if image is None else str(image),
            mask=None if mask is None else str(mask),
            clip_prompt=prompt.clip_prompt,
            sizes=self._told_sizes(prompt, size),
            file_name=None if prompt.file_name is None else safe_name(prompt.file_name),
            extras=extras or None,
        )

    def _tell_without_effect(self, prompt: PromptOptions, is_drawn_over: bool) -> None:
        if prompt.strength is not None and not is_drawn_over:
            self._tell("--t has no effect: there is no --image_path.")
        if prompt.clip_prompt is not None:
            self._tell("--c has no effect: no picture is guided by a second prompt. It stands in the file.")
        for words in NETWORK_WORDS.findall(f"{prompt.prompt} {prompt.negative_prompt or ''}"):
            self._tell(f"{words.strip()} is read as words of the prompt. Give networks with --network_weights.")

    def _size(self, prompt: PromptOptions, image: Path | None) -> Size:
        """Width and height: of the line, of the options, of the picture that is drawn over, or of the family."""
        usual = Size(self.family.sample_size, self.family.sample_size)
        picture = self.options.picture
        width, height = prompt.width or picture.W, prompt.height or picture.H
        if image is not None:
            usual = _like(picture_size(image), width, height)
        asked = Size(width or usual.width, height or usual.height)
        multiple, longest = self.family.sample_multiple, self.longest or MAX_SIDE
        size = Size(*(max(side // multiple, 1) * multiple for side in asked))
        if size != asked:
            self._tell(f"{asked} becomes {size}: sides are multiples of {multiple} pixels.")
        if max(size) > longest:
            raise OptionError(f"{size} is too large: this model draws up to {longest} pixels a side. Make it smaller.")
        return size

    def _check_multipliers(self, prompt: PromptOptions) -> None:
        """Refuse strengths of more networks than there are."""
        network, given = self.options.network, len(prompt.network_muls or ())
        number = network.num_files - network.num_merged
        if given and not number:
            self._tell("--am has no effect: there are no --network_weights whose strength can change.")
        elif given > number:
            raise OptionError(
                f"--am has {given} numbers for {number} file{'s'[: number > 1]} of --network_weights whose strength "
                "can change. Give one for each, or one for all."
            )

    def _sampler(self, prompt: PromptOptions) -> str:
        known = self.family.samplers
        if not known:
            if prompt.sampler is not None:
                self._tell(f"--ss {prompt.sampler} has no effect: {self.family.name} is drawn by Euler's method.")
            return "euler"
        sampler = prompt.sampler or self.options.picture.sampler
        if sampler not in known:
            raise OptionError(f"--ss {sampler}: there is no such sampler. Known are {', '.join(known)}.")
        return sampler

    def _told_sizes(self, prompt: PromptOptions, size: Size) -> PictureSizes | None:
        """What SDXL is told of a picture."""
        names = [item.name for item in fields(PictureSizes)]
        asked = {name: _first(getattr(prompt, name), getattr(self.options.picture, name, None)) for name in names}
        if self.family.name != "sdxl":
            if any(getattr(prompt, name) is not None for name in names):
                self._tell("--ow, --oh, --nw, --nh, --ct and --cl are for SDXL and have no effect here.")
            return None
        width = _first(asked["original_width"], size.width)
        height = _first(asked["original_height"], size.height)
        return PictureSizes(
            width,
            height,
            _first(asked["original_width_negative"], width),
            _first(asked["original_height_negative"], height),
            _first(asked["crop_top"], 0),
            _first(asked["crop_left"], 0),
        )

    def _tell(self, text: str) -> None:
        """Warn once in a run."""
        if text not in self._told:
            self._told.add(text)
            logger.warning("%s", text)


def batch_key(record: GenerationRecord) -> tuple[Any, ...]:
    """Pictures whose keys are equal can be drawn at once."""
    strengths = tuple(use.multiplier for use in record.networks)
    is_guided, is_apart = record.scale != 1, record.negative_scale is not None
    return (
        *(record.width, record.height, record.steps, record.sampler, record.strength, record.mask is None),
        *(record.image is None, batch_extras(record)),
        *(record.max_embeddings_multiples, strengths, is_guided or is_apart, is_apart),
    )


def with_networks(record: GenerationRecord, networks: tuple[NetworkUse, ...], num_rows: int) -> GenerationRecord:
    """A record with the networks at the strengths of its prompt, and the length that its texts need."""
    return replace(record, networks=networks, max_embeddings_multiples=num_rows)


def _like(size: Size, width: int | None, height: int | None) -> Size:
    """A size in the shape of a picture, with the side that is asked for; both may be."""
    if width is None and height is not None:
        return Size(max(round(size.width * height / size.height), 1), height)
    if height is None and width is not None:
        return Size(width, max(round(size.height * width / size.width), 1))
    return size


def _first(*values: Any) -> Any:
    """The first that is said."""
    return next((value for value in values if value is not None), None)
