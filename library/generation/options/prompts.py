"""Options about what is drawn: prompts, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class PromptSourceOptions(OptionGroup):
    """Where prompts come from, how many pictures of each, and which seeds."""

    title: ClassVar[str] = "Prompts"

    prompt: str | None = opt(
        None, "The prompt, with options behind it if need be: a cat --w 768 --h 512 --d 42 --n blurry.", free_text=True
    )
    from_file: Path | None = opt(
        None, "Text file with a prompt on each line; empty lines and lines that begin with # are left out."
    )
    from_module: str | None = opt(
        None, "Python file whose get_prompter(args) gives prompts, one a line; args has all options as attributes."
    )
    prompter_module_args: str | None = opt(None, "Handed to get_prompter of --from_module, as written.", free_text=True)
    from_png: tuple[Path, ...] | None = opt(None, "Draw these pictures, which were drawn here, once more.")
    interactive: bool = opt(False, "Ask for prompts until an empty line.")
    no_preview: bool = opt(False, "Show no picture.", no_effect="no window is opened; the log names each file")
    shuffle_prompts: bool = opt(False, "Draw the prompts in another order in every iteration; --seed decides which.")
    images_per_prompt: int = opt(1, "Pictures of each prompt.", minimum=1)
    n_iter: int = opt(1, "How often all prompts are drawn.", minimum=1)
    seed: int | None = opt(
        None,
        "Seed of the first picture; those that follow have the numbers that follow. Not set means a random one for "
        "each.",
        minimum=0,
        maximum=MAX_SEED,
    )
    iter_same_seed: bool = opt(False, "All prompts of an iteration have the same seed.")

    @property
    def sources(self) -> tuple[str, ...]:
        """The options that are given and say what is drawn."""
        names = ("prompt", "from_file", "from_module", "from_png", "interactive")
        return tuple(f"--{name}" for name in names if getattr(self, name) not in (None, False, ()))

    def check(self) -> Iterator[str]:
        if len(self.sources) > 1:
            yield f"{' and '.join(self.sources)} exclude each other. Keep one of them."
        if self.sources == ():
            yield (
                'Nothing to draw: give --prompt (" " for one without words), --from_file, --from_module, --from_png or '
                "--interactive."
            )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.from_module is None:
            yield "prompter_module_args", "no --from_module"
        if self.from_file is None and self.from_module is None:
            yield "shuffle_prompts", "there are no prompts to shuffle"
        if self.from_png:
            reason = "the pictures of --from_png say it"
            yield from ((name, reason) for name in ("images_per_prompt", "n_iter", "seed", "iter_same_seed"))
