"""Files of learned words (textual inversion), as A1111, ComfyUI and diffusers read them.

A file has the vectors of one word. Of models with one text encoder they are one tensor, `emb_params` [n, D]; of models
with several, one tensor for each encoder, which has the encoder's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError
from library.pickled import read_any_header, read_any_tensors
from library.records import ONLY_VECTORS
from library.tensorfile import save_with_torch, write_atomically, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from library.tensorfile import TensorHeader

_MOST = 4  # text encoders
_OLD_TOKEN = 265  # the id of "*", for which the first programs of this kind kept the vectors


def read_embedding(path: Path, option: str) -> dict[str, Tensor]:
    """The vectors of a learned word.

    Read are safetensors files, those of A1111 (.pt, with `string_to_param`) and `learned_embeds` of diffusers, which
    has the vectors under the word itself.

    Args:
        path: The file.
        option: What it was given with, for messages.

    Returns:
        {encoder: [n, D]} where the file has several tensors, else {"emb_params": [n, D]}; float32, n alike for all.

    Raises:
        CheckpointError: It cannot be read, is something else, or has numbers that are not finite.
    """
    header = read_any_header(path, option)
    names = _names(header, option)
    read = read_any_tensors(header)
    vectors = {name: read[key].float().reshape(-1, read[key].shape[-1]) for key, name in names.items()}
    numbers = {name: len(rows) for name, rows in vectors.items()}
    if len(set(numbers.values())) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise CheckpointError(f"{option}: {path} has different numbers of vectors ({listed}). Use another file.")
    for name, rows in vectors.items():
        if not bool(rows.isfinite().all()):
            raise CheckpointError(f"{option}: {path} is damaged: {name} has numbers that are not finite.")
    return vectors


def _names(header: TensorHeader, option: str) -> dict[str, str]:
    """{name in the file: name of the vectors}, with shapes that vectors have."""
    floats = [name for name, info in header.tensors.items() if info.dtype in ("F64", "F32", "F16", "BF16")]
    shapes = [info.shape for info in header.tensors.values()]
    are_vectors = all(len(shape) in (1, 2) and min(shape) > 0 for shape in shapes)
    is_like_one = len(floats) == 1 or (1 < len(floats) <= _MOST and not any("." in name for name in floats))
    if len(floats) < len(header.tensors) or not are_vectors or not is_like_one:
        raise CheckpointError(
            f"{option}: {header.path} is no embedding of textual inversion, which has one tensor of vectors, or one "
            f"for each text encoder; it has {len(header.tensors)} tensors ({', '.join(sorted(header.tensors)[:3])})."
        )
    return {name: name for name in floats} if len(floats) > 1 else {floats[0]: ONLY_VECTORS}


def write_embedding(
    path: Path,
    vectors: Mapping[str, Tensor],
    *,
    word: str,
    step: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the vectors of a word, so that `path` is the old file or the complete new one.

    Args:
        path: Of .safetensors; any other ending is written by torch.save, in the form of A1111, without metadata.
        vectors: As `read_embedding` gives them, in any float format.
        word: What the vectors stand for.
        step: Of the training.
        metadata: For the header.

    Raises:
        OutputError: It cannot be written.
    """
    if path.suffix == ".safetensors":
        write_tensors(path, vectors, metadata)
        return
    content: dict[str, Any] = {name: rows.detach().cpu().clone() for name, rows in vectors.items()}
    if ONLY_VECTORS in content:
        content = {
            "string_to_token": {"*": _OLD_TOKEN},
            "string_to_param": {"*": content[ONLY_VECTORS]},
            "name": word,
            "step": step,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        }
    needed = sum(rows.numel() * rows.element_size() for rows in vectors.values())
    write_atomically(path, lambda place: save_with_torch(content, place), needed)
