"""Options about the files that a run writes: models, states, their metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.device import PRECISIONS
from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class SavingOptions(OptionGroup):
    """What is saved, when, and where."""

    title: ClassVar[str] = "Saving"

    output_dir: Path | None = opt(None, "Folder for everything the run writes; made if it is missing.")
    output_name: str | None = opt(None, "File name without ending. Not set means epoch, at and last.")
    save_model_as: str | None = opt(
        "safetensors",
        "Format of the saved file; diffusers and diffusers_safetensors both mean safetensors with the names that "
        "diffusers and peft use.",
        choices=("ckpt", "pt", "safetensors", "diffusers", "diffusers_safetensors"),
    )
    save_precision: str | None = opt(
        None, "Number format of the saved file. Not set means that of training.", choices=PRECISIONS
    )
    save_every_n_epochs: int | None = opt(
        None, "Save after every n epochs too; 0 means never.", unit="epochs", minimum=1, zero_is_off=True
    )
    save_every_n_steps: int | None = opt(
        None, "Save after every n steps too; 0 means never.", unit="steps", minimum=1, zero_is_off=True
    )
    save_n_epoch_ratio: int | None = opt(
        None,
        "Save at least this many files in all; goes before --save_every_n_epochs. 0 means not set.",
        minimum=1,
        zero_is_off=True,
    )
    save_last_n_epochs: int | None = opt(
        None, "Keep the files of the last n saved epochs only; 0 means all.", unit="files", minimum=1, zero_is_off=True
    )
    save_last_n_epochs_state: int | None = opt(
        None,
        "The same for states. Not set, or 0, means --save_last_n_epochs.",
        unit="states",
        minimum=1,
        zero_is_off=True,
    )
    save_last_n_steps: int | None = opt(
        None, "Keep the files of the last n steps only; 0 means all.", unit="steps", minimum=1, zero_is_off=True
    )
    save_last_n_steps_state: int | None = opt(
        None,
        "The same for states. Not set, or 0, means --save_last_n_steps.",
        unit="steps",
        minimum=1,
        zero_is_off=True,
    )
    save_state: bool = opt(
        False, "Save a state with each file, and at the end: a folder from which --resume continues exactly."
    )
    save_state_on_train_end: bool = opt(False, "Save a state at the end.")
    resume: str | None = opt(
        None, "Continue from this state folder, or from the newest complete one in --output_dir with auto."
    )
    allow_changed: bool = opt(False, "Continue although options or data are not those that the state was made with.")
    overwrite: bool = opt(False, "Replace files of another run that have the same names.")

    def check(self) -> Iterator[str]:
        if self.output_name and set(self.output_name) & set('/\\:*?"<>|'):
            yield (
                f'--output_name is a file name without / \\ : * ? " < > |, got {self.output_name!r}. '
                "The folder goes to --output_dir."
            )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.save_n_epoch_ratio:
            yield "save_every_n_epochs", "--save_n_epoch_ratio goes before it"
        if not (self.save_every_n_epochs or self.save_n_epoch_ratio):
            for name in ("save_last_n_epochs", "save_last_n_epochs_state"):
                yield name, "no --save_every_n_epochs"
        if not self.save_every_n_steps:
            for name in ("save_last_n_steps", "save_last_n_steps_state"):
                yield name, "no --save_every_n_steps"


@dataclass(frozen=True, kw_only=True)
class ModelSavingOptions(SavingOptions):
    """The same for scripts that save whole models."""

    save_model_as: str | None = opt(
        None,
        "Format of the saved model: one file in the layout of the published ones (safetensors, ckpt), or a folder that "
        "diffusers loads (both diffusers words mean the same). Not set means that of the base model; SD3 is saved as "
        "safetensors then.",
        choices=("ckpt", "safetensors", "diffusers", "diffusers_safetensors"),
    )


@dataclass(frozen=True, kw_only=True)
class MetadataOptions(OptionGroup):
    """What the header of a saved file says."""

    title: ClassVar[str] = "Metadata of saved files"

    no_metadata: bool = opt(False, "Write no metadata at all, so that equal weights give equal files.")
    training_comment: str | None = opt(None, "Comment of your own.", free_text=True)
    metadata_title: str | None = opt(None, "Title. Not set means the output name.", free_text=True)
    metadata_author: str | None = opt(None, "Author.", free_text=True)
    metadata_description: str | None = opt(None, "Description.", free_text=True)
    metadata_license: str | None = opt(None, "License.", free_text=True)
    metadata_tags: str | None = opt(None, "Tags, separated by commas.", free_text=True)
    metadata_usage_hint: str | None = opt(None, "How to use the file.", free_text=True)
    metadata_thumbnail: str | None = opt(None, "Small picture: a file, or a data URL.")
    metadata_merged_from: str | None = opt(None, "What the model was merged from.", free_text=True)
    metadata_trigger_phrase: str | None = opt(None, "Words that call up what was trained.", free_text=True)
    metadata_preprocessor: str | None = opt(None, "Preprocessor of the inputs.", free_text=True)
    metadata_is_negative_embedding: str | None = opt(None, "Whether it is meant for negative prompts: true or false.")

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.no_metadata:
            for name in self.__dataclass_fields__:
                if name != "no_metadata":
                    yield name, "--no_metadata writes none"
