"""Options about the files that a run writes: models, states, their metadata, copies on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_RETENTION = "removing older files"
_STATES = "saving and continuing runs"
_HUB = "uploading to the hub"


@dataclass(frozen=True, kw_only=True)
class SavingOptions(OptionGroup):
    """What is saved, when, and where."""

    title: ClassVar[str] = "Saving"

    output_dir: Path | None = opt(None, "Folder for everything the run writes; made if it is missing.")
    output_name: str | None = opt(None, "File name without ending. Not set means epoch, at and last.")
    save_model_as: str = opt(
        "safetensors",
        "Format of the saved file; diffusers is safetensors with the names that diffusers and peft use.",
        choices=("ckpt", "pt", "safetensors", "diffusers"),
    )
    save_precision: str | None = opt(
        None, "Number format of the saved file. Not set means that of training.", choices=("float", "fp16", "bf16")
    )
    save_every_n_epochs: int | None = opt(
        None, "Save after every n epochs too; 0 means never.", unit="epochs", minimum=1, zero_is_off=True
    )
    save_every_n_steps: int | None = opt(
        None, "Save after every n steps too; 0 means never.", unit="steps", minimum=1, zero_is_off=True
    )
    save_n_epoch_ratio: int | None = opt(
        None, "Save about this many times in all.", later="--save_every_n_epochs does it", zero_is_off=True
    )
    save_last_n_epochs: int | None = opt(
        None, "Keep the files of the last n epochs.", later=_RETENTION, zero_is_off=True
    )
    save_last_n_epochs_state: int | None = opt(
        None, "Keep the states of the last n epochs.", later=_RETENTION, zero_is_off=True
    )
    save_last_n_steps: int | None = opt(None, "Keep the files of the last n steps.", later=_RETENTION, zero_is_off=True)
    save_last_n_steps_state: int | None = opt(
        None, "Keep the states of the last n steps.", later=_RETENTION, zero_is_off=True
    )
    save_state: bool = opt(False, "Save what is needed to continue, too.", later=_STATES)
    save_state_on_train_end: bool = opt(False, "Save what is needed to continue, at the end.", later=_STATES)
    resume: str | None = opt(None, "Continue from this saved state.", later=_STATES)

    def check(self) -> Iterator[str]:
        if self.output_name and set(self.output_name) & set('/\\:*?"<>|'):
            yield (
                f'--output_name is a file name without / \\ : * ? " < > |, got {self.output_name!r}. '
                "The folder goes to --output_dir."
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


@dataclass(frozen=True, kw_only=True)
class HubOptions(OptionGroup):
    """Copies of saved files on the Hugging Face hub."""

    title: ClassVar[str] = "Upload"

    huggingface_repo_id: str | None = opt(None, "Repository as owner/name.", later=_HUB)
    huggingface_repo_type: str | None = opt(None, "Type of the repository.", later=_HUB)
    huggingface_path_in_repo: str | None = opt(None, "Folder in the repository.", later=_HUB)
    huggingface_token: str | None = opt(None, "Access token.", later=_HUB, secret=True)
    huggingface_repo_visibility: str | None = opt(None, "public or private.", later=_HUB)
    save_state_to_huggingface: bool = opt(False, "Upload states too.", later=_HUB)
    resume_from_huggingface: bool = opt(False, "Read the state to continue from the hub.", later=_HUB)
    async_upload: bool = opt(False, "Upload while training goes on.", later=_HUB)
