"""Bad and odd data as people have it: pictures, captions, metadata files, caches, options. All of it is made here.

    python tests/bad_corpus.py FOLDER

writes the whole corpus, one folder for each table below. Tests take single files out of it:

    from bad_corpus import write
    write(folder, "trunc.jpg", "zero.png")

A bad file cannot be used and must be named; an odd one is fine and must be read right.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Maker = Callable[[], bytes]

GREY_20000 = 78  # 20000 / 257, what a 16-bit value becomes in 8 bits
INK_GREY = 145  # sRGB of L* 60, which `ink_profile` gives every full ink
FIRST_FRAME = (200, 30, 40)
ORIENTATION = 0x0112
_UNDO = {  # how an upright picture has to be stored so that the orientation makes it upright again
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


# Pictures


def quarters(width: int = 64, height: int = 64) -> Image.Image:
    """Four quarters of different colours, so that no turn and no mirror image looks the same."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (220, 40, 40)
    pixels[: height // 2, width // 2 :] = (40, 200, 60)
    pixels[height // 2 :, : width // 2] = (40, 60, 210)
    pixels[height // 2 :, width // 2 :] = (230, 210, 60)
    return Image.fromarray(pixels)


def noise(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """A picture that does not compress: half of its file is half of its pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture. JPEGs keep all colours, so that they can be compared."""
    if kind == "JPEG" and image.mode == "RGB":
        options = {"quality": 95, "subsampling": 0, **options}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(colour: tuple[int, int, int], kind: str = "PNG", size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    """A good picture of one colour."""
    return encoded(Image.new("RGB", size, colour), kind, **options)


def cut(content: bytes) -> bytes:
    """The first two thirds of a file."""
    return content[: len(content) * 2 // 3]


def png(width: int, height: int, pixels: bytes, *, bits: int = 8, colours: int = 0) -> bytes:
    """A PNG written by hand, with these compressed rows, right or wrong. `colours` 0 is grey, 2 is RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """`quarters(96, 64)` as a camera stores it that was held another way."""
    upright = quarters(96, 64)
    stored = upright.transpose(_UNDO[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def deep_rgb() -> bytes:
    """RGB with 16 bits a channel, every value 20000."""
    row = b"\0" + struct.pack(">H", 20000) * 3 * 64
    return png(64, 64, zlib.compress(row * 64), bits=16, colours=2)


def ink_profile() -> bytes:
    """A CMYK profile in which cyan, magenta and yellow are all a grey of L* 60 and only black is black.

    A table of two nodes a channel in Lab (ICC.1:2001, type lut8). Conversion without it gives bright colours.
    """

    def lightness(node: int) -> int:
        return 0 if node & 1 else 255 if node == 0 else 153

    table = bytes(part for node in range(16) for part in (lightness(node), 128, 128))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + bytes(range(256)) * 4 + table + bytes(range(256)) * 3
    lut += bytes(-len(lut) % 4)
    light = struct.pack(">3i", 63190, 65536, 54061)
    white = b"XYZ " + bytes(4) + light
    offset = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII4sII", 2, b"A2B0", offset, len(lut), b"wtpt", offset + len(lut), len(white))
    body = tags + lut + white
    header = struct.pack(">I4xI", 128 + len(body), 0x02100000) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    return (header + light).ljust(128, b"\0") + body


def cyan_ink(**options: Any) -> bytes:
    """A CMYK JPEG, all cyan."""
    return encoded(Image.new("CMYK", (64, 64), (255, 0, 0, 0)), "JPEG", quality=95, **options)


def hidden_red() -> bytes:
    """Left half opaque blue; right half transparent, with red where nothing is seen."""
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    return encoded(image)


def transparent_palette() -> bytes:
    """A palette whose only colour is transparent."""
    image = Image.new("P", (64, 64), 0)
    image.putpalette([255, 0, 0])
    return encoded(image, transparency=0)


def moving(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    """Two frames; the first is FIRST_FRAME all over."""
    frames = [Image.new("RGB", size, colour) for colour in (FIRST_FRAME, (10, 20, 200))]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def lying_webp() -> bytes:
    """An extended WebP whose canvas is larger than its picture."""
    content = bytearray(encoded(noise(), "WEBP", lossless=True, exif=b"Exif\0\0MM\0*" + bytes(10)))
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = (127).to_bytes(3, "little") * 2
    return bytes(content)


BAD_PICTURES: Mapping[str, Maker] = {
    "trunc.jpg": lambda: cut(encoded(noise(), "JPEG")),
    "trunc.png": lambda: cut(encoded(noise())),
    "trunc.webp": lambda: cut(encoded(noise(), "WEBP", lossless=True)),
    "trunc.gif": lambda: cut(encoded(noise().quantize(), "GIF")),
    "trunc.bmp": lambda: cut(encoded(noise(), "BMP")),
    "trunc.tif": lambda: cut(encoded(noise(), "TIFF")),
    "broken_inside.png": lambda: png(64, 64, b"no deflate stream"),
    "zero.png": lambda: b"",
    "html.jpg": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "text.png": lambda: b"this is a note and not a picture, whatever its name says" * 4,
    "lfs.png": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    "lying.png": lambda: png(64, 128, zlib.compress((b"\0" + bytes(64)) * 64)),
    "lying.webp": lying_webp,
}

LARGE_PICTURES: Mapping[str, Maker] = {
    "20000x10000.png": lambda: encoded(Image.new("1", (20000, 10000), 1)),
    "20000x10000.jpg": lambda: encoded(Image.new("L", (20000, 10000), 90), "JPEG", quality=50),
}

ODD_SHAPES: Mapping[str, Maker] = {
    "16x16.png": lambda: encoded(quarters(16, 16)),
    "40x400.png": lambda: encoded(quarters(40, 400)),
    "4000x20.png": lambda: encoded(quarters(4000, 20)),
    "30000x40.png": lambda: encoded(quarters(30000, 40)),
}

ODD_PICTURES: Mapping[str, Maker] = {
    **{f"exif{orientation}.jpg": partial(turned, orientation) for orientation in range(1, 9)},
    "exif6.png": partial(turned, 6, "PNG"),
    "exif6.webp": partial(turned, 6, "WEBP"),
    "exif6.tif": partial(turned, 6, "TIFF"),
    "gray16.png": lambda: encoded(Image.fromarray(np.full((64, 64), 20000, np.uint16))),
    "gray16.tif": lambda: encoded(Image.fromarray(np.full((64, 64), 20000, np.uint16)), "TIFF"),
    "rgb16.png": deep_rgb,
    "float.tif": lambda: encoded(Image.fromarray(np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))), "TIFF"),
    "cmyk.jpg": lambda: cyan_ink(icc_profile=ink_profile()),
    "cmyk_plain.jpg": cyan_ink,
    "rgba_hidden.png": hidden_red,
    "la0.png": lambda: encoded(Image.new("LA", (64, 64), (90, 0))),
    "palette_alpha.png": transparent_palette,
    "palette.png": lambda: encoded(quarters().quantize(4)),
    "onebit.png": lambda: encoded(Image.fromarray(np.tile(np.arange(64) < 32, (64, 1)))),
    "wrongext.jpg": lambda: encoded(quarters()),
    "anim.webp": partial(moving, "WEBP", (640, 480)),
    "anim.gif": partial(moving, "GIF"),
    "anim.png": partial(moving, "PNG"),
    "plain.GIF": lambda: encoded(quarters().quantize(4), "GIF"),
    "plain.tiff": lambda: encoded(quarters(), "TIFF"),
    "plain.Jpg": lambda: encoded(quarters(), "JPEG"),
    "plain.BMP": lambda: encoded(quarters(), "BMP"),
    "plain.jPeG": lambda: encoded(quarters(), "JPEG"),
    "日本 語 é.png": lambda: encoded(quarters()),
    "br[1]{a|b} 100%.png": lambda: encoded(quarters()),
}

NOT_PICTURES: Mapping[str, Maker] = {
    "._plain.Jpg": lambda: b"\0\5\x16\7" + bytes(60),
    ".DS_Store": lambda: b"\0\0\0\1Bud1",
    "Thumbs.db": lambda: b"\xd0\xcf\x11\xe0" + bytes(60),
    "desktop.ini": lambda: b"[.ShellClassInfo]\r\n",
}

UNREADABLE_TYPES: Mapping[str, Maker] = {
    "photo.heic": lambda: b"\0\0\0\x18ftypheic" + bytes(60),
    "layers.psd": lambda: b"8BPS\0\1" + bytes(60),
    "raw.CR2": lambda: b"II*\0" + bytes(60),
}

# Captions

TEXT = "a café in the rain, by night"
LONG = ", ".join(f"word{number}" for number in range(600))

BAD_CAPTIONS: Mapping[str, bytes] = {
    "empty.txt": b"",
    "blank.txt": b" \n\t\n\r\n",
    "latin1.txt": TEXT.encode("latin-1"),
    "utf16_without_mark.txt": TEXT.encode("utf-16-le"),
}

ODD_CAPTIONS: Mapping[str, bytes] = {
    "blank_first.txt": f"\n  \n{TEXT}\n".encode(),
    "several_lines.txt": f"{TEXT}\nsecond line\nthird line\n".encode(),
    "utf16.txt": TEXT.encode("utf-16"),
    "utf16_be.txt": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "bom.txt": b"\xef\xbb\xbf" + TEXT.encode(),
    "crlf.txt": f"{TEXT}\r\n".encode(),
    "long.txt": LONG.encode(),
}

# Metadata files; 1.png and 2.png lie beside them

BAD_METADATA: Mapping[str, bytes] = {
    "comma.json": b'{\n  "1.png": {"caption": "one"},\n  "2.png": {"caption": "two"},\n}\n',
    "line.jsonl": b'{"image_path": "1.png", "caption": "one"}\n{"image_path": "2.png", "caption": "tw\n',
    "list.json": b'[{"image_path": "1.png", "caption": "one"}]',
    "types.json": b'{"1.png": {"caption": 3}, "2.png": "two"}',
    "gone.json": b'{"1.png": {"caption": "one"}, "gone.png": {"caption": "x"}, "away.png": {"caption": "y"}}',
    "empty.json": b"{}",
    "zero.json": b"",
    "latin1.json": '{"1.png": {"caption": "café"}}'.encode("latin-1"),
}

# Dataset files, files of --config_file and of --sample_prompts. PICTURES in them stands for a folder.

DATASET = """\
[general]
caption_extension = ".txt"
enable_bucket = true

[[datasets]]
resolution = 64
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'PICTURES'
"""


def changed_dataset(*changes: tuple[str, str]) -> bytes:
    """DATASET after replacing texts in it."""
    text = DATASET
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text.encode()


def with_subset_keys(*lines: str) -> bytes:
    """DATASET with further lines in its subset."""
    return changed_dataset(("image_dir", "\n".join((*lines, "image_dir"))))


BAD_DATASETS: Mapping[str, bytes] = {
    "typos.toml": changed_dataset(
        ("enable_bucket =", "enable_bukcet ="), ("batch_size", "batchsize"), ("image_dir", "imagedir")
    ),
    "table.toml": changed_dataset(("[[datasets]]", "[[dataset]]")),
    "text_for_number.toml": changed_dataset(("batch_size = 2", 'batch_size = "2"')),
    "types.toml": changed_dataset(
        ("enable_bucket = true", "enable_bucket = 1"), ("resolution = 64", "resolution = []")
    ),
    "key_twice.toml": with_subset_keys("num_repeats = 1", "num_repeats = 2"),
    "batch_0.toml": changed_dataset(("batch_size = 2", "batch_size = 0")),
    "batch_minus_1.toml": changed_dataset(("batch_size = 2", "batch_size = -1")),
    "repeats_0.toml": with_subset_keys("num_repeats = 0"),
    "subset_twice.toml": changed_dataset(
        ("  image_dir = 'PICTURES'", "  image_dir = 'PICTURES'\n\n  [[datasets.subsets]]\n  image_dir = 'PICTURES'")
    ),
    "above_bucket.toml": changed_dataset(("resolution = 64", "resolution = 256")),
    "backslash.toml": changed_dataset(("'PICTURES'", r'"C:\Users\me\pictures"')),
    "valid_escapes.toml": changed_dataset(("'PICTURES'", r'"C:\train\new"')),
    "backslash.json": b'{"datasets": [{"resolution": 64, "subsets": [\n{"image_dir": "C:\\Users\\me"}]}]}',
    "empty_dir.toml": changed_dataset(("PICTURES", "")),
    "bracket.toml": changed_dataset(("[general]", "[general")),
    "utf16.toml": DATASET.encode("utf-16"),
    "forms.toml": with_subset_keys("is_reg = true", "metadata_file = 'm.json'", "conditioning_data_dir = 'm'"),
    "shuffled.toml": with_subset_keys("shuffle_caption = true"),
    "dropped.toml": with_subset_keys("caption_dropout_rate = 0.1", "caption_tag_dropout_rate = 0.1"),
    "cropped.toml": with_subset_keys("random_crop = true"),
    "coloured.toml": with_subset_keys("color_aug = true"),
    "too_large.toml": changed_dataset(("resolution = 64", "resolution = 512"), ("reso = 128", "reso = 512")),
}

BAD_CONFIGS: Mapping[str, bytes] = {
    "config_typos.toml": b"learning_rat = 1e-3\n[more]\nmax_train_step = 10\n",
    "config_types.toml": (
        b'learning_rate = "abc"\nmax_train_steps = "10"\nmixed_precision = "bf61"\nnetwork_dim = true\n'
    ),
    "config_twice.toml": b"[a]\nseed = 1\n[b]\nseed = 2\n",
    "config_range.toml": b"train_batch_size = 0\ngradient_accumulation_steps = -1\n",
    "config_backslash.toml": b'seed = 1\nvae = "C:\\Users\\new"\n',
    "config_broken.toml": b"seed = 1\nvae = \n",
    "config_latin1.toml": 'output_name = "é"'.encode("latin-1"),
}

BAD_PROMPTS: Mapping[str, bytes] = {
    "prompts.md": b"a cat",
    "empty.prompts.txt": b"# a comment\n\n",
    "latin1.prompts.txt": "a café".encode("latin-1"),
    "broken.prompts.json": b'[\n{"prompt": "a cat",}]',
    "keys.prompts.json": b'[{"prompt": "a cat", "widht": 64}, {"width": "64"}, 3]',
    "large.prompts.txt": b"a cat --w 1024 --h 1024\n",
    "no_subset.prompts.toml": b'[prompt]\nwidth = 64\nprompt = "a cat"\n',
}

ODD_PROMPTS: Mapping[str, bytes] = {
    "flags.prompts.txt": b"a cat --s abc --w 64 --h 64\n  # a prompt --w 64 --h 64\na dog --zz 3 --w 64 --h 64\n",
}


# Caches


def npz(**arrays: np.ndarray) -> bytes:
    """An archive as sd-scripts writes them."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def latents_npz(shape: tuple[int, ...] = (16, 8, 8), value: float = 0.5, dtype: str = "float32") -> bytes:
    """Latents of a 64 x 64 picture."""
    sizes = {"original_size_8x8": np.array([64, 64]), "crop_ltrb_8x8": np.array([0.0, 0, 64, 64])}
    return npz(latents_8x8=np.full(shape, value, dtype), **sizes)


NPZ_CACHES: Mapping[str, Maker] = {
    "good_0064x0064_sd3.npz": latents_npz,
    "trunc_0064x0064_sd3.npz": lambda: cut(latents_npz()),
    "zero_0064x0064_sd3.npz": lambda: b"",
    "nan_0064x0064_sd3.npz": lambda: latents_npz(value=float("nan")),
    "shape_0064x0064_sd3.npz": lambda: latents_npz(shape=(4, 3, 3)),
    "overflowed_0064x0064_sd3.npz": lambda: latents_npz(value=float("inf"), dtype="float16"),
    "notes_sd3.npz": lambda: npz(notes=np.zeros(3)),
}


def cache_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _joined(header: Mapping[str, Any], numbers: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def _with_shape(content: bytes) -> bytes:
    """The first tensor gets half its rows, and its numbers to match."""
    header, numbers = cache_parts(content)
    name = next(name for name in header if name != "__metadata__")
    tensor = header[name]
    begin, end = tensor["data_offsets"]
    removed = (end - begin) // 2
    numbers = numbers[: end - removed] + numbers[end:]
    tensor["shape"] = [tensor["shape"][0] // 2, *tensor["shape"][1:]]
    for other in header.values():
        offsets = other.get("data_offsets")
        if offsets:
            other["data_offsets"] = [offset - removed if offset >= end else offset for offset in offsets]
    return _joined(header, numbers)


def _with_type(content: bytes) -> bytes:
    """All numbers called halves, twice as many of them."""
    header, numbers = cache_parts(content)
    for name, tensor in header.items():
        if name != "__metadata__":
            tensor["dtype"] = "F16"
            tensor["shape"] = [*tensor["shape"][:-1], tensor["shape"][-1] * 2]
    return _joined(header, numbers)


def _with_last_number(content: bytes, number: bytes) -> bytes:
    return content[: -len(number)] + number


CACHE_DAMAGE: Mapping[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-10],
    "header only": lambda content: content[:30],
    "zero": lambda content: b"",
    "nan": lambda content: _with_last_number(content, b"\xff\xff\xff\xff"),
    "one bit": lambda content: _with_last_number(content, bytes((content[-1] ^ 1,))),
    "wrong shape": _with_shape,
    "other dtype": _with_type,
    "foreign": lambda content: latents_npz(),
    "foreign safetensors": lambda content: _joined(
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
}

# Writing

PICTURES: Mapping[str, Maker] = {
    **BAD_PICTURES,
    **LARGE_PICTURES,
    **ODD_SHAPES,
    **ODD_PICTURES,
    **NOT_PICTURES,
    **UNREADABLE_TYPES,
}


TEXTS: Mapping[str, bytes] = {
    **BAD_CAPTIONS,
    **ODD_CAPTIONS,
    **BAD_METADATA,
    **BAD_DATASETS,
    **BAD_CONFIGS,
    **BAD_PROMPTS,
    **ODD_PROMPTS,
}


def write(folder: Path, *names: str) -> list[Path]:
    """Write files of the corpus, pictures or others, into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for path in paths:
        maker = PICTURES.get(path.name) or NPZ_CACHES.get(path.name)
        path.write_bytes(maker() if maker else TEXTS[path.name])
    return paths


def write_captioned(folder: Path, captions: Mapping[str, bytes]) -> list[Path]:
    """A good picture for each caption, and the captions beside them. Returns the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, (name, content) in enumerate(captions.items()):
        (folder / name).write_bytes(content)
        pictures.append((folder / name).with_suffix(".png"))
        pictures[-1].write_bytes(encoded(noise(seed=number)))
    return pictures


def write_folders(folder: Path) -> None:
    """Folders that are bad as a whole: nothing in them, no pictures, pictures one level down, two of one stem."""
    (folder / "empty").mkdir(parents=True)
    (folder / "only_texts").mkdir()
    (folder / "only_texts" / "a.txt").write_bytes(b"a")
    write(folder / "one_level_down" / "sub", "plain.tiff")
    same = folder / "same_stems"
    same.mkdir()
    (same / "a.jpg").write_bytes(plain((200, 40, 40), "JPEG"))
    (same / "a.png").write_bytes(plain((40, 40, 200)))
    (same / "a.txt").write_bytes(b"a caption of two")
    caption = write_captioned(folder / "caption_is_a_folder", {"a.txt": b""})[0].with_suffix(".txt")
    caption.unlink()
    caption.mkdir()


def write_corpus(folder: Path) -> None:
    """Write everything."""
    write(folder / "bad_pictures", *BAD_PICTURES)
    write(folder / "large_pictures", *LARGE_PICTURES)
    write(folder / "odd_shapes", *ODD_SHAPES)
    write(folder / "odd_pictures", *ODD_PICTURES, *NOT_PICTURES, *UNREADABLE_TYPES)
    write_captioned(folder / "bad_captions", BAD_CAPTIONS)
    write_captioned(folder / "odd_captions", ODD_CAPTIONS)
    write_captioned(folder / "metadata", {"1.txt": b"one", "2.txt": b"two"})
    write(folder / "metadata", *BAD_METADATA)
    write_captioned(folder / "npz_caches", {f"{name.partition('_')[0]}.txt": b"text" for name in NPZ_CACHES})
    write(folder / "npz_caches", *NPZ_CACHES)
    write_folders(folder / "folders")
    write(folder / "datasets", *BAD_DATASETS)
    write(folder / "configs", *BAD_CONFIGS)
    write(folder / "prompts", *BAD_PROMPTS, *ODD_PROMPTS)


def main() -> int:
    """Write the corpus where the command line says."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    write_corpus(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
