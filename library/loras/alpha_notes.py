"""The alpha of a LoRA in the metadata of a file without alpha tensors, so that the way back gives the same factors.

What the factors come to is right without it: a note is only how a product is divided between alpha and `up`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

from library.families.lora_layout import LoraPair, times

KEY = "easel_alpha"
_ANY = "*"  # stands for every module that is not named


def noted(modules: Mapping[str, LoraPair]) -> str:
    """The alphas of modules, as text.

    Args:
        modules: {name as kohya files have it: factors}
    """
    alphas = {name: pair.scale * pair.down.shape[0] for name, pair in modules.items()}
    values = list(alphas.values())
    usual = max(set(values), key=values.count, default=0.0)
    return json.dumps({_ANY: usual, **{name: alpha for name, alpha in alphas.items() if alpha != usual}})


def restored(modules: Mapping[str, LoraPair], metadata: Mapping[str, str]) -> dict[str, LoraPair]:
    """Modules with the alphas of a note, each of the same strength; those that it does not fit stay as they are.

    Args:
        modules: {name as kohya files have it: factors}, of a file whose alpha is in `up`.
        metadata: Of that file.
    """
    try:
        notes = json.loads(metadata.get(KEY, "{}"))
    except ValueError:
        notes = {}
    if not isinstance(notes, dict):
        return dict(modules)
    return {name: _with_alpha(pair, notes.get(name, notes.get(_ANY))) for name, pair in modules.items()}


def _with_alpha(pair: LoraPair, alpha: object) -> LoraPair:
    if pair.scale != 1 or isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        return pair
    scale = alpha / pair.down.shape[0]
    if not math.isfinite(scale) or scale <= 0:
        return pair
    return replace(pair, up=times(pair.up.double(), 1 / scale).to(pair.up.dtype), scale=scale)
