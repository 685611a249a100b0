"""Windows of position tables on the device: the same bits, few of them, and the table stays in host memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from library.models.mmdit import MMDiT, MMDiTConfig
from library.models.position_windows import MAX_BYTES, MAX_WINDOWS, PositionWindows
from library.models.positions import centred_window

CPU, META = torch.device("cpu"), torch.device("meta")
CONFIG = MMDiTConfig(depth=1, num_heads=1, head_dim=16, context_dim=8, pooled_dim=8, frequencies=8, position_side=64)


def table(side=8, channels=4):
    return torch.arange(side * side * channels, dtype=torch.float16).reshape(1, side * side, channels)


def test_window_is_that_of_the_table_and_made_once():
    windows, stored = PositionWindows(), table()
    window = windows.centred(stored, 4, 6, CPU)
    assert torch.equal(window, centred_window(stored, 4, 6)) and window.dtype == stored.dtype
    assert windows.centred(stored, 4, 6, CPU) is window
    assert windows.centred(stored, 6, 4, CPU) is not window
    assert windows.centred(stored, 4, 6, META).is_meta


def test_other_and_changed_tables_have_windows_of_their_own():
    windows, stored = PositionWindows(), table()
    first = windows.centred(stored, 2, 2, CPU)
    assert torch.equal(windows.centred(table() + 1, 2, 2, CPU), first + 1)
    stored.add_(2)
    assert torch.equal(windows.centred(stored, 2, 2, CPU), first + 2)


def test_the_oldest_windows_go():
    windows, stored = PositionWindows(), table()
    first = windows.centred(stored, 1, 1, CPU)
    for width in range(1, 9):
        for height in (1, 2, 3):
            windows.centred(stored, height, width, CPU)
            assert windows.centred(stored, 1, 1, CPU) is first  # as it is used again and again
    assert len(windows) == MAX_WINDOWS


def test_windows_take_no_more_memory_than_they_may_unless_one_is_larger():
    windows, stored = PositionWindows(), torch.empty(1, 96 * 96, 4096, dtype=torch.float16, device="meta")
    for side in range(40, 64):
        windows.centred(stored, side, side, META)
        assert windows.num_bytes <= MAX_BYTES
    assert 1 < len(windows) < MAX_WINDOWS
    windows.centred(stored, 96, 96, META)
    assert len(windows) == 1 and windows.num_bytes > MAX_BYTES


class LargestOnMeta(TorchDispatchMode):
    """Numbers of the largest tensor that is made on the meta device."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor) and leaf.is_meta]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


def test_the_table_stays_where_it_is_when_the_model_moves():
    model = MMDiT(CONFIG).requires_grad_(False)
    stored = model.pos_embed
    with LargestOnMeta() as largest:
        model.to(META, torch.bfloat16)
        window = model.windows.centred(model.pos_embed, 4, 3, META)
    assert window.is_meta and all(parameter.is_meta for parameter in model.parameters())
    assert model.pos_embed is stored and not stored.is_meta and stored.dtype == torch.float32
    assert 0 < largest.numbers < stored.numel() / 16


def test_the_table_is_a_part_of_the_state():
    model, other = MMDiT(CONFIG), MMDiT(CONFIG)
    state = model.state_dict()
    assert next(iter(state)) == "pos_embed" and state["pos_embed"].shape == (1, 64 * 64, 16)
    state["pos_embed"] = state["pos_embed"] + 1
    model.load_state_dict(state)
    assert torch.equal(model.pos_embed, state["pos_embed"]) and model.pos_embed is not state["pos_embed"]
    other.load_state_dict(state, assign=True)
    assert other.pos_embed is state["pos_embed"]


def test_a_state_without_the_table_or_with_another_one_is_refused():
    model = MMDiT(CONFIG)
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="pos_embed has the shape"):
        model.load_state_dict({**state, "pos_embed": state["pos_embed"][:, 1:]})
    del state["pos_embed"]
    with pytest.raises(RuntimeError, match="Missing key.*pos_embed"):
        model.load_state_dict(state)
