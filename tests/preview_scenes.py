"""Draw the small data set that the preview page of the guide shows: landscapes of many shapes, with masks and faults.

    python tests/preview_scenes.py FOLDER

writes pictures, captions, masks and data.toml, whose paths start in FOLDER. It draws the same ones every time.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

# name: sky above, sky at the horizon, far hills, near hills, sun or moon
LIGHTS: dict[str, tuple[Colour, Colour, Colour, Colour, Colour]] = {
    "dawn": ((94, 126, 170), (250, 205, 170), (142, 130, 160), (62, 74, 96), (255, 240, 205)),
    "noon": ((72, 150, 214), (206, 232, 240), (122, 168, 150), (52, 112, 84), (255, 252, 232)),
    "dusk": ((58, 44, 92), (240, 138, 96), (132, 72, 102), (48, 32, 62), (255, 196, 120)),
    "night": ((14, 20, 44), (60, 84, 128), (34, 48, 82), (14, 20, 38), (238, 240, 226)),
    "fog": ((168, 178, 184), (226, 228, 224), (186, 194, 194), (126, 140, 140), (250, 248, 240)),
}
SCENES = (  # light, thing, width, height
    ("dawn", "lighthouse", 1216, 832),
    ("noon", "cabin", 1024, 1024),
    ("dusk", "lighthouse", 832, 1216),
    ("night", "cabin", 1600, 1200),
    ("fog", "pines", 1024, 1024),
    ("dusk", "sailboat", 1536, 640),
    ("noon", "sailboat", 1216, 832),
    ("dawn", "pines", 900, 1200),
    ("night", "lighthouse", 1024, 1024),
    ("fog", "cabin", 420, 300),
    ("dusk", "pines", 2200, 700),
    ("noon", "lighthouse", 832, 1216),
)
DATASET = """\
[general]
caption_extension = ".txt"
enable_bucket = true
shuffle_caption = true
keep_tokens = 1

[[datasets]]
resolution = 1024
batch_size = 2
validation_split = 0.1
min_bucket_reso = 640
max_bucket_reso = 1536
bucket_reso_steps = 64

  [[datasets.subsets]]
  image_dir = "masked"
  conditioning_data_dir = "masks"
  num_repeats = 2

  [[datasets.subsets]]
  image_dir = "coast"
  num_repeats = 4

  [[datasets.subsets]]
  image_dir = "landscapes"
  class_tokens = "landscape"
  is_reg = true
