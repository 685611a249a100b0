"""What is counted of a LoRA of the zorp."""

from __future__ import annotations

from pathlib import Path

from examples.tiny_sd3 import draw, zorp
from examples.tiny_sd3.lora_quality import NEW_BACKGROUNDS, TITLES, measure, other_prompts, prompts_with_zorp
from examples.tiny_sd3.world import Scene


class Perfect:
    """Draws what captions say; without the LoRA it does not know what a zorp is."""

    def __init__(self) -> None:
        scenes = [what for group in (*prompts_with_zorp(10), other_prompts(10)) for what in group.wanted]
        self.scenes: dict[str, Scene] = {what.caption: what for what in scenes}
        self.has_lora = False

    def add_lora(self, file: Path, strength: float) -> None:
        self.has_lora = True

    def paint(self, captions, seeds):
        assert self.has_lora or not any(zorp.NAME in caption for caption in captions)
        scenes = [self.scenes[caption] for caption in captions]
        return [zorp.draw_zorp(what) if zorp.NAME in what.caption else draw.draw(what) for what in scenes]


def test_drawn_pictures_are_right_in_everything():
    found = measure(Perfect(), Path("some.safetensors"), 10)
    assert list(found) == list(TITLES)
    assert {key: 0.0 if key == "other_zorp" else 1.0 for key in TITLES} == found


def test_a_model_that_draws_zorps_everywhere_keeps_nothing():
    class Mad(Perfect):
        def paint(self, captions, seeds):
            if not self.has_lora:
                return super().paint(captions, seeds)
            return [zorp.draw_zorp(zorp.scene(0, index)) for index in range(len(captions))]

    found = measure(Mad(), Path("some.safetensors"), 10)
    assert found["zorp"] == found["other_zorp"] == 1 and found["other_after"] == found["other_kept"] == 0
    assert found["zorp_as_asked"] < 1


def test_new_backgrounds_are_on_no_training_picture():
    seen = {zorp.scene(0, index).background for index in range(100)}
    assert seen == set(zorp.BACKGROUNDS) and not seen & set(NEW_BACKGROUNDS)


def test_other_prompts_are_of_all_kinds_and_have_no_zorp():
    captions = [what.caption for what in other_prompts(100).wanted]
    assert len(captions) == 100 and not any(zorp.NAME in caption for caption in captions)
    assert any("above" in caption for caption in captions) and any("striped" in caption for caption in captions)
