"""Train variations of a LoRA (rank, learning rate, blocks, seed, data) and rank them. Guide: docs/sweep.md.

python tools/sweep.py my_sweep.toml --output_dir=sweep
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.errors import OptionError
from library.families.sd.options import SD_NETWORK_SCRIPT, SdNetworkOptions
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.families.sdxl.options import SDXL_NETWORK_SCRIPT, SdxlNetworkOptions
from library.options.entry import run_script
from library.options.spec import Finished, ScriptText, parse_options
from tools.sweep_options import SWEEP_SCRIPT, SweepOptions

if TYPE_CHECKING:
    from library.training.network_trainer import NetworkTrainer

ROOT = Path(__file__).resolve().parent.parent
TRAININGS: dict[str, tuple[str, type[Any], ScriptText]] = {
    "sd3_train_network.py": ("Sd3NetworkTrainer", Sd3NetworkOptions, NETWORK_SCRIPT),
    "sdxl_train_network.py": ("SdxlNetworkTrainer", SdxlNetworkOptions, SDXL_NETWORK_SCRIPT),
    "train_network.py": ("SdNetworkTrainer", SdNetworkOptions, SD_NETWORK_SCRIPT),
}
"""{script: (class of its trainer, of its options, its text)}"""


def make_trainer(script: str, arguments: Sequence[str]) -> NetworkTrainer:
    """The training that a script would do with these arguments.

    Raises:
        OptionError: Something is wrong with them.
    """
    name, options_class, text = TRAININGS[script]
    trainer_class = getattr(importlib.import_module(script.removesuffix(".py")), name)
    try:
        options = parse_options(options_class, arguments, **text)
    except Finished as finished:
        raise OptionError(str(finished)) from None
    trainer: NetworkTrainer = trainer_class(options)
    return trainer


def command(script: str, launcher: str | None, options_file: Path) -> list[str]:
    """What starts a training in a process of its own."""
    begin = [sys.executable] if launcher is None else shlex.split(launcher)
    return [*begin, str(ROOT / script), f"--config_file={options_file}"]


def run(options: SweepOptions) -> int:
    """Train the variations; returns the exit code."""
    from library.training.sweeping.sweep_file import read_sweep
    from library.training.sweeping.sweep_run import SweepRun

    chosen = options.sweep
    assert chosen.sweep_file is not None and chosen.output_dir is not None
    sweep = read_sweep(chosen.sweep_file, tuple(TRAININGS))
    started = SweepRun(
        sweep,
        chosen.output_dir,
        partial(make_trainer, sweep.script),
        partial(command, sweep.script, chosen.launcher),
        "no" if chosen.launcher is not None else chosen.together,
    )
    if chosen.dry_run:
        started.show()
        return 0
    return started.run()


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(SweepOptions, run, argv=argv, **SWEEP_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
