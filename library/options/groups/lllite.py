"""Options about the modules that learn from a conditioning picture, and about the data of such a training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.groups.data import DatasetOptions
from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class LlliteOptions(OptionGroup):
    """ControlNet-LLLite. To the trainer it is a network of a module of its own, and its constants are below."""

    title: ClassVar[str] = "ControlNet-LLLite"

    cond_emb_dim: int | None = opt(
        None, "Channels of the conditioning picture's embedding, an even number. Not set means 32.", minimum=2
    )
    network_dim: int | None = opt(None, "Width of the modules. Not set means 64.", minimum=1)
    network_dropout: float | None = opt(
        None,
        "Chance of dropping a value inside a module while training, below 1.",
        unit="0-1",
        minimum=0,
        maximum=1,
    )
    network_weights: Path | None = opt(None, "ControlNet-LLLite file to begin with.")

    network_module: ClassVar[str] = "networks.control_net_lllite"
    network_alpha: ClassVar[float] = 1.0
    network_train_unet_only: ClassVar[bool] = True
    network_train_text_encoder_only: ClassVar[bool] = False
    dim_from_weights: ClassVar[bool] = False
    unet_lr: ClassVar[float | None] = None
    text_encoder_lr: ClassVar[tuple[float, ...] | None] = None
    scale_weight_norms: ClassVar[float | None] = None
    base_weights: ClassVar[tuple[Path, ...] | None] = None
    base_weights_multiplier: ClassVar[tuple[float, ...] | None] = None
    verify_export: ClassVar[bool] = False

    @property
    def network_args(self) -> tuple[str, ...]:
        """What the module takes beside rank and dropout."""
        return () if self.cond_emb_dim is None else (f"cond_emb_dim={self.cond_emb_dim}",)

    def check(self) -> Iterator[str]:
        if self.cond_emb_dim is not None and self.cond_emb_dim % 2:
            yield f"--cond_emb_dim must be an even number, got {self.cond_emb_dim}."
        if self.network_dropout == 1:
            yield "--network_dropout must be below 1: with 1 nothing of a picture would reach the layers."


@dataclass(frozen=True, kw_only=True)
class ConditionedDatasetOptions(DatasetOptions):
    """Training pictures, each with a conditioning picture."""

    takes_conditioning: ClassVar[bool] = True

    conditioning_data_dir: Path | None = opt(
        None,
        "Folder of conditioning pictures, named as the pictures of --train_data_dir or --in_json; in a dataset file "
        "each subset names its own.",
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        yield from super().without_effect()
        if self.dataset_config is not None:
            yield "conditioning_data_dir", "the --dataset_config file names the conditioning pictures"
