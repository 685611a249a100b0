"""Where the prompts of a run come from: the command line, a file, a module of the user's, or the keyboard."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from library.errors import OptionError, UserError
from library.generation.options.prompts import PromptSourceOptions
from library.generation.prompt_file import PromptLine, read_prompt_lines, shuffled
from library.generation.prompt_lines import PromptOptions, parse_prompt
from library.generation.prompt_variants import expand_variants
from library.generation.prompters import prompts_of_module
from library.log import get_logger
from library.rng import stream_seed

logger = get_logger(__name__)

_ASK = "prompt (an empty line ends): "


class AskedPrompt(NamedTuple):
    """A prompt with its options.

    Attributes:
        options: Of its line.
        place: Where it stands, for messages.
        num_pictures: That are wanted of it.
        number: Of its line, from 0; decides which source and guiding pictures it has.
    """

    options: PromptOptions
    place: str
    num_pictures: int = 1
    number: int = 0


@dataclass(frozen=True)
class PromptSupply:
    """The prompts of each iteration.

    Attributes:
        ready: Prompts without text, of pictures that are drawn again; None where there are texts.
        lines: Texts that are known before anything is drawn; None where they come by and by.
        by_and_by: Otherwise gives the lines of an iteration, each as it is asked for.
        count: Pictures of each prompt.
        seed: Of variants and of the order.
        is_shuffled: Known lines come in another order in every iteration.
        is_interactive: A person waits for each picture, and may make mistakes.
    """

    ready: tuple[AskedPrompt, ...] | None = None
    lines: Sequence[PromptLine] | None = None
    by_and_by: Callable[[], Iterator[PromptLine]] | None = None
    count: int = 1
    seed: int = 0
    is_shuffled: bool = False
    is_interactive: bool = False

    @classmethod
    def of(cls, options: PromptSourceOptions, values: Mapping[str, Any] | None = None) -> PromptSupply:
        """As the options ask for it. `values` are all options of the run, for modules that give prompts.

        Raises:
            OptionError: The file cannot be read.
        """
        seed = secrets.randbits(32) if options.seed is None else options.seed
        count = options.images_per_prompt
        if options.interactive:
            return cls(by_and_by=_typed, count=count, seed=seed, is_interactive=True)
        if options.from_module is not None:
            module, args = Path(options.from_module), SimpleNamespace(**(values or vars(options)))

            def given() -> Iterator[PromptLine]:
                return (PromptLine(text, str(module)) for text in prompts_of_module(module, args))

            lines = list(given()) if options.shuffle_prompts else None
            return cls(lines=lines, by_and_by=given, count=count, seed=seed, is_shuffled=options.shuffle_prompts)
        lines = [PromptLine(options.prompt or "", "--prompt")]
        if options.from_file is not None:
            lines = read_prompt_lines(options.from_file)
        return cls(lines=lines, count=count, seed=seed, is_shuffled=options.shuffle_prompts)

    @property
    def is_known(self) -> bool:
        """Whether all prompts can be looked at before anything is drawn."""
        return self.ready is not None or self.lines is not None

    def iteration(self, number: int) -> Iterator[AskedPrompt]:
        """The prompts of one iteration, from 0.

        Raises:
            UserError: A text is wrong; a person is asked for another one instead.
        """
        if self.ready is not None:
            yield from self.ready
            return
        for place, line in self._lines(number):
            with self.forgiving():
                yield from (asked._replace(number=place) for asked in self._prompts(line, number))

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """Tell a person what is wrong with a prompt, and go on."""
        try:
            yield
        except UserError as error:
            if not self.is_interactive:
                raise
            logger.error("%s", error)

    def _lines(self, number: int) -> Iterator[tuple[int, PromptLine]]:
        """Each with its number, which it keeps in any order."""
        if self.lines is None:
            assert self.by_and_by is not None  # one of them is given
            return enumerate(self.by_and_by())
        lines = list(enumerate(self.lines))
        return iter(shuffled(lines, seed=self.seed, iteration=number) if self.is_shuffled else lines)

    def _prompts(self, line: PromptLine, number: int) -> list[AskedPrompt]:
        """Those that a line with variants stands for; one for all pictures if it has none."""
        seed = stream_seed(self.seed, "iteration", number)
        texts = expand_variants(line.text, seed=seed, number=self.count, place=line.place)
        if set(texts) == {line.text}:
            return [AskedPrompt(parse_prompt(line.text, line.place), line.place, self.count)]
        return [AskedPrompt(parse_prompt(text, line.place), line.place) for text in texts]


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the place of a prompt before a message about it."""
    try:
        yield
    except OptionError as error:
        if str(error).startswith(place):
            raise
        raise OptionError(f"{place}: {error}") from error


def _typed() -> Iterator[PromptLine]:
    """Lines from the keyboard, until one is empty or there are no more."""
    while True:
        try:
            line = input(_ASK)
        except EOFError:
            return
        if not line.strip():
            return
        yield PromptLine(line, "prompt")
