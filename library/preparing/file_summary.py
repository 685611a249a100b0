"""What a weights file is, in a few lines: from its metadata, and where that says nothing, from its tensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from library.data.problems import counted
from library.tensorfile import TensorHeader

NUM_TAGS = 10
_DOWN = (".lora_down.weight", ".lora_A.weight")  # matrices whose first side is the rank
_NOT_SAID = ("", "None", "Dynamic")


def summary_lines(header: TensorHeader) -> list[str]:
    """Lines "what: value", without those that the file says nothing about."""
    said = header.metadata
    rows = {
        "file": header.path.name,
        "weights": _weights(header),
        "model": _joined(_get(said, "modelspec.architecture"), _get(said, "ss_base_model_version")),
        "title": _joined(_get(said, "modelspec.title"), _by(_get(said, "modelspec.author"))),
        "network": _network(header),
        "base": _joined(_get(said, "ss_sd_model_name"), _named("hash", _get(said, "ss_new_sd_model_hash")[:10])),
        "trained": _joined(
            _named("steps", _get(said, "ss_steps")),
            _named("epoch", _get(said, "ss_epoch")),
            _named("pictures", _get(said, "ss_num_train_images")),
            _named("resolution", _get(said, "ss_resolution") or _get(said, "modelspec.resolution")),
        ),
        "with": _joined(_get(said, "ss_optimizer"), _named("learning rate", _get(said, "ss_learning_rate"))),
        "trigger phrase": _get(said, "modelspec.trigger_phrase"),
        "most frequent tags": ", ".join(f"{tag} ({count:g})" for tag, count in frequent_tags(said)),
        "comment": _get(said, "ss_training_comment"),
    }
    return [_printable(f"{what}: {value}") for what, value in rows.items() if value]


def frequent_tags(metadata: Mapping[str, str], number: int = NUM_TAGS) -> list[tuple[str, float]]:
    """The tags that most pictures have, with their number, of all folders together."""
    counts: Counter[str] = Counter()
    folders = _json(metadata, "ss_tag_frequency")
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] += count
    return [(tag, count) for tag, count in counts.most_common(number)]


def _weights(header: TensorHeader) -> str:
    kinds = sorted({info.dtype for info in header.tensors.values()})
    size = sum(info.end - info.start for info in header.tensors.values())
    return _joined(counted(len(header.tensors), "tensor"), f"{size / 1e6:,.1f} MB", ", ".join(kinds))


def _network(header: TensorHeader) -> str:
    said = header.metadata
    rank = _get(said, "ss_network_dim") or _rank_of_weights(header)
    args = _json(said, "ss_network_args")
    return _joined(
        _get(said, "ss_network_module"),
        _named("rank", rank),
        _named("alpha", _get(said, "ss_network_alpha")),
        *(f"{name} {value}" for name, value in args.items()) if isinstance(args, dict) else (),
    )


def _rank_of_weights(header: TensorHeader) -> str:
    ranks = {info.shape[0] for name, info in header.tensors.items() if name.endswith(_DOWN) and info.shape}
    if not ranks:
        return ""
    return f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"


def _get(metadata: Mapping[str, str], name: str) -> str:
    """A value in one line; empty where the file does not say it."""
    value = " ".join(metadata.get(name, "").split())
    return "" if value in _NOT_SAID else value


def _json(metadata: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(metadata.get(name, "null"))
    except (ValueError, RecursionError):
        return None


def _printable(line: str) -> str:
    """Without signs that a console obeys: a file may come from anybody."""
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def _named(what: str, value: str) -> str:
    return f"{what} {value}" if value else ""


def _by(author: str) -> str:
    return f"by {author}" if author else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
