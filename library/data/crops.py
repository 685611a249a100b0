"""Where the training picture is cut out of the resized one, when not at the centre."""

from __future__ import annotations

import random
from dataclasses import replace

from library.records import CropPlan


def random_crop(plan: CropPlan, draw: random.Random) -> CropPlan:
    """The same plan cut at a place drawn uniformly from all that fit."""
    left = draw.randint(0, plan.resized.width - plan.bucket.width)
    top = draw.randint(0, plan.resized.height - plan.bucket.height)
    return replace(plan, left=left, top=top)
