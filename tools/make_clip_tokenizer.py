"""Make CLIP's tokenizer from the vocabulary in the open_clip_torch package, for machines that reach no model hub.

Run as `python -m tools.make_clip_tokenizer`: the wheel is downloaded by pip (from the mirror that pip is set to)
without its dependencies, and the tokenizer goes where the training scripts look for it.

Only the standard library is used. The vocabulary's first line is a version, then one merge a line; CLIP uses 48,894 of
them. Tokens are numbered: 256 byte symbols, the same at the end of a word, one per merge, start, end.
Source: Radford et al. 2021, arXiv:2103.00020, and its published vocabulary.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.errors import CheckpointError, EnvironmentFault, UserError
from library.models.tokenizers import hub_folder_name, setup_tokenizer_dir
from library.tensorfile import write_atomically

PACKAGE = "open_clip_torch"
VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 48894
NUM_TOKENS = 49408
LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def make_clip_tokenizer(wheel_or_gz: Path, out_dir: Path) -> None:
    """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` of CLIP's tokenizer.

    Args:
        wheel_or_gz: A wheel of open_clip_torch, or the vocabulary file out of it.
        out_dir: Made if it does not exist.

    Raises:
        CheckpointError: The file is something else.
        OutputError: The folder cannot be written.
    """
    merges = _read_merges(wheel_or_gz)
    vocabulary = _vocabulary(merges)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    _write(out_dir / "tokenizer_config.json", json.dumps(config, indent=2))
    _write(out_dir / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    _write(out_dir / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))


def _read_merges(path: Path) -> list[str]:
    """The merges that CLIP uses, "left right" each."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                member = next((name for name in wheel.namelist() if name.endswith(VOCABULARY_FILE)), None)
                if member is None:
                    raise CheckpointError(f"{path} has no {VOCABULARY_FILE} inside. Give a wheel of {PACKAGE}.")
                packed = wheel.read(member)
        else:
            packed = path.read_bytes()
        lines = gzip.decompress(packed).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Give a wheel of {PACKAGE}, or {VOCABULARY_FILE}."
        ) from None
    merges = [line.strip() for line in lines[1 : 1 + NUM_MERGES]]
    if len(merges) != NUM_MERGES or any(len(merge.split(" ")) != 2 for merge in merges):
        raise CheckpointError(f"{path}: not the vocabulary of CLIP. Give a wheel of {PACKAGE}, or {VOCABULARY_FILE}.")
    return merges


def _vocabulary(merges: list[str]) -> dict[str, int]:
    symbols = _byte_symbols()
    ends = [f"{symbol}</w>" for symbol in symbols]
    words = [merge.replace(" ", "") for merge in merges]
    vocabulary = {token: index for index, token in enumerate([*symbols, *ends, *words, START, END])}
    if len(vocabulary) != NUM_TOKENS:
        raise CheckpointError(f"the vocabulary has {len(vocabulary)} tokens, CLIP has {NUM_TOKENS}. Download it again.")
    return vocabulary


def _byte_symbols() -> list[str]:
    """One printable character per byte, in CLIP's order: printable bytes as they are, the others from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _write(path: Path, text: str) -> None:
    def write(place: Path) -> None:
        place.write_bytes(text.encode("utf-8"))

    write_atomically(path, write)


def download_wheel(folder: Path) -> Path:
    """Let pip download the package's wheel into `folder`, under pip's own configuration.

    Raises:
        EnvironmentFault: pip could not.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentFault(
            f"pip could not download {PACKAGE} ({reason}). Get its wheel in another way and give it with --source."
        )
    return wheels[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_clip_tokenizer", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--source", type=Path, help=f"wheel of {PACKAGE} or {VOCABULARY_FILE}; default: pip gets it")
    parser.add_argument("--output", type=Path, help="folder to write; default: where the training scripts look")
    options = parser.parse_args(arguments)
    output = options.output or setup_tokenizer_dir() / hub_folder_name("clip_l")
    try:
        with tempfile.TemporaryDirectory() as folder:
            make_clip_tokenizer(options.source or download_wheel(Path(folder)), output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"CLIP's tokenizer is in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
