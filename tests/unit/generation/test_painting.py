"""How predictions are put together, names of files, strips of pictures, and what texts weigh."""

from dataclasses import replace

import pytest
import torch

from library.diffusion.samplers import Start
from library.errors import OptionError, OutputError
from library.families.base import Conditioning
from library.generation.conditioning import normalized, stacked
from library.generation.decoding import to_images, to_pictures
from library.generation.jobs import Seeds
from library.generation.naming import FileNames, safe_name
from library.generation.painting import Canvas, Guidance, begun_at
from library.generation.record import GenerationRecord, NetworkUse, PictureSizes, record_from_json, record_to_json


def told(value, rows=2):
    return Conditioning(torch.full((rows, 3, 4), float(value)), torch.zeros(rows, 0))


def picture(value):
    return torch.full((2, 1, 1, 1), float(value))


def scales(*values):
    return torch.tensor(values)[:, None, None, None]


def test_each_picture_has_its_own_scale():
    guidance = Guidance(told(1), told(0), None, scales(1.0, 3.0), None)
    assert guidance.combine([picture(5), picture(2)]).flatten().tolist() == [5.0, 11.0]


def test_a_negative_scale_counts_from_the_empty_prompt():
    guidance = Guidance(told(1), told(0), told(0), scales(2.0, 2.0), scales(0.0, 0.5))
    assert guidance.combine([picture(5), picture(4), picture(1)]).flatten().tolist() == [9.0, 7.5]


def test_without_a_negative_the_prediction_is_taken_as_it_is():
    guidance = Guidance(told(1), None, None, scales(7.0, 7.0), None)
    assert guidance.combine([picture(5)]).flatten().tolist() == [5.0, 5.0]
    assert len(guidance.parts) == 1


def test_rows_are_stacked_in_their_order():
    assert stacked([told(1), told(2, 1)]).context[:, 0, 0].tolist() == [1, 1, 2]


@pytest.mark.parametrize(("mode", "mean"), [("original", lambda x: x.mean()), ("abs", lambda x: x.abs().mean())])
def test_weighted_texts_keep_their_mean_and_pooled_vectors_stay(mode, mean):
    plain = {"clip": torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(1)) + 0.5, "p": torch.ones(1, 5)}
    weighted = {"clip": plain["clip"] * torch.linspace(0.5, 2, 7)[None, :, None], "p": torch.ones(1, 5)}
    found = normalized(weighted, plain, mode)
    assert mean(found["clip"]) == pytest.approx(mean(plain["clip"]).item(), rel=1e-4)
    assert found["p"] is weighted["p"]


def test_pictures_and_images_are_there_and_back_the_same():
    levels = torch.arange(256).repeat(3, 1)[None, :, :, None].expand(1, 3, 256, 2)
    images = levels.float() / 127.5 - 1
    assert (to_images(to_pictures(images)) - images).abs().max() < 1e-6


def test_numbers_go_on_behind_those_that_are_there(tmp_path):
    (tmp_path / "im_000012.png").touch()
    names = FileNames(tmp_path, is_sequential=True)
    names.prepare()
    assert [names.next(1).name for _ in range(2)] == ["im_000013.png", "im_000014.png"]


def test_the_picture_of_a_first_pass_is_called_after_the_last_one(tmp_path):
    names = FileNames(tmp_path, uses_original=True)
    assert names.first_of(names.next(1, original="x/photo.png")) == tmp_path / "photo_1st.png"


@pytest.mark.parametrize("asked", ["../x", "a/b", "..", "", "a\\b", "a:b", "CON", "nul.x", "com1"])
def test_a_name_outside_of_the_folder_is_refused(asked):
    with pytest.raises(OptionError, match="no name for a file"):
        safe_name(asked)


def test_a_name_that_file_systems_cannot_have_is_refused():
    assert len(safe_name("ö" * 100)) == 100
    with pytest.raises(OptionError, match="this name is too long"):
        safe_name("ö" * 101)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--outdir: .* cannot be written"):
        FileNames(tmp_path / "file" / "x").prepare()


def test_random_seeds_are_shared_in_an_iteration_if_asked():
    seeds = Seeds(None, is_same=True)
    first, again, other = seeds.next(0), seeds.next(0), seeds.next(1)
    assert first == again != other


def test_seeds_behind_the_largest_begin_at_0():
    seeds = Seeds(2**63 - 1)
    assert [seeds.next(0), seeds.next(0)] == [2**63 - 1, 0]


def test_outside_of_a_mask_a_pass_begins_at_the_picture():
    """Enlarged latents lie in the mask, and the latents of the picture around it."""
    mask = torch.tensor([[[[1.0, 0.0]]]])
    canvas = Canvas(torch.zeros(1, 1, 1, 2), Guidance(told(1), None, None, scales(1.0), None), (1,))
    canvas = replace(canvas, start=Start(torch.full((1, 1, 1, 2), 3.0), 0.2), mask=mask)
    begun = begun_at(canvas, torch.full((1, 1, 1, 2), 5.0), 0.5).start
    assert begun.latents.flatten().tolist() == [5.0, 3.0] and begun.strength == 0.5


@pytest.mark.parametrize(("rounds_up", "left_out"), [(False, [3, 2, 0, 10]), (True, [2, 1, 0, 10])])
def test_a_share_of_the_steps_is_rounded_as_pipelines_round_it(rounds_up, left_out):
    found = [Start(torch.zeros(1), strength).first_step(10, rounds_up=rounds_up) for strength in (0.75, 0.85, 1, 0)]
    assert found == left_out


def test_a_record_is_there_and_back_the_same():
    record = GenerationRecord(
        prompt="a",
        width=8,
        height=16,
        seed=1,
        steps=2,
        sampler="euler",
        scale=3.5,
        family="sdxl",
        model="m.safetensors",
        networks=(NetworkUse("x/a.safetensors", "a", "0" * 12, 0.5, args={"lbw": "1,0"}),),
        sizes=PictureSizes(1, 2, 3, 4, 5, 6),
        extras={"ds_depth_1": 3},
    )
    assert record_from_json(record_to_json(record)) == record