"""
LONG = ", ".join(f"{adjective} {noun}" for adjective in ("soft", "low", "warm", "distant", "quiet", "pale", "broad")
                 for noun in ("hills", "light", "water", "clouds", "shadows", "colours"))  # fmt: skip


def draw_scene(light: str, thing: str, width: int, height: int, seed: int) -> Image.Image:
    """A landscape in RGB."""
    top, horizon, far, near, disc = LIGHTS[light]
    draw = random.Random(seed)
    rows = np.linspace(0, 1, height)[:, None, None] ** 1.3
    sky = (np.array(top) * (1 - rows) + np.array(horizon) * rows) * np.ones((1, width, 1))
    image = Image.fromarray(np.uint8(sky))
    pen = ImageDraw.Draw(image)
    unit = min(width, height)
    x, y, radius = draw.uniform(0.15, 0.85) * width, draw.uniform(0.16, 0.34) * height, 0.06 * unit
    glow = Image.new("L", image.size, 0)
    ImageDraw.Draw(glow).ellipse((x - 3 * radius, y - 3 * radius, x + 3 * radius, y + 3 * radius), fill=90)
    glow = glow.filter(ImageFilter.BoxBlur(radius * 1.6))
    image.paste(Image.new("RGB", image.size, disc), mask=glow)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=disc)
    for layer in range(4):
        share = layer / 3
        colour = tuple(round(a * (1 - share) + b * share) for a, b in zip(far, near, strict=True))
        base, swing = height * (0.56 + 0.13 * layer), unit * (0.10 - 0.012 * layer)
        waves = [(draw.uniform(0.6, 2.4) / unit * math.tau, draw.uniform(0, math.tau)) for _ in range(3)]
        line = [(px, base + swing * sum(math.sin(px * f + p) for f, p in waves) / 3) for px in range(0, width + 9, 8)]
        if layer == 2:
            spot = line[len(line) * draw.randint(30, 70) // 100]
            _draw_thing(pen, thing, spot, unit=unit, light=light)
        pen.polygon([*line, (width, height), (0, height)], fill=colour)
    return image


def _draw_thing(pen: ImageDraw.ImageDraw, thing: str, place: tuple[float, float], *, unit: int, light: str) -> None:
    x, y = place[0], place[1] + 0.02 * unit
    pale, dark = (238, 232, 220), (40, 34, 44)
    lamp = (255, 226, 138) if light in ("night", "dusk", "fog") else (196, 220, 232)
    if thing == "lighthouse":
        w, h = 0.045 * unit, 0.34 * unit
        pen.polygon([(x - w, y), (x + w, y), (x + 0.62 * w, y - h), (x - 0.62 * w, y - h)], fill=pale)
        pen.polygon([(x - 0.86 * w, y - 0.34 * h), (x + 0.86 * w, y - 0.34 * h), (x + 0.76 * w, y - 0.6 * h),
                     (x - 0.76 * w, y - 0.6 * h)], fill=(196, 60, 52))  # fmt: skip
        pen.rectangle((x - 0.5 * w, y - h - 0.9 * w, x + 0.5 * w, y - h), fill=lamp)
        pen.polygon([(x - 0.8 * w, y - h - 0.9 * w), (x + 0.8 * w, y - h - 0.9 * w), (x, y - h - 2 * w)], fill=dark)
    elif thing == "cabin":
        w, h = 0.13 * unit, 0.11 * unit
        pen.rectangle((x - w, y - h, x + w, y + 0.05 * unit), fill=(122, 82, 60))
        pen.polygon([(x - 1.25 * w, y - h), (x + 1.25 * w, y - h), (x, y - 2.3 * h)], fill=dark)
        pen.rectangle((x - 0.2 * w, y - 0.7 * h, x + 0.35 * w, y - 0.2 * h), fill=lamp)
    elif thing == "sailboat":
        w = 0.12 * unit
        pen.polygon([(x - 0.05 * w, y - 2.2 * w), (x - 0.05 * w, y - 0.3 * w), (x - w, y - 0.3 * w)], fill=pale)
        pen.polygon([(x + 0.05 * w, y - 1.9 * w), (x + 0.05 * w, y - 0.3 * w), (x + 0.8 * w, y - 0.3 * w)], fill=pale)
        pen.polygon([(x - 1.1 * w, y - 0.2 * w), (x + w, y - 0.2 * w), (x + 0.7 * w, y + 0.2 * w)], fill=(150, 52, 44))
    else:
        for step in (-2, -1, 0, 1, 2):
            px, h = x + 0.09 * unit * step, unit * (0.26 - 0.035 * abs(step))
            pen.polygon([(px - 0.05 * unit, y), (px + 0.05 * unit, y), (px, y - h)], fill=(28, 66, 60))


def write_scenes(folder: Path) -> Path:
    """Draw everything below a folder; returns the dataset file."""
    for name in ("coast", "masked", "masks", "landscapes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (light, thing, width, height) in enumerate(SCENES):
        picture = folder / "coast" / f"{light}_{thing}.jpg"
        draw_scene(light, thing, width, height, number).save(picture, quality=88)
        tags = f"sks coast, {thing}, {light}, rolling hills"
        picture.with_suffix(".txt").write_text(tags + "\n", encoding="utf-8")
    for number, light in enumerate(("dawn", "noon", "dusk")):
        picture = folder / "masked" / f"{light}_masked.jpg"
        draw_scene(light, "cabin", 1024, 896, 40 + number).save(picture, quality=88)
        tags = f"sks coast, cabin, {light}" + (f", {LONG}" if number == 0 else "")
        picture.with_suffix(".txt").write_text(tags + "\n", encoding="utf-8")
        mask = Image.new("L", (1024, 896), 0)
        ImageDraw.Draw(mask).ellipse((200, 250, 824, 860), fill=255)
        mask.filter(ImageFilter.BoxBlur(50)).save(folder / "masks" / f"{light}_masked.png")
    for number, light in enumerate(("noon", "fog", "night")):
        draw_scene(light, "pines", 1152, 896, 60 + number).save(folder / "landscapes" / f"{light}.jpg", quality=88)
    (folder / "coast" / "download.jpg").write_text("<html><body>404 not found</body></html>", encoding="utf-8")
    whole = (folder / "coast" / "dawn_pines.jpg").read_bytes()
    (folder / "coast" / "half_copied.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "coast" / "half_copied.txt").write_text("sks coast, pines\n", encoding="utf-8")
    (folder / "coast" / "download.txt").write_text("sks coast\n", encoding="utf-8")
    dataset = folder / "data.toml"
    dataset.write_text(DATASET, encoding="utf-8")
    return dataset


if __name__ == "__main__":
    write_scenes(Path(sys.argv[1]))
