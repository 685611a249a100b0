"""The groups of options that scripts share."""

from __future__ import annotations

from dataclasses import dataclass, field

from library.options.groups.cache import CacheOptions
from library.options.groups.compute import ComputeOptions, OlderComputeOptions
from library.options.groups.data import DatasetOptions, dataset_defaults, dataset_names
from library.options.groups.ema import EmaOptions
from library.options.groups.full import ClipPairOptions, EncoderChoice, FullOptions
from library.options.groups.hub import HubOptions
from library.options.groups.inversion import EmbeddingSavingOptions, InversionOptions
from library.options.groups.logging import ConsoleOptions, LoggingOptions
from library.options.groups.loss import LossOptions
from library.options.groups.memory import MemoryOptions
from library.options.groups.model import ModelOptions
from library.options.groups.network import NetworkOptions
from library.options.groups.optimizer import FullOptimizerOptions, OptimizerOptions
from library.options.groups.precision import PrecisionOptions
from library.options.groups.sampling import SamplingOptions
from library.options.groups.saving import MetadataOptions, ModelSavingOptions, SavingOptions
from library.options.groups.training import DistributedOptions, TrainingOptions, ValidationOptions
from library.options.spec import ScriptOptions

__all__ = [
    "CacheOptions",
    "ClipPairOptions",
    "CommonOptions",
    "ComputeOptions",
    "ConsoleOptions",
    "DatasetOptions",
    "DistributedOptions",
    "EmaOptions",
    "EmbeddingSavingOptions",
    "EncoderChoice",
    "FullOptimizerOptions",
    "FullOptions",
    "HubOptions",
    "InversionOptions",
    "LoggingOptions",
    "LossOptions",
    "MemoryOptions",
    "MetadataOptions",
    "ModelOptions",
    "ModelSavingOptions",
    "NetworkOptions",
    "OlderComputeOptions",
    "OptimizerOptions",
    "PrecisionOptions",
    "SamplingOptions",
    "SavingOptions",
    "TrainingOptions",
    "ValidationOptions",
    "dataset_defaults",
    "dataset_names",
]


@dataclass(frozen=True, kw_only=True)
class CommonOptions(ScriptOptions):
    """What every script has: options from a file, and the log."""

    logging: ConsoleOptions = field(default_factory=ConsoleOptions)
