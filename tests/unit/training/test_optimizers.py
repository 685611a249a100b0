"""Optimizers by name, their arguments, and the check before a run."""

import logging

import pytest
import torch

from library.errors import OptionError
from library.training.optimizers import (
    check_optimizer,
    find_optimizer,
    forced_schedule,
    make_optimizer,
    optimizer_description,
    parse_key_values,
    split_key_values,
)

NAMES = ["AdamW", "AdamW8bit", "Adafactor"]


@pytest.fixture(autouse=True)
def _log_lines_reach_caplog(monkeypatch):
    """Also where an earlier test in this process has set up logging as the scripts do."""
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 80), (4, 3), (5,))]


def run(optimizer, steps=5):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.detach() * 0.1 + 0.01
        optimizer.step()
    return [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_passes_its_check_and_moves_the_weights(name):
    check_optimizer(name, None, 1e-3)
    start = parameters()
    moved = run(make_optimizer(name, [{"params": parameters()}], learning_rate=1e-3))
    for before, after in zip(start, moved, strict=True):
        assert after.isfinite().all()
        assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("written", "meant"), [("", "AdamW"), ("ADAMW", "AdamW"), ("adamw8bit", "AdamW8bit"), (" adaFactor ", "Adafactor")]
)
def test_letter_case_does_not_matter(written, meant):
    assert find_optimizer(written).name == meant


@pytest.mark.parametrize("name", ["Prodigy", "lion", "PagedAdamW8bit", "DAdaptAdam", "SGD", "some.module.Class"])
def test_known_names_of_later_versions_say_so(name):
    with pytest.raises(OptionError, match="not available yet"):
        find_optimizer(name)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(OptionError, match=r"AdmW8bit.*Did you mean AdamW8bit\?"):
        find_optimizer("AdmW8bit")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("AdamW", ["weigth_decay=0.1"], r"no argument weigth_decay \(did you mean weight_decay\?\)"),
        ("AdamW", ["weight_decay=0.1", "betas=(0.9,)"], r"does not accept betas=\(0.9,\) "),
        ("AdamW", ["weight_decay=-1"], "weight_decay=-1"),
        ("AdamW", ["lr=1"], "--learning_rate"),
        ("AdamW", ["fused=True", "foreach=True"], "fused=True, foreach=True"),
        ("AdamW8bit", ["amsgrad=True"], "amsgrad=True"),
        ("Adafactor", ["decay_rate=abc", "beta1=0.9"], "decay_rate='abc' "),
        ("Adafactor", ["warmup_init=True", "relative_step=False"], "warmup_init"),
        ("AdamW", ["eps", "betas=0.9,0.99", "betas=0.9,0.9"], r'"eps" has no "="; betas is given twice'),
    ],
)
def test_wrong_arguments_are_named(name, args, message):
    with pytest.raises(OptionError, match=message):
        check_optimizer(name, args, 1e-4)


def test_all_unknown_arguments_are_listed():
    with pytest.raises(OptionError, match=r"no argument one.*no argument two"):
        check_optimizer("AdamW", ["one=1", "two=2"], 1e-4)


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_impossible_learning_rate_is_refused(rate):
    with pytest.raises(OptionError, match="--learning_rate"):
        check_optimizer("AdamW", None, rate)


def test_values_are_python_literals_or_texts():
    read = parse_key_values(
        ["betas=0.9,0.99", "a=1e-3", "b=None", "c=true", "d=plain text", "e=x=y", "f='q'", "g = 2"], "--x"
    )
    assert read == {
        "betas": (0.9, 0.99),
        "a": 1e-3,
        "b": None,
        "c": True,
        "d": "plain text",
        "e": "x=y",
        "f": "q",
        "g": 2,
    }


def test_texts_are_left_as_they_are():
    assert split_key_values(["a=1", "rule=x=y"], "--x") == {"a": "1", "rule": "x=y"}
    assert split_key_values(None, "--x") == {}


def test_fused_adamw_equals_the_plain_one():
    fused = make_optimizer("AdamW", [{"params": parameters()}], learning_rate=1e-2)
    plain = make_optimizer("AdamW", [{"params": parameters()}], learning_rate=1e-2, use_fused=False)
    assert fused.defaults["fused"] and not plain.defaults["fused"]
    for one, other in zip(run(fused), run(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_fused_form_of_the_user_wins():
    for args in (["foreach=True"], ["fused=False"]):
        assert not make_optimizer("AdamW", [{"params": parameters()}], learning_rate=1e-2, args=args).defaults["fused"]


def test_bfloat16_weights_can_be_trained():
    weights = [torch.nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))]
    (moved,) = run(make_optimizer("AdamW", [{"params": weights}], learning_rate=0.1))
    assert moved.isfinite().all() and (moved != 1).all()


def test_groups_keep_their_rates_and_the_others_get_the_default():
    one, two, _ = parameters()
    optimizer = make_optimizer("AdamW", [{"params": [one], "lr": 3e-4}, {"params": [two]}], learning_rate=1e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4, 1e-4]


def test_given_groups_are_not_written_to():
    group = {"params": iter(parameters()[:1]), "lr": 1e-3}
    make_optimizer("Adafactor", [group], learning_rate=1e-4)
    assert set(group) == {"params", "lr"}


def test_adafactor_drops_rates_only_with_relative_step(caplog):
    one, two, _ = parameters()
    groups = [{"params": [one], "lr": 3e-4}, {"params": [two], "lr": 1e-4}]
    relative = make_optimizer("Adafactor", groups, learning_rate=1e-4)
    assert [group["lr"] for group in relative.param_groups] == [None, None]
    assert "the one given (0.0001, 0.0003) has no effect" in caplog.text
    caplog.clear()
    fixed = make_optimizer("Adafactor", groups, learning_rate=1e-4, args=["relative_step=False"])
    assert [group["lr"] for group in fixed.param_groups] == [3e-4, 1e-4]
    assert not caplog.text


def test_warmup_init_switches_relative_step_on():
    optimizer = make_optimizer("Adafactor", [{"params": parameters()}], learning_rate=1e-4, args=["warmup_init=True"])
    assert optimizer.defaults["relative_step"] is True


def test_only_relative_adafactor_forces_a_schedule():
    assert forced_schedule("adafactor", None, 1e-4) == "adafactor:0.0001"
    assert forced_schedule("adafactor", ["relative_step=False"], 1e-4) is None
    assert forced_schedule("AdamW", None, 1e-4) is None


def test_description_names_class_and_arguments():
    described = optimizer_description("adamw", ["weight_decay=0.1", "betas=0.9,0.99"])
    assert described == "torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9, 0.99))"
    assert optimizer_description("", None) == "torch.optim.adamw.AdamW"
