"""A text entry of more encoders serves a run that wants some of them; anything else that differs does not."""

import pytest
import torch

from library.data.cache import CachedTexts, TensorCache, of_encoders, text_entries
from library.records import ImageRecord, Size

ALL = "clip_l=1a clip_g=2b t5xxl=3c apply_t5_attn_mask=False dtype=torch.float32"
T5 = "t5xxl=3c apply_t5_attn_mask=False dtype=torch.float32"
STATES = {"clip_l": torch.ones(2, 3), "clip_l_pooled": torch.ones(3), "t5xxl": torch.full((4, 2), 2.0)}


def make_texts(folder, identity, encoders=()):
    record = ImageRecord(folder / "a.png", "a", "cat", Size(8, 8), 1, 0, 0)
    entries, ids = text_entries([record], [("cat",)], family="sd3", identity=identity, to_disk=True)
    return CachedTexts(TensorCache(entries), ids, encoders)


def test_a_run_that_wants_one_encoder_takes_its_states_only(tmp_path):
    made = make_texts(tmp_path, ALL)
    made.cache.write(made.cache.ids[0], STATES)
    wanted = make_texts(tmp_path, T5, ("t5xxl",))
    assert wanted.cache.check() == {}
    assert set(wanted.read(0, "cat")) == {"t5xxl"}
    assert set(made.read(0, "cat")) == set(STATES)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (T5, ALL),  # fewer encoders than wanted
        (ALL, T5.replace("3c", "4d")),
        (ALL, T5.replace("False", "True")),
        (ALL, T5.replace("float32", "bfloat16")),
    ],
)
def test_other_weights_or_settings_do_not_serve(tmp_path, stored, wanted):
    made = make_texts(tmp_path, stored)
    made.cache.write(made.cache.ids[0], STATES)
    found = make_texts(tmp_path, wanted).cache.check()
    assert list(found.values()) == ["another text encoder, precision or setting"]


def test_states_belong_to_the_encoder_they_are_called_like():
    assert set(of_encoders(STATES, ["clip_l"])) == {"clip_l", "clip_l_pooled"}
    assert set(of_encoders(STATES, [])) == set(STATES)
    assert of_encoders(STATES, ["clip_g"]) == {}
