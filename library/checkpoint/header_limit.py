"""Keeps the header of a saved file small, whatever was trained on: hundreds of thousands of tags, a huge comment.

Programs read the headers of all files of a folder, some of them whole and in JavaScript; safetensors itself refuses
100 MB. What is cut goes in a fixed order, the rarest first: tags, folders, buckets, datasets, the thumbnail, long
texts. Each of the lists keeps a share of the header, so that no other one can push it out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HEADER_LIMIT = 1 << 20  # bytes; then the data that sshs_legacy_hash looks at, from 1 MiB on, is not header
_SMALLEST = 1 << 16  # bytes of metadata where the list of tensors alone takes more
_SLACK = 4096  # bytes for what differs from save to save: once cut, the lists stay as they are
_THUMBNAIL = "modelspec.thumbnail"
_LISTS = ("ss_tag_frequency", "ss_datasets", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_bucket_info")
_SHORT = 512  # characters that a text keeps at least

Lists = dict[str, Any]
Container = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class FittedHeader:
    """A header that is small enough.

    Attributes:
        metadata: What is written; "ss_<name>_cut" keys say what is missing.
        cut: {key: what was kept}, as those keys say it; empty if all is there.
        complete: {key: value} of the shortened keys, before.
    """

    metadata: dict[str, str]
    cut: dict[str, str]
    complete: dict[str, str]


def fit_header(metadata: Mapping[str, str], limit: int = HEADER_LIMIT) -> FittedHeader:
    """Shorten metadata until it takes at most `limit` bytes of a header."""
    if written_bytes(metadata) <= limit:
        return FittedHeader(dict(metadata), {}, {})
    target = max(limit - _SLACK, limit // 2)
    fitted, cut = _cut_lists(metadata, target)
    for step in (_without_thumbnail, _with_short_texts, _without_largest):
        fitted, said = step(fitted, written_bytes(fitted) - target)
        cut |= said
    fitted |= {_cut_key(key): said for key, said in cut.items()}
    return FittedHeader(fitted, cut, {key: metadata[key] for key in cut})


def room_for_metadata(tensors: Mapping[str, Tensor], limit: int = HEADER_LIMIT) -> int:
    """Bytes that the list of tensors leaves; never less than a few pages."""
    offset = 10**12  # longer than any
    entries = {
        name: {"dtype": "F8_E4M3", "shape": list(tensor.shape), "data_offsets": [offset, offset]}
        for name, tensor in tensors.items()
    }
    return max(_SMALLEST, limit - len(json.dumps(entries)))


def written_bytes(metadata: Mapping[str, str]) -> int:
    """Bytes that metadata takes in a header."""
    return sum(_text_bytes(key) + _text_bytes(value) + 2 for key, value in metadata.items()) + len('"__metadata__":{},')


def _text_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace"))


def _cut_key(key: str) -> str:
    return f"ss_{key.removeprefix('ss_').removeprefix('modelspec.')}_cut"


# Lists: one rule for all of them, the entries with the most pictures stay


@dataclass(frozen=True)
class _Kind:
    """Entries of one kind, wherever they are.

    Attributes:
        noun: What they are, in the plural.
        share: Of the header that they may keep.
        find: (key of the metadata, name of the place, container) of each place that has some.
        weight: How much an entry counts.
    """

    noun: str
    share: float
    find: Callable[[Lists], Iterator[tuple[str, str, Container]]]
    weight: Callable[[Any], float]


def _cut_lists(metadata: Mapping[str, str], target: int) -> tuple[dict[str, str], dict[str, str]]:
    """The lists shortened, kind by kind, as far as is needed."""
    lists = {key: json.loads(metadata[key]) for key in _LISTS if key in metadata}
    fitted, said = dict(metadata), dict[str, list[str]]()
    for kind in _KINDS:
        excess = written_bytes(fitted) - target
        if excess <= 0:
            break
        for key, words in _cut_kind(kind, lists, excess, int(kind.share * target)).items():
            said.setdefault(key, []).append(words)
        fitted |= {key: json.dumps(lists[key]) for key in said}
    return fitted, {key: "; ".join(words) for key, words in said.items()}


def _cut_kind(kind: _Kind, lists: Lists, excess: int, floor: int) -> dict[str, str]:
    """Take the lightest entries of a kind out of `lists`; {key: what was kept}."""
    places: dict[str, list[tuple[str, Container]]] = {}
    for key, name, container in kind.find(lists):
        places.setdefault(key, []).append((name, container))
    sizes = {key: _size(found) for key, found in places.items()}
    budget = max(floor, sum(sizes.values()) - excess)
    said = {}
    for number, (key, found) in enumerate(places.items()):
        share = budget // (len(places) - number)
        budget -= min(share, sizes[key])
        num_all = sum(len(container) for _, container in found)
        if sizes[key] > share:
            said[key] = f"kept {_keep_heaviest(found, kind.weight, share)} of {num_all} {kind.noun}"
    return said


def _size(places: Sequence[tuple[str, Container]]) -> int:
    return _text_bytes(json.dumps(places))


def _keep_heaviest(places: Sequence[tuple[str, Container]], weight: Callable[[Any], float], budget: int) -> int:
    """Leave in each container the entries that weigh most and fit into `budget` bytes; returns how many."""
    ranked = sorted(
        (-weight(value), place, key)
        for place, (_, container) in enumerate(places)
        for key, value in _entries(container)
    )
    kept: dict[int, set[Any]] = {}
    for _, place, key in ranked:
        name, container = places[place]
        value = container[key]
        budget -= _text_bytes(json.dumps({key: value} if isinstance(container, dict) else value))
        budget -= 0 if place in kept else _text_bytes(json.dumps({name: {}}))
        if budget < 0:
            break
        kept.setdefault(place, set()).add(key)
    for place, (_, container) in enumerate(places):
        _reduce(container, kept.get(place, set()))
    return sum(len(keys) for keys in kept.values())


def _entries(container: Container) -> Iterator[tuple[Any, Any]]:
    return iter(container.items()) if isinstance(container, dict) else enumerate(container)


def _reduce(container: Container, keys: set[Any]) -> None:
    if isinstance(container, list):
        container[:] = [value for index, value in enumerate(container) if index in keys]
        return
    for key in [key for key in container if key not in keys]:
        del container[key]


def _tags(lists: Lists) -> Iterator[tuple[str, str, Container]]:
    for folder, tags in lists.get("ss_tag_frequency", {}).items():
        yield "ss_tag_frequency", folder, tags
    for dataset in lists.get("ss_datasets", ()):
        for folder, tags in dataset["tag_frequency"].items():
            yield "ss_datasets", folder, tags


def _tag_folders(lists: Lists) -> Iterator[tuple[str, str, Container]]:
    if "ss_tag_frequency" in lists:
        yield "ss_tag_frequency", "", lists["ss_tag_frequency"]
    for dataset in lists.get("ss_datasets", ()):
        yield "ss_datasets", "", dataset["tag_frequency"]


def _folders(lists: Lists) -> Iterator[tuple[str, str, Container]]:
    for key in ("ss_dataset_dirs", "ss_reg_dataset_dirs"):
        if key in lists:
            yield key, "", lists[key]
    for dataset in lists.get("ss_datasets", ()):
        yield "ss_datasets", "", dataset["subsets"]


def _buckets(lists: Lists) -> Iterator[tuple[str, str, Container]]:
    if lists.get("ss_bucket_info"):
        yield "ss_bucket_info", "", lists["ss_bucket_info"]["buckets"]
    for dataset in lists.get("ss_datasets", ()):
        if dataset["bucket_info"]:
            yield "ss_datasets", "", dataset["bucket_info"]["buckets"]


def _datasets(lists: Lists) -> Iterator[tuple[str, str, Container]]:
    if "ss_datasets" in lists:
        yield "ss_datasets", "", lists["ss_datasets"]


_KINDS = (
    _Kind("tags", 0.3, _tags, float),
    _Kind("folders with tags", 0.3, _tag_folders, lambda tags: sum(tags.values())),
    _Kind("folders", 0.2, _folders, lambda folder: folder["img_count"] * folder.get("n_repeats", 1)),
    _Kind("buckets", 0.1, _buckets, lambda bucket: bucket["count"]),
    _Kind("datasets", 0.2, _datasets, lambda dataset: dataset["num_train_images"]),
)


# Everything else


def _without_thumbnail(metadata: dict[str, str], excess: int) -> tuple[dict[str, str], dict[str, str]]:
    if excess <= 0 or _THUMBNAIL not in metadata:
        return metadata, {}
    rest = {key: value for key, value in metadata.items() if key != _THUMBNAIL}
    return rest, {_THUMBNAIL: "left out"}


def _with_short_texts(metadata: dict[str, str], excess: int) -> tuple[dict[str, str], dict[str, str]]:
    """The longest texts shortened first."""
    fitted, said = dict(metadata), {}
    for key in sorted(metadata, key=lambda key: len(metadata[key]), reverse=True):
        text = metadata[key]
        if excess <= 0 or len(text) <= _SHORT:
            break
        if key in _LISTS or key == "ss_network_args":
            continue
        fitted[key] = _shortened(text, _text_bytes(text) - excess)
        excess -= _text_bytes(text) - _text_bytes(fitted[key])
        said[key] = f"kept {len(fitted[key])} of {len(text)} characters"
    return fitted, said


def _shortened(text: str, num_bytes: int) -> str:
    """The beginning that takes about so many bytes, or that every text keeps."""
    length = max(_SHORT, int(len(text) * num_bytes / _text_bytes(text)))
    while length > _SHORT and _text_bytes(text[:length]) > num_bytes:
        length = max(_SHORT, length * 9 // 10)
    return text[:length]


def _without_largest(metadata: dict[str, str], excess: int) -> tuple[dict[str, str], dict[str, str]]:
    """What is left to do where the shares were too large: the largest values go."""
    fitted, said = dict(metadata), {}
    for key in sorted(metadata, key=lambda key: len(metadata[key]), reverse=True):
        if excess <= 0:
            break
        excess -= _text_bytes(key) + _text_bytes(fitted.pop(key)) + 2
        said[key] = "left out"
    return fitted, said
