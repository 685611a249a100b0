"""The alpha of a LoRA in the metadata of a file without alpha tensors, so that the way back gives the same factors.

What the factors come to is right without it: a note is only how a product is divided between alpha and the factors. It
is a number, or [alpha, share] where `down` has 2**share of the strength.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from library.families.lora_layout import LoraPair, times

KEY = "easel_alpha"
_ANY = "*"  # stands for every module that is not named
_MOST = 64  # as a share


def noted(modules: Mapping[str, LoraPair], shares: Mapping[str, int] | None = None) -> str:
    """The alphas of modules, as text.

    Args:
        modules: {name as kohya files have it: factors}
        shares: {name: share of `down`, see `fold`}; those that are not there are 0.
    """
    notes: dict[str, Any] = {name: pair.scale * pair.down.shape[0] for name, pair in modules.items()}
    notes |= {name: [notes[name], share] for name, share in (shares or {}).items() if share}
    values = list(notes.values())
    usual = max(values, key=values.count, default=0.0)
    return json.dumps({_ANY: usual, **{name: note for name, note in notes.items() if note != usual}})


def restored(modules: Mapping[str, LoraPair], metadata: Mapping[str, str]) -> dict[str, LoraPair]:
    """Modules with the alphas of a note, each of the same strength; those that it does not fit stay as they are.

    Args:
        modules: {name as kohya files have it: factors}, of a file whose alpha is in the factors.
        metadata: Of that file.
    """
    try:
        notes = json.loads(metadata.get(KEY, "{}"))
    except ValueError:
        notes = {}
    if not isinstance(notes, dict):
        return dict(modules)
    return {name: _with_alpha(pair, notes.get(name, notes.get(_ANY))) for name, pair in modules.items()}


def _with_alpha(pair: LoraPair, note: object) -> LoraPair:
    alpha, share = note if isinstance(note, list) and len(note) == 2 else (note, 0)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        return pair
    if pair.scale != 1 or not isinstance(share, int) or abs(share) > _MOST:
        return pair
    scale = alpha / pair.down.shape[0]
    if not math.isfinite(scale) or scale <= 0:
        return pair
    up = times(pair.up.double(), 2.0**share / scale).to(pair.up.dtype)
    found = LoraPair(times(pair.down, 2.0**-share), up, scale)
    return found if found.is_finite or not pair.is_finite else pair
