"""Whether validation losses of several trainings can be compared: which of their options change the loss itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from library.options.spec import group_classes, group_options

# groups of options that say how a training gets somewhere, and not how far from there it is
_OF_THE_WAY = (
    *("network", "optimizer", "ema", "training", "memory", "compute", "cache"),
    *("logging", "config", "saving", "metadata", "sampling", "distributed", "hub"),
)
# of the others: folders of data (what is kept for validation is compared by itself), and what only acts while training
_ONLY_TRAINING = re.compile(
    r"dataset_config|train_data_dir|reg_data_dir|in_json|train_batch_size|dataset_repeats|dry_run|debug_dataset"
    r"|shuffle_caption|keep_tokens\w*|token_warmup\w*|\w*dropout\w*|flip_aug|color_aug|random_crop|face_crop_aug_range"
    r"|prior_loss_weight|\w*_device|allow_pickle|tokenizer_cache_dir|disable_mmap\w*|save_\w+|on_bad_file|cache_info"
)


def options_of_the_loss(options: Any) -> dict[str, Any]:
    """{option: value} of all that the validation loss of an untrained network depends on, or may."""
    values = options.values()
    names = [
        name
        for group, kind in group_classes(type(options)).items()
        if group not in _OF_THE_WAY
        for name in group_options(kind)
    ]
    return {name: values[name] for name in names if not _ONLY_TRAINING.fullmatch(name)}


def differing(all_options: Sequence[Any]) -> tuple[str, ...]:
    """Names of the options of the loss in which some differ."""
    each: list[Mapping[str, Any]] = [options_of_the_loss(options) for options in all_options]
    return tuple(name for name in each[0] if len({repr(own.get(name)) for own in each}) > 1)
