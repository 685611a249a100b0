"""One picture that shows what a LoRA changes: the same prompts and seeds without it, at half and at full strength.

    python -m examples.tiny_sd3.before_after MODEL --lora FILE [--prompts PROMPTS] [--output SHEET]

PROMPTS is a file as --sample_prompts of the training has it. SHEET has a row for each prompt and a column for each
strength; without --output it lies beside the LoRA, as NAME_before_after.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import OptionError, UserError
from library.log import set_up_logging
from library.tensorfile import write_atomically
from library.training.sampling.contact_sheet import Row, rows_of
from library.training.sampling.contact_sheet_drawing import draw_table
from library.training.sampling.prompts import PromptDefaults, SamplePrompt, load_prompts

if TYPE_CHECKING:
    from PIL.Image import Image

    from examples.tiny_sd3.painter import Painter

PROMPTS = Path(__file__).resolve().parent.parent / "zorp_prompts.txt"
STRENGTHS = {"without the LoRA": 0.0, "half strength": 0.5, "full strength": 1.0}
ENLARGED = 2  # times, without smoothing


def draw_before_after(painter: Painter, lora: Path, prompts: Sequence[SamplePrompt]) -> Image:
    """The sheet.

    Args:
        painter: The model; the LoRA stays beside it, at full strength.
        lora: Its file.
        prompts: Square, with a seed each.

    Raises:
        CheckpointError: The file is no LoRA for this model.
    """
    network = painter.add_lora(lora)
    cells = {}
    for column, strength in enumerate(STRENGTHS.values()):
        network.set_multiplier(strength)
        for row, prompt in enumerate(prompts):
            cells[row, column] = _enlarged(_paint(painter, prompt))
    rows = [
        Row(row.key, row.label, f"seed {prompt.seed}") for row, prompt in zip(rows_of(prompts), prompts, strict=True)
    ]
    return draw_table(list(STRENGTHS), rows, cells)


def read_prompts(path: Path) -> tuple[SamplePrompt, ...]:
    """The prompts of a file.

    Raises:
        OptionError: The file cannot be read, or has a prompt that this sheet cannot show.
    """
    from examples.tiny_sd3.painter import GUIDANCE, STEPS
    from examples.tiny_sd3.world import SIDE

    prompts = load_prompts(path, PromptDefaults(size=SIDE, steps=STEPS, scale=GUIDANCE))
    for prompt in prompts:
        if prompt.seed is None or prompt.negative_prompt or prompt.width != prompt.height:
            raise OptionError(
                f"{path}: {prompt.prompt!r} must have a seed (--d 1), as many rows as columns, and no negative prompt."
            )
    return prompts


def _paint(painter: Painter, prompt: SamplePrompt) -> Image:
    assert prompt.seed is not None  # `read_prompts` has looked
    steps, guidance, side = prompt.sample_steps, prompt.scale, prompt.width
    return painter.paint([prompt.prompt], [prompt.seed], steps=steps, guidance=guidance, side=side)[0]


def _enlarged(picture: Image) -> Image:
    from PIL import Image as pillow

    return picture.resize((ENLARGED * picture.width, ENLARGED * picture.height), pillow.Resampling.NEAREST)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the sheet that the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description="Show what a LoRA changes: without it, at half and at full strength.")
    parser.add_argument("model", type=Path, help="a single file with everything inside, tokenizers beside it")
    parser.add_argument("--lora", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    set_up_logging("WARNING")
    output = args.output or args.lora.with_name(f"{args.lora.stem}_before_after.png")
    try:
        from examples.tiny_sd3.painter import Painter

        sheet = draw_before_after(Painter(args.model), args.lora, read_prompts(args.prompts))
        write_atomically(output, lambda place: sheet.save(place, format="PNG", optimize=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
