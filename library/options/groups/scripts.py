"""What the options of training scripts have in common: the groups of all, of those for networks, of those for models.

A family adds its own groups and checks by a subclass, and its scripts inherit from that and from one of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import (
    CacheOptions,
    CommonOptions,
    ComputeOptions,
    DatasetOptions,
    DistributedOptions,
    EmaOptions,
    EmbeddingSavingOptions,
    EncoderChoice,
    FullOptimizerOptions,
    FullOptions,
    HubOptions,
    InversionOptions,
    LoggingOptions,
    LossOptions,
    MemoryOptions,
    MetadataOptions,
    ModelOptions,
    ModelSavingOptions,
    NetworkOptions,
    OptimizerOptions,
    PrecisionOptions,
    SamplingOptions,
    SavingOptions,
    TrainingOptions,
    ValidationOptions,
    dataset_defaults,
    dataset_names,
)
from library.options.groups.inversion import is_file_name

NO_CAPTIONS = {"missing_caption": "allow", "empty_caption": "allow"}
"""Keys of a dataset file for data that may have no captions."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of weights files that are pickles."""


@dataclass(frozen=True, kw_only=True)
class TrainingScriptOptions(CommonOptions):
    """What every script has that trains.

    Attributes:
        project: Name of the project in trackers, unless --log_tracker_name gives one.
        freezes_model: The model itself stays as it is.
    """

    logging: LoggingOptions = field(default_factory=LoggingOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DatasetOptions = field(default_factory=DatasetOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    saving: SavingOptions = field(default_factory=SavingOptions)
    metadata: MetadataOptions = field(default_factory=MetadataOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    hub: HubOptions = field(default_factory=HubOptions)

    leading: ClassVar[tuple[str, ...]] = ("model",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = (
        "pretrained_model_name_or_path",
        "output_dir",
        ("dataset_config", "train_data_dir", "in_json"),
    )
    of_programs: ClassVar[Mapping[str, str]] = {
        "epoch": "--max_train_steps or --max_train_epochs says how long",
        "noise_offset_type": "the noise is what --noise_offset and --multires_noise_iterations say",
    }
    typed_by_programs: ClassVar[frozenset[str]] = frozenset({"noise_offset_type"})  # a typed --epoch may be meant
    project: ClassVar[str] = "network_train"
    freezes_model: ClassVar[bool] = False

    def check(self) -> Iterator[str]:
        if self.memory.swaps and self.training.cpu_offload_checkpointing:
            yield (
                "--blocks_to_swap and --cpu_offload_checkpointing exclude each other: both need the way between host "
                "and GPU at the same time. Keep --blocks_to_swap, with --gradient_checkpointing."
            )

    def dataset_defaults(self) -> dict[str, object]:
        """What applies where the dataset file says nothing, by key of that file."""
        return dataset_defaults(self)

    def given_defaults(self) -> dict[str, str]:
        """Those of them that the user gave: {key of that file: flag}."""
        names = self.given - set(self.unused)
        return {key: f"--{name}" for key, name in dataset_names(self.data).items() if name in names}

    @property
    def layout(self) -> str:
        """How what is trained is saved: "safetensors", "ckpt", "pt" or "diffusers"."""
        chosen = self.saving.save_model_as or self._layout_of_base()
        return "diffusers" if chosen == "diffusers_safetensors" else chosen

    def _layout_of_base(self) -> str:
        """The layout where none is chosen."""
        return "safetensors"


@dataclass(frozen=True, kw_only=True)
class NetworkScriptOptions(TrainingScriptOptions):
    """What every script has that trains adapters beside a model."""

    network: NetworkOptions = field(default_factory=NetworkOptions)

    freezes_model: ClassVar[bool] = True
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = (
        "pretrained_model_name_or_path",
        "output_dir",
        "network_module",
        ("dataset_config", "train_data_dir", "in_json"),
    )

    def check(self) -> Iterator[str]:
        yield from super().check()
        network = self.network
        if self.optimizer.learning_rate == 0 and not (network.unet_lr or any(network.text_encoder_lr or ())):
            yield "--learning_rate 0 leaves nothing to train. Give it, --unet_lr or --text_encoder_lr a rate above 0."


@dataclass(frozen=True, kw_only=True)
class FullScriptOptions(TrainingScriptOptions):
    """What every script has that trains a whole model."""

    full: FullOptions = field(default_factory=FullOptions)
    optimizer: FullOptimizerOptions = field(default_factory=FullOptimizerOptions)
    saving: ModelSavingOptions = field(default_factory=ModelSavingOptions)

    project: ClassVar[str] = "finetuning"

    @property
    def encoders(self) -> tuple[EncoderChoice, ...]:
        """What is said of each text encoder."""
        raise NotImplementedError

    def _layout_of_base(self) -> str:
        path = Path(self.model.pretrained_model_name_or_path or "")
        if path.suffix.lower() in PICKLES and not path.is_dir():
            return "safetensors" if self.full.use_safetensors else "ckpt"
        return "safetensors" if path.suffix.lower() == ".safetensors" and not path.is_dir() else "diffusers"

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.memory.weights_format is not None:
            flag = self.memory.weights_format_flag
            yield f"{flag} is for a frozen denoiser beside a network; here it trains. Leave it out."


@dataclass(frozen=True, kw_only=True)
class InversionScriptOptions(TrainingScriptOptions):
    """What every script has that learns vectors for a word, beside a model that stays as it is."""

    inversion: InversionOptions = field(default_factory=InversionOptions)
    saving: EmbeddingSavingOptions = field(default_factory=EmbeddingSavingOptions)

    freezes_model: ClassVar[bool] = True
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = (
        "pretrained_model_name_or_path",
        "output_dir",
        "token_string",
        ("dataset_config", "train_data_dir", "in_json"),
    )
    project: ClassVar[str] = "textual_inversion"

    def check(self) -> Iterator[str]:
        yield from super().check()
        word = self.inversion.token_string
        if word is not None and not self.saving.output_name and not is_file_name(word):
            yield f"--token_string {word} is no name for a file. Give a name with --output_name."
        if self.cache.caches_text:
            yield (
                "--cache_text_encoder_outputs cannot be used here: what text encoders say of a caption changes with "
                "the vectors that are learned. Leave it out."
            )
        if self.optimizer.learning_rate == 0:
            yield "--learning_rate 0 leaves nothing to train. Give a rate above 0."
        if self.optimizer.blockwise_fused_optimizers:
            yield (
                "--blockwise_fused_optimizers steps the weights of a block together, and the vectors are in none. "
                "Use --fused_backward_pass, or leave it out."
            )

    def dataset_defaults(self) -> dict[str, object]:
        """What applies where the dataset file says nothing. With a template no captions are needed."""
        values = super().dataset_defaults()
        return values | (NO_CAPTIONS if self.inversion.has_template else {})
