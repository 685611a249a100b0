"""Bytes on disk of one cached picture and one cached caption at the widths of SD3: `python -m benchmarks.cache_bytes`.

Writes one entry of each kind with random numbers in bfloat16, as fp16 and bf16 runs store them, and looks at the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from library.data.cache import FORMAT, CacheEntry, TensorCache
from library.records import Size

NUM_TOKENS = 40  # of a caption in the masked row, begin and end included
T5_LENGTH = 256


def latents(*, is_flipped: bool = False, has_mask: bool = False) -> dict[str, Tensor]:
    """What is kept of a picture of 1024 x 1024 pixels."""
    names = ("latents", "latents_flipped") if is_flipped else ("latents",)
    made = {name: torch.randn(16, 128, 128).bfloat16() for name in names}
    return {**made, "mask": torch.rand(1, 128, 128).half()} if has_mask else made


def texts(num_tokens: int | None = None) -> dict[str, Tensor]:
    """States of a caption; with `num_tokens` the rows behind it are zero, as the masks leave them."""
    made = {
        "clip_l": torch.randn(77, 768).bfloat16(),
        "clip_g": torch.randn(77, 1280).bfloat16(),
        "t5xxl": torch.randn(T5_LENGTH, 4096).bfloat16(),
    }
    if num_tokens is not None:
        for states in made.values():
            states[num_tokens:] = 0
    return {**made, "clip_l_pooled": torch.randn(768).bfloat16(), "clip_g_pooled": torch.randn(1280).bfloat16()}


def file_bytes(folder: Path, tensors: dict[str, Tensor], size: Size | None) -> int:
    """Size of the cache file with these tensors, and a header as long as real ones."""
    identity = "x" * (80 if size else 320)
    header = {"format": FORMAT, "kind": "latents" if size else "text", "family": "sd3", "encoder": identity}
    header |= {"source": "1234567:1763700000000000000", "resized": "1365x1024", "crop": "170,0", "bucket": "1024x1024"}
    names = tuple(tensors) if size else ()
    entry = CacheEntry("one", folder / "one.safetensors", header, about="one", content="one", names=names, size=size)
    cache = TensorCache([entry])
    cache.write("one", tensors)
    assert all(torch.equal(found, tensors[name]) for name, found in cache.read("one").items())
    return (folder / "one.safetensors").stat().st_size


def main(argv: Sequence[str] = ()) -> int:
    """Print a table of the sizes. There are no options."""
    size = Size(1024, 1024)
    rows = {
        "picture of 1024 x 1024": (latents(), size),
        "... with its mirror image": (latents(is_flipped=True), size),
        "... with a mask": (latents(has_mask=True), size),
        "caption, no attention masks": (texts(), None),
        f"caption of {NUM_TOKENS} tokens, both attention masks": (texts(NUM_TOKENS), None),
    }
    print("| | bytes | MB |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for title, (tensors, picture) in rows.items():
            num_bytes = file_bytes(Path(folder), tensors, picture)
            print(f"| {title} | {num_bytes:,} | {num_bytes / 1e6:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
