"""Options about networks beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class DrawingNetworkOptions(OptionGroup):
    """LoRA files and others."""

    title: ClassVar[str] = "Networks"

    network_weights: tuple[Path, ...] | None = opt(None, "Network files, in the usual layout or that of diffusers.")
    network_mul: tuple[float, ...] | None = opt(
        None, "Strength of each file; 0 is without. One number counts for all. Not set means 1."
    )
    network_module: tuple[str, ...] | None = opt(
        None, "Module of each file; one counts for all. Not set means networks.lora."
    )
    network_args: tuple[str, ...] | None = opt(
        None,
        "Arguments of each file, as key=value with ; between them: the first word for the first file and so on. lbw= "
        "gives the strength of single blocks.",
    )
    network_show_meta: bool = opt(False, "Tell what each file says of itself.")
    network_merge: bool = opt(False, "Add all networks to the weights: faster, and strengths are fixed.")
    network_merge_n_models: int | None = opt(None, "Add the first n networks to the weights.", minimum=0)
    network_pre_calc: bool = opt(
        False, "Add networks to the weights anew each time that strengths change: faster, and takes memory of the host."
    )

    @property
    def num_files(self) -> int:
        """Network files."""
        return len(self.network_weights or ())

    @property
    def num_merged(self) -> int:
        """Of the first files, how many are added to the weights for good."""
        return self.num_files if self.network_merge else min(self.network_merge_n_models or 0, self.num_files)

    def check(self) -> Iterator[str]:
        for name in ("network_mul", "network_module", "network_args"):
            given = getattr(self, name)
            if given and self.num_files and len(given) not in (1, self.num_files):
                yield (
                    f"--{name} has {len(given)} values for {self.num_files} file{'s'[: self.num_files > 1]} of "
                    "--network_weights. Give one for each, or one for all."
                )
        if self.num_files and (self.network_merge_n_models or 0) > self.num_files:
            yield (
                f"--network_merge_n_models {self.network_merge_n_models} is more than the {self.num_files} files of "
                "--network_weights. Give a number up to that."
            )
        if self.network_pre_calc and self.num_merged:
            yield "--network_pre_calc and --network_merge exclude each other. Keep one of them."
