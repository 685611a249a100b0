import math

import pytest
import torch
from torch import nn

from library.families.lora_layout import LoraPair
from library.loras.dylora_parts import cut_at, ranks_of_cuts
from library.loras.resizing import RankRule, resize, resize_pair
from library.loras.retained import summary
from networks.adapters import Factors, LoraAdapter
from networks.dylora_adapter import DyLoraAdapter

RANK, ALPHA = 6, 3.0


def pair(*, out=9, inner=(7,), rank=RANK, scale=0.5, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    ones = [1] * (len(inner) - 1)
    down, up = torch.randn(rank, *inner, generator=draw), torch.randn(out, rank, *ones, generator=draw)
    return LoraPair(down.to(dtype), up.to(dtype), scale)


def delta(lora):
    return lora.up.flatten(1).double() @ lora.down.flatten(1).double() * lora.scale


def test_the_whole_rank_changes_no_bit():
    lora = pair()
    resized, left = resize_pair("m", lora, RankRule(RANK, RANK))
    assert torch.equal(resized.down, lora.down) and torch.equal(resized.up, lora.up) and resized.scale == lora.scale
    assert left.norm_share == 1


def test_a_greater_rank_is_that_of_the_module():
    resized, left = resize_pair("m", pair(), RankRule(64, 64))
    assert resized.down.shape[0] == left.rank == RANK


@pytest.mark.parametrize("inner", [(7,), (5, 3, 3), (7, 1, 1)])
def test_a_smaller_rank_is_the_best_of_its_size_at_the_same_scale(inner):
    lora = pair(inner=inner, scale=-0.7)
    resized, left = resize_pair("m", lora, RankRule(2, 2))
    assert resized.scale == lora.scale
    assert resized.down.shape == (2, *inner) and resized.up.shape == (9, 2, *[1] * (len(inner) - 1))
    values = torch.linalg.svdvals(delta(lora))
    lost = torch.linalg.matrix_norm(delta(lora) - delta(resized))
    assert float(lost) == pytest.approx(float(values[2:].norm()), rel=1e-5)
    assert left.norm == pytest.approx(float(delta(resized).norm()), rel=1e-5)
    assert left.norm_share == pytest.approx(float(values[:2].norm() / values.norm()), rel=1e-5)
    assert left.total_share == pytest.approx(float(values[:2].sum() / values.sum()), rel=1e-5)


def test_what_is_of_low_rank_loses_nothing_there():
    low = pair(rank=2)
    padded = LoraPair(
        torch.cat([low.down, torch.randn(4, 7)]), torch.cat([low.up, torch.zeros(9, 4)], dim=1), low.scale
    )
    resized, left = resize_pair("m", padded, RankRule(9, 9, "sv_ratio", 1e6))
    assert left.rank == 2
    torch.testing.assert_close(delta(resized), delta(low), atol=1e-5, rtol=1e-5)


def test_convolutions_have_a_rank_of_their_own():
    modules = {"linear": pair(), "one": pair(inner=(7, 1, 1)), "three": pair(inner=(5, 3, 3))}
    resized, _ = resize(modules, RankRule(4, 1))
    assert [lora.down.shape[0] for lora in resized.values()] == [4, 1, 1]


def test_number_formats_stay():
    resized, _ = resize_pair("m", pair(dtype=torch.bfloat16), RankRule(2, 2))
    assert resized.down.dtype == resized.up.dtype == torch.bfloat16


def test_a_module_that_was_not_trained_stays_zero():
    lora = pair()
    resized, left = resize_pair("m", LoraPair(lora.down, torch.zeros_like(lora.up), 1.0), RankRule(9, 9, "sv_fro", 0.9))
    assert resized.down.shape[0] == 1 and not delta(resized).any()
    assert left.norm_share == 1


def test_the_summary_names_the_norm_of_all_and_the_worst_module():
    _, retained = resize({"good": pair(rank=1), "bad": pair(seed=3)}, RankRule(1, 1))
    whole, kept = (math.hypot(*values) for values in zip(*((m.whole_norm, m.norm) for m in retained), strict=True))
    line = summary(retained)
    assert f"{kept / whole:.2%} of all 2 modules" in line
    assert f"{retained[1].norm_share:.2%} at least (bad)" in line


def cut_of(live, rank):
    """The file of a DyLoRA cut to a rank."""
    factors = live.factors()
    return cut_at({"lora": LoraPair(factors.down, factors.up, factors.scale)}, rank)["lora"]


@pytest.mark.parametrize("rank", ranks_of_cuts(RANK, 2))
def test_a_cut_dylora_acts_as_the_pass_that_trained_its_ranks(rank):
    live = DyLoraAdapter("lora", nn.Linear(7, 9).requires_grad_(False), RANK, ALPHA, unit=2)
    for factor in live.parameters():
        nn.init.normal_(factor)
    cut, x, outputs = cut_of(live, rank), torch.randn(4, 7), {}
    live.attach()
    for seed in range(20):
        torch.manual_seed(seed)
        live.zero_grad()
        output = live.train().target(x)
        output.sum().backward()
        trained = int(live.lora_down.weight.grad.abs().sum(1).nonzero().max()) + 1
        outputs[trained] = output.detach()
    static = LoraAdapter("lora", nn.Linear(7, 9), rank, cut.scale * rank)
    static.load(Factors(cut.down, cut.up, cut.scale * rank))
    static.target.load_state_dict(live.target.state_dict())
    static.attach()
    torch.testing.assert_close(static.eval().target(x), outputs[rank], atol=1e-5, rtol=1e-5)


def test_cuts_of_a_trained_dylora_are_better_than_nothing_and_the_better_the_more_ranks():
    torch.manual_seed(0)
    size, rank = 16, 8
    live = DyLoraAdapter("lora", nn.Linear(size, size, bias=False).requires_grad_(False), rank, rank, unit=2)
    live.reset()
    sides = [torch.linalg.qr(torch.randn(size, size)).Q[:, :rank] for _ in range(2)]
    target = sides[0] * torch.linspace(3, 0.5, rank) @ sides[1].T
    optimizer = torch.optim.AdamW(live.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(400):
        down, up = live.train().pair_of_pass()
        optimizer.zero_grad()
        (up @ down - target).square().sum().backward()
        optimizer.step()
    cuts = [cut_of(live, number) for number in (*ranks_of_cuts(rank, 2), rank)]
    errors = [float((delta(cut) - target).norm() / target.norm()) for cut in cuts]
    values = torch.linspace(3, 0.5, rank)
    best = [float(values[number:].norm() / values.norm()) for number in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True) and errors[0] < 0.75
    assert errors == pytest.approx(best, abs=0.15)


def test_cuts_are_all_multiples_of_the_unit_below_the_rank():
    assert ranks_of_cuts(16, 4) == [4, 8, 12]
    assert ranks_of_cuts(4, 4) == []


def test_modules_of_lower_rank_stay_whole_in_a_cut():
    modules = {"large": pair(rank=6), "small": pair(rank=2)}
    cut = cut_at(modules, 4)
    assert cut["small"] is modules["small"]
    assert cut["large"].down.shape[0] == 4
