"""The tokenizers of a model folder: the words that the run used, with settings that other programs read them by.

The folder that a run takes its words from may be of another program, or shared by both CLIPs, which pad differently.
So the files of words are copied, and the settings are written anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.models.vocabulary import CLIP_END, CLIP_START, T5_END, T5_PAD
from library.tensorfile import write_atomically

if TYPE_CHECKING:
    from library.models.tokenizers import TextTokenizer

T5_LENGTH = 512  # what the published settings say; pipelines ask for fewer
_SETTINGS = "tokenizer_config.json"
_T5_UNKNOWN = "<unk>"


def write_tokenizer(folder: Path, tokenizer: TextTokenizer) -> None:
    """Make the folder of one encoder's tokenizer.

    Args:
        folder: Is made.
        tokenizer: As the run uses it.

    Raises:
        OutputError: It cannot be written.
    """
    folder.mkdir()
    source = tokenizer.vocabulary.source
    if tokenizer.name == "t5xxl":
        for name in ("tokenizer.json", "spiece.model"):
            if (source / name).is_file():
                _copy(source / name, folder / name)
        _write_json(folder / _SETTINGS, _t5_settings(source, tokenizer))
        return
    if (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
        for name in ("vocab.json", "merges.txt"):
            _copy(source / name, folder / name)
    else:
        _write_clip_words(folder, source / "tokenizer.json", tokenizer)
    _write_json(folder / _SETTINGS, _clip_settings(tokenizer))


def _clip_settings(tokenizer: TextTokenizer) -> dict[str, Any]:
    ids = {index: token for token, index in tokenizer.vocabulary.ids.items()}
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.length,
        "bos_token": CLIP_START,
        "eos_token": CLIP_END,
        "unk_token": CLIP_END,
        "pad_token": ids[tokenizer.pad],
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }


def _t5_settings(source: Path, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Without the extra tokens of T5's training unless the words have them: they would come after the last word."""
    num_extra = sum(token.startswith("<extra_id_") for token in tokenizer.vocabulary.ids)
    return {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": T5_LENGTH,
        "eos_token": T5_END,
        "pad_token": T5_PAD,
        "unk_token": _T5_UNKNOWN,
        "extra_ids": num_extra,
    }


def _write_clip_words(folder: Path, file: Path, tokenizer: TextTokenizer) -> None:
    """vocab.json and merges.txt, which every version of transformers reads, out of tokenizer.json."""
    merges = json.loads(file.read_text(encoding="utf-8"))["model"]["merges"]
    lines = ["#version: 0.2", *(merge if isinstance(merge, str) else " ".join(merge) for merge in merges)]
    text = "\n".join(lines) + "\n"
    _write_json(folder / "vocab.json", dict(tokenizer.vocabulary.ids))
    write_atomically(folder / "merges.txt", lambda place: _write_text(place, text))


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda place: _copy_content(source, place))


def _copy_content(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=None if len(content) > 100 else 2)
    write_atomically(path, lambda place: _write_text(place, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
