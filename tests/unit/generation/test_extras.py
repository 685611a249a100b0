"""What extras do, without a model."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageFilter

from library.data.pixels.opencv import opencv
from library.errors import OptionError
from library.families.base import Conditioning
from library.generation.clip_vision import with_seen
from library.generation.control_nets import Clock, control_settings
from library.generation.extras import asked_extras, batch_extras, check_extras, growth_of, shrink_of
from library.generation.guides import GuidePictures, check_preps, load_guide
from library.generation.highres import first_pass, second_pass
from library.generation.options.extras import GuideOptions
from library.generation.options.scripts import GENERATION_SCRIPT, GenerationOptions
from library.generation.prompt_lines import PromptOptions, parse_prompt
from library.generation.record import GenerationRecord, NetworkUse, PictureSizes, record_from_json, record_to_json
from library.generation.redrawing import options_of
from library.generation.regions import Region, by_regions, networks_of_region, region_masks
from library.generation.start_noise import start_noise
from library.options.spec import parse_options
from library.records import Size
from library.rng import normal_per_sample

NONE = frozenset()
RECORD = GenerationRecord(
    prompt="a cat", width=1000, height=760, seed=1, steps=20, sampler="euler_a", scale=7.0, family="sdxl", model="m"
)


def options(*more):
    arguments = ["--ckpt=m.safetensors", "--prompt=a cat", *map(str, more)]
    return parse_options(GenerationOptions, argv=arguments, **GENERATION_SCRIPT)


def asked(*more, line="a cat", guides=(), ignored=NONE):
    return asked_extras(options(*more), parse_prompt(line), guides, ignored=ignored)


# Which act


def test_nothing_acts_by_itself():
    assert asked() == {}


def test_an_extra_acts_with_all_of_its_settings_and_a_line_goes_before_the_options():
    extras = asked("--ds_depth_1=3", "--ds_ratio=0.4", line="a cat --dst1 500")
    assert extras == {"ds_depth_1": 3, "ds_timesteps_1": 500, "ds_timesteps_2": 650, "ds_ratio": 0.4}
    shrink = shrink_of(extras)
    assert (shrink.depth_1, shrink.timesteps_1, shrink.depth_2, shrink.ratio) == (3, 500, None, 0.4)


def test_a_line_switches_an_extra_on():
    growth = growth_of(asked(line="a cat --glt 700 --glr 0.6 --gle 2 --gls 0.2 --glsn 0.9 --glus 3,0.5,0.4,1"))
    assert (growth.timestep, growth.ratio, growth.every_n_steps, growth.ratio_step) == (700, 0.6, 2, 0.2)
    assert (growth.noise_scale, tuple(growth.unsharp)) == (0.9, (3, 0.5, 0.4, True))


def test_extras_that_a_family_has_not_do_not_act_and_are_named_in_lines():
    ignored = frozenset(["ds_depth_1"])
    assert asked("--ds_depth_1=3", ignored=ignored) == {}
    with pytest.raises(OptionError, match="not for this kind of model"):
        asked(line="a cat --dsd1 3", ignored=ignored)


def test_extras_travel_through_json():
    guides = (Path("one.png"),)
    extras = asked("--control_net_models", "a", "b", "--guide_image_path=one.png", guides=guides)
    read = record_from_json(record_to_json(replace(RECORD, extras=extras)))
    own = options_of(options(), read).guide
    assert own.control_net_models == (Path("a"), Path("b"))
    assert own.guide_image_path == guides


def test_pictures_with_other_guides_are_drawn_at_once_and_those_with_other_extras_are_not():
    def key(**extras):
        return batch_extras(replace(RECORD, extras=extras))

    assert key(guide_image_path=["a"], control_net_models=["n"]) == key(
        guide_image_path=["b"], control_net_models=["n"]
    )
    assert key(ds_depth_1=3) != key(ds_depth_1=4)
    regions = "network_regional_mask_max_color_codes"
    assert key(guide_image_path=["a"], **{regions: 2}) != key(guide_image_path=["b"], **{regions: 2})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": "a.png", "extras": {"gradual_latent_timesteps": 700}}, "begins at noise"),
        ({"sampler": "heun", "extras": {"gradual_latent_timesteps": 700}}, "euler and euler_a, not heun"),
        ({"prompt": "a AND b AND c", "extras": {"network_regional_mask_max_color_codes": 2}}, "has 3 parts"),
    ],
)
def test_what_does_not_go_together_is_named(changes, sentence):
    growth = asked("--gradual_latent_timesteps=700")
    extras = changes["extras"] if "gradual_latent_timesteps" not in changes["extras"] else growth
    with pytest.raises(OptionError, match=sentence):
        check_extras(replace(RECORD, **{**changes, "extras": extras}))


# Two passes


def test_the_first_pass_has_the_scaled_size_and_the_second_the_whole():
    sizes = PictureSizes(2000, 1520, 1000, 760, crop_top=10)
    extras = asked("--highres_fix_scale=0.6", "--highres_fix_steps=9", "--ds_depth_1=3")
    record = replace(RECORD, sizes=sizes, extras=extras, strength=0.4)
    first, second = first_pass(record, 8), second_pass(record)
    assert (first.width, first.height, first.steps, first.strength) == (600, 456, 9, None)
    assert first.sizes == PictureSizes(1200, 912, 600, 456, crop_top=6)
    assert (second.width, second.height, second.steps, second.strength) == (1000, 760, 20, 0.4)
    assert first.extras == second.extras == asked("--ds_depth_1=3")


def test_control_nets_can_be_left_out_of_the_second_pass_and_latents_grow_in_the_first_only():
    extras = asked(
        *("--highres_fix_scale=0.5", "--highres_fix_disable_control_net", "--gradual_latent_timesteps=700"),
        *("--control_net_models=n", "--guide_image_path=a.png"),
    )
    record = replace(RECORD, extras=extras)
    assert {"control_net_models", "gradual_latent_timesteps"} <= first_pass(record, 8).extras.keys()
    assert not any(name.startswith(("control_net_", "gradual_")) for name in second_pass(record).extras)


# Guiding pictures


@pytest.fixture
def picture(tmp_path):
    pixels = numpy.random.default_rng(1).integers(0, 255, (6, 8, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BILINEAR).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_guides_are_prepared(picture):
    def made(prep):
        return numpy.asarray(load_guide(picture, Size(64, 48), prep)).astype(int)

    plain = made("none")
    grey = numpy.asarray(Image.open(picture).convert("L"))
    assert (made("canny_50_90")[..., 1] == opencv().Canny(grey, 50, 90)).all()
    assert (made("canny") == made("canny_100_200")).all()
    assert (made("invert") == 255 - plain).all()
    blurred = Image.open(picture).convert("RGB").filter(ImageFilter.GaussianBlur(2.5))
    assert (made("blur_2.5") == numpy.asarray(blurred)).all()
    assert load_guide(picture, Size(32, 16)).size == (32, 16)


def test_unknown_preparations_are_named():
    check_preps(["none", "canny", "canny_1_2", "blur", "blur_3", "blur_0.5", "invert"])
    for wrong in ("depth", "canny_1", "blur_x", "invert_1", ""):
        with pytest.raises(OptionError, match="is unknown. Known are none, canny"):
            check_preps([wrong])


def test_pictures_of_folders_go_along_with_prompts(tmp_path, picture):
    (tmp_path / "many").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / "many" / f"{name}.png")
    guides = GuidePictures.of([picture, tmp_path / "many"])
    assert [[path.name for path in guides.at(prompt)] for prompt in range(3)] == [
        ["picture.png", "a.png"],
        ["picture.png", "b.png"],
        ["picture.png", "a.png"],
    ]


def test_values_of_control_nets_count_for_one_or_for_all():
    nets = {"control_net_models": (Path("a"), Path("b")), "guide_image_path": (Path("p"),)}
    found = control_settings(GuideOptions(**nets, control_net_ratios=(0.5,), control_net_multipliers=(1.0, 0.2)))
    assert [(own.prep, own.multiplier, own.ratio) for own in found] == [("none", 1.0, 0.5), ("none", 0.2, 0.5)]


def test_a_share_of_the_steps_is_counted_as_diffusers_counts():
    clock = Clock(4)
    within = []
    for done in range(4):
        within.append(clock.is_within(0.5))
        clock(done + 1, 4)
    assert within == [True, True, False, False]


# Regions


@pytest.fixture
def region_map(tmp_path):
    """Red on the left, green on the right, black at the bottom."""
    image = Image.new("RGB", (32, 32), (250, 10, 0))
    image.paste((0, 200, 90), (16, 0, 32, 32))
    image.paste((0, 0, 0), (0, 24, 32, 32))
    image.save(tmp_path / "map.png")
    return tmp_path / "map.png"


def test_colours_are_regions_and_black_belongs_to_all(region_map):
    masks = region_masks(region_map, Size(64, 64), 2, 8)
    assert masks.shape == (2, 8, 8)
    torch.testing.assert_close(masks.sum(0), torch.ones(8, 8))
    assert (masks[0, :6, :4] == 1).all()
    assert (masks[1, :6, 4:] == 1).all()
    assert (masks[:, 6:] == 0.5).all()


def test_a_map_without_a_colour_is_named(region_map):
    with pytest.raises(OptionError, match="no pixel of the colour of region 3"):
        region_masks(region_map, Size(64, 64), 3, 8)


def test_predictions_are_put_together_by_the_map_each_with_its_network(region_map):
    acting = []

    def usual(latents, timesteps, conditioning):
        return latents + conditioning.context.mean() * acting[-1]

    def told(value):
        return Conditioning(torch.full((2, 1, 1), value), torch.zeros(2, 1))

    regions = [Region((1.0,), told(1.0)), Region((10.0,), told(2.0))]
    masks = region_masks(region_map, Size(64, 64), 2, 8)
    wrapped = by_regions(regions, masks, lambda networks: acting.append(networks[0]))(usual)
    latents = torch.zeros(2, 4, 8, 8)
    result = wrapped(latents, torch.zeros(2), told(0.0))
    assert (result[..., :6, :4] == 1).all()
    assert (result[..., :6, 4:] == 20).all()
    assert (result[..., 6:, :] == 10.5).all()
    assert wrapped(torch.zeros(2, 4, 4, 4), torch.zeros(2), told(0.0))[0, 0, 0, 0] == 1


def test_networks_are_for_their_regions_and_a_single_one_for_all():
    uses = tuple(NetworkUse(name, name, "", strength) for name, strength in (("a", 0.5), ("b", 0.8)))
    strengths = [[use.multiplier for use in networks_of_region(uses, region, 2)] for region in range(2)]
    assert strengths == [[0.5, 0.0], [0.0, 0.8]]
    assert networks_of_region(uses[:1], 1, 2) == uses[:1]
    with pytest.raises(OptionError, match="2 files for 3 regions"):
        networks_of_region(uses, 0, 3)


# Noise, CLIP vision


@pytest.mark.parametrize(
    "extras",
    [
        {"pyramid_noise_prob": 0.5, "pyramid_noise_discount_range": [0.3, 0.6]},
        {"noise_offset_prob": 0.5, "noise_offset_range": [0.1, 0.2]},
    ],
)
def test_noise_is_changed_for_a_share_of_pictures_whatever_batch_they_are_in(extras):
    seeds = list(range(40))
    noise = normal_per_sample(seeds, (4, 8, 8))
    changed = start_noise(noise, seeds, extras)
    is_changed = (changed != noise).flatten(1).any(1)
    assert 8 <= is_changed.sum() <= 32
    torch.testing.assert_close(start_noise(noise[7:9], seeds[7:9], extras), changed[7:9])
    assert (changed.std((1, 2, 3)) - 1).abs().max() < 0.3


def test_an_offset_shifts_whole_channels():
    noise = normal_per_sample([3], (4, 8, 8))
    shift = start_noise(noise, [3], {"noise_offset_prob": 1, "noise_offset_range": [0.5, 0.5]}) - noise
    assert shift.std((2, 3)).max() < 1e-5
    assert shift.abs().max() > 0.05


def test_strength_leads_from_the_pooled_text_to_what_is_seen():
    told = Conditioning(torch.zeros(1, 2, 3), torch.tensor([[1.0, 3.0]]))
    seen = torch.tensor([[3.0, -1.0]])
    assert with_seen(told, seen, 0.5).pooled.tolist() == [[2.0, 1.0]]
    assert torch.equal(with_seen(told, seen, 0.0).pooled, told.pooled)
    assert with_seen(told, seen, 0.5).context is told.context


def test_lines_say_every_part_of_deep_shrink_and_gradual_latents():
    names = [name for name in PromptOptions.__dataclass_fields__ if name.startswith(("ds_", "gradual_"))]
    known = {item for group in ("shrink", "gradual") for item in vars(getattr(options(), group))}
    assert set(names) == known
