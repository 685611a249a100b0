"""Copies of pictures are recognised, and pictures that only resemble each other are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from bad_corpus import turned
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from preview_scenes import SCENES, draw_scene

from library.data.files.hash_index import HashIndex
from library.data.files.index import file_state
from library.data.pixels.perceptual_hash import GRID, NUM_BYTES, NUM_SIGNS, PictureHash, hash_file, hash_image
from library.data.report.lookalikes import BLOCK, LEAST, MOST, SHARE, lookalikes
from library.errors import DatasetError
from library.records import Size

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"


@pytest.fixture(scope="module")
def landscape():
    light, thing, width, height = SCENES[0]
    return draw_scene(light, thing, width, height, 0)


def drawings(folder):
    return sorted(path for path in (EXAMPLES / folder).iterdir() if path.suffix in (".png", ".jpg"))


def saved_as_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def trimmed(image, share):
    left, top = round(image.width * share), round(image.height * share)
    return image.crop((left, top, image.width - left, image.height - top))


@pytest.mark.parametrize("folder", ["pictures", "zorp"])
def test_drawings_on_plain_grounds_are_told_apart(folder):
    assert lookalikes([hash_file(path) for path in drawings(folder)]) == []


@pytest.mark.parametrize("folder", ["pictures", "zorp"])
def test_a_drawing_saved_anew_and_resized_is_found(folder):
    images = [Image.open(path).convert("RGB") for path in drawings(folder)]
    copies = [saved_as_jpeg(image.resize((image.width * 3 // 4, image.height * 3 // 4)), 70) for image in images]
    groups = lookalikes([hash_image(image) for image in (*images, *copies)])
    assert groups == [[index, index + len(images)] for index in range(len(images))]


def test_a_photo_that_was_resized_saved_badly_and_trimmed_is_found(landscape):
    copy = trimmed(saved_as_jpeg(landscape.resize((700, 500)), 50), 0.02)
    assert lookalikes([hash_image(landscape), hash_image(copy)]) == [[0, 1]]


def test_a_photo_of_the_same_place_in_another_light_is_another(landscape):
    _, thing, width, height = SCENES[0]
    others = [draw_scene(light, thing, width, height, 0) for light in ("noon", "dusk", "fog", "night")]
    assert lookalikes([hash_image(image) for image in (landscape, *others)]) == []


def test_a_mirrored_photo_is_another(landscape):
    mirrored = landscape.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert lookalikes([hash_image(landscape), hash_image(mirrored)]) == []


def test_pictures_of_one_colour_are_alike_where_the_colour_is():
    colours = [(250, 250, 250), (20, 20, 200), (251, 250, 250), (200, 20, 20)]
    assert lookalikes([hash_image(Image.new("RGB", (64, 64), colour)) for colour in colours]) == [[0, 2]]


def test_a_turned_photo_is_seen_upright(tmp_path):
    upright, sideways = tmp_path / "a.jpg", tmp_path / "b.jpg"
    upright.write_bytes(turned(1))
    sideways.write_bytes(turned(6))
    assert lookalikes([hash_file(upright), hash_file(sideways, Size(96, 64))]) == [[0, 1]]


def test_a_picture_that_cannot_be_decoded_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"a\.png"):
        hash_file(tmp_path / "a.png")


def test_more_pictures_than_fit_into_a_block_are_compared_as_each_with_each():
    draw = np.random.default_rng(0)
    number = BLOCK + 150
    palette = draw.integers(0, 256, (40, 8, 8, 3))
    images = [palette[index] for index in draw.integers(0, 40, number)]
    noisy = [np.clip(image + draw.integers(-9, 10, image.shape), 0, 255).astype(np.uint8) for image in images]
    hashes = [hash_image(Image.fromarray(image).resize((64, 64))) for image in noisy]
    found = {frozenset(group) for group in lookalikes(hashes, 3)}

    signs = np.stack([each.signs for each in hashes])
    colours = np.stack([each.colours for each in hashes]).astype(float)
    contrast = (colours - colours.mean((1, 2), keepdims=True)).std((1, 2, 3))
    groups = [{index} for index in range(number)]
    for first in range(number):
        limit = np.clip(SHARE * np.minimum(contrast, contrast[first]), LEAST, MOST)
        distance = np.sqrt(((colours - colours[first]) ** 2).mean((1, 2, 3)))
        for second in np.flatnonzero(((signs * signs[first] < 0).sum(1) <= 3) & (distance <= limit)):
            if groups[first] is not groups[second]:
                groups[second] |= groups[first]
                for index in groups[first]:
                    groups[index] = groups[second]
    assert found == {frozenset(group) for group in groups if len(group) > 1}
    assert 10 < len(found) < 100


@given(st.binary(min_size=NUM_BYTES, max_size=NUM_BYTES))
def test_a_hash_survives_being_written_down(data):
    again = PictureHash.from_bytes(data)
    assert again.to_bytes() == data
    assert again.signs.shape == (NUM_SIGNS,) and again.colours.shape == (GRID, GRID, 3)


def test_hashes_are_remembered_while_the_file_is_the_same(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(path)
    own, state = hash_file(path), file_state(path)
    first = HashIndex(tmp_path / "memory")
    assert first.get(path, state) is None
    first.remember(path, state, own)
    first.save()
    again = HashIndex(tmp_path / "memory")
    assert again.get(path, state).to_bytes() == own.to_bytes()
    assert again.get(path, (state[0] + 1, *state[1:])) is None


def test_a_torn_memory_of_hashes_is_made_again(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(path)
    memory = HashIndex(tmp_path / "memory")
    memory.remember(path, file_state(path), hash_file(path))
    memory.save()
    (file,) = (tmp_path / "memory" / "hashes").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert HashIndex(tmp_path / "memory").get(path, file_state(path)) is None
