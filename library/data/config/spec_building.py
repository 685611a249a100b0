"""From values by key to `DatasetSpec`s: what has to go together, whoever gave the values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from library.data.config.key_values import default_value, read_option
from library.data.config.keys import KEYS
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.plan.bucket_limits import limits_warning
from library.data.plan.captions import CaptionRules

Values = dict[str, Any]

_DATASET_KEYS = tuple(f.name for f in fields(DatasetSpec) if f.name != "subsets")
_RULE_KEYS = tuple(f.name for f in fields(CaptionRules))
_TAG_RULES = ("shuffle_caption", "caption_tag_dropout_rate", "token_warmup_step")
_BUCKET_KEYS = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")
_NEEDED = {  # by key: one of these has to be on, or it changes nothing
    **dict.fromkeys(_BUCKET_KEYS, ("enable_bucket",)),
    **dict.fromkeys(("keep_tokens", "keep_tokens_separator"), _TAG_RULES),
    "token_warmup_min": ("token_warmup_step",),
}
PATH_KEYS = ("image_dir", "metadata_file", "conditioning_data_dir")


@dataclass(frozen=True)
class Table:
    """The values of a dataset or a subset, every key resolved.

    Attributes:
        place: What to call it in messages.
        values: By key.
        own: Keys that it gives itself, rather than a table above it or the command line.
    """

    place: str
    values: Values
    own: frozenset[str] = field(default=frozenset())


def base_values(options: Mapping[str, object]) -> tuple[Values, list[str]]:
    """Values from the command line, else the built-in defaults; and what is wrong with the former.

    Args:
        options: By key of the dataset file; None counts as not given.
    """
    unknown = sorted(set(options) - set(KEYS))
    if unknown:
        raise ValueError(f"not keys of a dataset file: {', '.join(unknown)}")
    values: Values = {name: default_value(name) for name in KEYS}
    problems = []
    for name, value in options.items():
        if value is None:
            continue
        try:
            values[name] = read_option(name, value)
        except ValueError as error:
            values[name] = value  # given and wrong is not missing
            problems.append(str(error))
    return values, problems


class SpecBuilder:
    """Makes the specs of one source.

    Args:
        bucket_multiple: Sides of training pictures must be multiples of this many pixels.
        masked_loss: Whether the loss may come from masks of a second folder.
        is_conditioned: The second folder holds conditioning pictures, which every subset must have.

    Attributes:
        problems: Found so far.
        warnings: Likewise.
    """

    def __init__(self, *, bucket_multiple: int, masked_loss: bool, is_conditioned: bool = False) -> None:
        self.bucket_multiple = bucket_multiple
        self.masked_loss = masked_loss
        self.is_conditioned = is_conditioned
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def build(self, datasets: Sequence[tuple[Table, Sequence[Table]]]) -> tuple[DatasetSpec, ...]:
        """All datasets, each given with its subsets."""
        specs = tuple(self._build_dataset(dataset, subsets) for dataset, subsets in datasets)
        if self.masked_loss and not any(subset.has_masks for spec in specs for subset in spec.subsets):
            self.warnings.append("--masked_loss has no effect: no subset has conditioning_data_dir or alpha_mask")
        self.warnings += _idle_keys(datasets)
        return specs

    def _build_dataset(self, dataset: Table, subsets: Sequence[Table]) -> DatasetSpec:
        values, place, num_problems = dataset.values, dataset.place, len(self.problems)
        if values["enable_bucket"]:
            values = self._fit_buckets(values, place)
        elif any(side % self.bucket_multiple for side in values["resolution"]):
            self.problems.append(
                f"{place}: resolution {values['resolution']} must be a multiple of {self.bucket_multiple} on both sides"
            )
        specs = tuple(self._build_subset(subset) for subset in subsets)
        self._check_sources_differ(specs, place)
        spec = DatasetSpec(subsets=specs, **{name: values[name] for name in _DATASET_KEYS})
        warning = limits_warning(spec) if len(self.problems) == num_problems else None
        if warning is not None:
            self.warnings.append(f"{place}: {warning}")
        return spec

    def _fit_buckets(self, values: Values, place: str) -> Values:
        """Round the limits outward to the step, and check that the resolution lies between them."""
        step, resolution = values["bucket_reso_steps"], values["resolution"]
        if step % self.bucket_multiple:
            self.problems.append(f"{place}: bucket_reso_steps must be a multiple of {self.bucket_multiple}, got {step}")
            return values
        if min(resolution) < step:
            self.problems.append(f"{place}: resolution {resolution} has a side below bucket_reso_steps {step}")
            return values
        if any(side % step for side in resolution):
            self.warnings.append(
                f"{place}: resolution {resolution} is not a multiple of bucket_reso_steps {step}; it only sets the area"
            )
        if values["bucket_no_upscale"]:
            return values
        low, high = values["min_bucket_reso"], values["max_bucket_reso"]
        new_low, new_high = max(step, low // step * step), -(-high // step) * step
        if (low, high) != (new_low, new_high):
            self.warnings.append(
                f"{place}: bucket sides go from {new_low} to {new_high}, multiples of bucket_reso_steps {step}"
            )
        if new_low > min(resolution):
            self.problems.append(
                f"{place}: min_bucket_reso {low} is above the short side of resolution {resolution}; "
                "lower it, or raise resolution"
            )
        if new_high < max(resolution):
            self.problems.append(
                f"{place}: max_bucket_reso {high} is below the long side of resolution {resolution}; "
                "raise it, or lower resolution"
            )
        return values | {"min_bucket_reso": new_low, "max_bucket_reso": new_high}

    def _build_subset(self, table: Table) -> SubsetSpec:
        values = table.values
        rules = CaptionRules(**{name: values[name] for name in _RULE_KEYS})
        own: Values = {f.name: values[f.name] for f in fields(SubsetSpec) if f.name in values}
        own |= {name: expand_home(own[name]) for name in PATH_KEYS if own[name] is not None}
        if not own["caption_extension"].startswith("."):
            own["caption_extension"] = f".{own['caption_extension']}"
        spec = SubsetSpec(captions=rules, is_conditioned=self.is_conditioned, **own)
        self._check_conditioning(spec, table)
        self._check_captions(spec, table)
        self._check_crops(spec, table)
        return self._settle(spec, table)

    def _check_captions(self, spec: SubsetSpec, table: Table) -> None:
        if spec.empty_caption == "class_tokens" and spec.class_tokens is None:
            self.problems.append(f'{table.place}: empty_caption = "class_tokens" needs class_tokens')

    def _check_conditioning(self, spec: SubsetSpec, table: Table) -> None:
        if spec.is_conditioned and spec.conditioning_data_dir is None:
            self.problems.append(
                f"{table.place}: no conditioning_data_dir; it names the folder with a conditioning picture of the same "
                "name for every picture"
            )

    def _check_crops(self, spec: SubsetSpec, table: Table) -> None:
        if spec.face_crop_aug_range is not None and table.values["enable_bucket"]:
            self.problems.append(
                f"{table.place}: face_crop_aug_range cannot be used with enable_bucket: a crop around a face has the "
                "resolution's shape, not the picture's; remove one of them"
            )

    def _settle(self, spec: SubsetSpec, table: Table) -> SubsetSpec:
        """What does not apply is turned off, with a warning where the subset itself asks for it."""
        if spec.alpha_mask and spec.conditioning_data_dir is not None and not spec.is_conditioned:
            self.warnings.append(f"{table.place}: --alpha_mask has no effect beside conditioning_data_dir")
            spec = replace(spec, alpha_mask=False)
        if spec.is_reg and spec.validation_split:
            if "validation_split" in table.own:
                self.warnings.append(
                    f"{table.place}: validation_split has no effect: regularisation pictures are never kept for it"
                )
            spec = replace(spec, validation_split=0.0)
        unused = sorted({"recursive", "caption_extension", "caption_encoding"} & table.own)
        if spec.metadata_file is not None and unused:
            self.warnings.append(f"{table.place}: {', '.join(unused)} has no effect beside metadata_file")
        return spec

    def _check_sources_differ(self, subsets: Sequence[SubsetSpec], place: str) -> None:
        """Equal folders, or equal metadata files of one folder. Pictures that two others share are seen by the scan."""
        seen: dict[tuple[str, ...], int] = {}
        for number, subset in enumerate(subsets, start=1):
            name = "image_dir" if subset.metadata_file is None else "metadata_file"
            key = (name, *(_same_form(path) for path in (subset.image_dir, subset.metadata_file)))
            first = seen.setdefault(key, number)
            if first != number:
                self.problems.append(
                    f"{place}: subsets {first} and {number} both have {name} {getattr(subset, name)}; remove one, "
                    "or raise num_repeats"
                )


def _idle_keys(datasets: Sequence[tuple[Table, Sequence[Table]]]) -> list[str]:
    """A line for each key that changes nothing, because what it belongs to is off.

    A key that acts on some tables and reaches others from above is fine; one that a table gives itself is not.
    """
    lines = []
    for name, needed in _NEEDED.items():
        is_subset_key = "subset" in KEYS[name].levels
        tables = [table for dataset, subsets in datasets for table in (subsets if is_subset_key else [dataset])]
        given = [table for table in tables if table.values[name] != default_value(name)]
        idle = [table for table in given if not any(table.values[other] for other in needed)]
        line = f"{name} has no effect without {', '.join(needed[:-1])}{' or ' if needed[1:] else ''}{needed[-1]}"
        if name == "keep_tokens_separator":
            line += "; it stays in the captions"
        if idle and idle == given:
            lines.append(line)
        else:
            lines += [f"{table.place}: {line}" for table in idle if name in table.own]
    return lines


def expand_home(folder: str | Path) -> Path:
    """The path with "~" filled in."""
    try:
        return Path(folder).expanduser()
    except RuntimeError:  # "~name" of nobody on this machine: the scan says that the folder is missing
        return Path(folder)


def _same_form(path: Path | None) -> str:
    return "" if path is None else os.path.normcase(os.path.abspath(path))
