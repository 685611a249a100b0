"""A ControlNet-LLLite that the script trains beside the tiny model of examples/tiny_sdxl follows colour maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from examples.tiny_sd.painter import SEED
from examples.tiny_sd.pictures import large_thing
from examples.tiny_sd3.draw import as_tensor, to_unit
from examples.tiny_sdxl.build import BASE, MODEL
from examples.tiny_sdxl.follow import NAME, following_share, maps, training_command
from examples.tiny_sdxl.painter import Painter
from examples.tiny_sdxl.words import without_colour
from networks.control_net_lllite import create_network_from_weights

STEPS, RATE, COUNT = 30, 1e-2, 16
STORED = BASE / f"{NAME}.safetensors"  # of 400 steps


def distance(pictures: Sequence[Any], wanted: torch.Tensor) -> float:
    """Mean square of the difference between 16 x 16 pixels of pictures and those of their maps."""
    shown = to_unit(as_tensor(list(pictures)))
    return float((torch.nn.functional.avg_pool2d(shown - wanted, 16)).square().mean())


def test_pictures_are_nearer_to_their_maps_than_without_the_network(training_of: Callable[..., Any], tmp_path: Path):
    model = BASE / f"{MODEL}.safetensors"
    train = training_of("sdxl_train_control_net_lllite", "sdxl")
    run = train.run_arguments(training_command(model, tmp_path, steps=STEPS, rate=RATE)[1:])
    painter, wanted = Painter(model), maps(COUNT)
    scenes = [large_thing(SEED, index) for index in range(COUNT)]
    captions = [without_colour(what.caption, what.things[0].colour) for what in scenes]
    found = []
    for multiplier in (1.0, 0.0):
        network = create_network_from_weights(multiplier, run.file, painter.unet)
        network.apply_to()
        network.set_condition(wanted)
        found.append(distance(painter.paint(captions, range(COUNT)), wanted))
        network.detach_all()
    assert found[0] < 0.8 * found[1], found


def test_the_stored_one_gives_things_the_colours_of_the_maps():
    painter = Painter(BASE / f"{MODEL}.safetensors")
    with_network, without = (following_share(painter, STORED, multiplier, 24) for multiplier in (1.0, 0.0))
    assert with_network >= 0.5 and without <= 0.35
