"""Optimizers by name, their arguments, and the check before a run."""

import logging
import sys

import pytest
import torch

from library.errors import EnvironmentFault, OptionError
from library.training.optimization.optimizer_kinds import KNOWN_NAMES
from library.training.optimization.optimizers import (
    check_optimizer,
    find_optimizer,
    forced_schedule,
    make_optimizer,
    optimizer_description,
    parse_key_values,
    split_key_values,
)

SIZED = ["Prodigy", *(name for name in KNOWN_NAMES if name.startswith("DAdapt"))]


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


def need(name):
    pytest.importorskip(find_optimizer(name).module)


@pytest.mark.parametrize("name", KNOWN_NAMES)
def test_every_optimizer_passes_its_check_and_moves_the_weights(name):
    need(name)
    if name == "PagedAdEMAMix8bit" and not torch.cuda.is_available():
        pytest.skip("it needs a GPU")
    rate, args = (1.0, ["d0=0.01"]) if name in SIZED else (1e-3, None)
    check_optimizer(name, args, rate, keeps_state=True)
    start = parameters()
    moved = run(make_optimizer(name, [{"params": parameters()}], learning_rate=rate, args=args))
    for before, after in zip(start, moved, strict=True):
        assert after.isfinite().all()
        assert (after - before).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", "torch.optim.AdamW"),
        ("ADAMW", "torch.optim.AdamW"),
        ("adamw8bit", "bitsandbytes.optim.AdamW8bit"),
        (" adaFactor ", "transformers.optimization.Adafactor"),
        ("lion", "lion_pytorch.Lion"),
        ("dadaptation", "dadaptation.experimental.DAdaptAdamPreprint"),
        ("sgdnesterov8bit", "bitsandbytes.optim.SGD8bit"),
        ("lbfgs", "torch.optim.LBFGS"),
        ("torch.optim.adamw.AdamW", "torch.optim.adamw.AdamW"),
    ],
)
def test_names_mean_classes_whatever_the_letter_case(written, meant):
    kind = find_optimizer(written)
    assert f"{kind.module}.{kind.class_name}" == meant


def test_classes_of_pytorch_optimizer_have_their_names():
    need("pytorch_optimizer.CAME")
    kind = find_optimizer("came")
    assert (kind.module, kind.class_name, kind.package) == ("pytorch_optimizer", "CAME", "pytorch-optimizer")


def test_unknown_name_gets_the_nearest():
    with pytest.raises(OptionError, match=r"AdmW8bit.*Did you mean AdamW8bit\?"):
        find_optimizer("AdmW8bit")


def test_of_short_names_those_with_one_other_letter_are_near_too():
    with pytest.raises(OptionError, match=r"Did you mean Adamax or AdamW\?"):
        find_optimizer("AdamX")


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
        ("SGDNesterov", ["nesterov=False"], "SGDNesterov has nesterov=True"),
        ("LBFGS", None, "LBFGS cannot take a step"),
        ("torch.optim.Nothing", None, "torch.optim has no optimizer Nothing"),
        ("torch.optim.lr_scheduler.StepLR", None, "has no optimizer StepLR"),
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


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)  # Python's own way to say that there is none
    with pytest.raises(EnvironmentFault, match=r"Prodigy needs the package prodigyopt.*pip install prodigyopt"):
        check_optimizer("prodigy", None, 1.0)


def test_an_unknown_name_tells_where_more_names_are(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(OptionError, match=r"SOAPY: unknown optimizer.*pip install pytorch-optimizer"):
        find_optimizer("SOAPY")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("CAME", ["weigth_decay=0.1"], r"no argument weigth_decay \(did you mean weight_decay"),
        ("CAME", ["betas=(2,2,2)"], r"does not accept betas=\(2, 2, 2\)"),
        ("AliG", None, "AliG cannot take a step"),
        ("A2Grad", None, "it has no learning rate"),
        ("CAMEE", None, r"Did you mean CAME\?"),
    ],
)
def test_wrong_use_of_pytorch_optimizer_is_told(name, args, message):
    need("pytorch_optimizer.CAME")
    with pytest.raises(OptionError, match=message):
        check_optimizer(name, args, 1e-4)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_weights_that_an_optimizer_cannot_train_are_told():
    check_optimizer("Muon", None, 1e-3)
    with pytest.raises(OptionError, match="Muon cannot train these weights"):
        make_optimizer("Muon", [{"params": parameters()}], learning_rate=1e-3)


def test_nesterov_has_momentum_unless_given():
    groups = [{"params": parameters()}]
    default = make_optimizer("SGDNesterov", groups, learning_rate=0.1).defaults
    given = make_optimizer("SGDNesterov", groups, learning_rate=0.1, args=["momentum=0.5"]).defaults
    assert (default["nesterov"], default["momentum"], given["momentum"]) == (True, 0.9, 0.5)
    assert optimizer_description("SGDNesterov", None) == "torch.optim.sgd.SGD(momentum=0.9,nesterov=True)"


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
def test_fused_forms_equal_the_plain_ones(name):
    fused = make_optimizer(name, [{"params": parameters()}], learning_rate=1e-2)
    plain = make_optimizer(name, [{"params": parameters()}], learning_rate=1e-2, use_fused=False)
    assert fused.defaults["fused"] and not plain.defaults["fused"]
    for one, other in zip(run(fused), run(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIZED)
def test_optimizers_with_a_size_of_their_own_want_a_large_rate(name, caplog):
    need(name)
    check_optimizer(name, None, 1e-4)
    assert f"learning rate 0.0001: {name} finds the size of its steps itself" in caplog.text
    caplog.clear()
    check_optimizer(name, None, 1.0)
    assert not caplog.text


@pytest.mark.parametrize("name", SIZED)
def test_optimizers_with_a_size_of_their_own_take_one_rate_and_a_warmup_from_zero(name, caplog):
    need(name)
    one, two, _ = parameters()
    groups = [{"params": [one], "lr": 1.0}, {"params": [two], "lr": 0.5}]
    optimizer = make_optimizer(name, groups, learning_rate=1.0)
    assert f"{name} takes one learning rate for all parts: 1 is used everywhere, 0.5 has no effect" in caplog.text
    for rate in (0.0, 0.5, 1.0):
        for group in optimizer.param_groups:
            group["lr"] = rate
        moved = run(optimizer, steps=1)
    assert all(weights.isfinite().all() for weights in moved)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is something to page from")
def test_without_a_gpu_nothing_is_paged_and_it_is_said(caplog, recwarn):
    check_optimizer("PagedAdamW8bit", None, 1e-3)
    assert "PagedAdamW8bit: there is no GPU to page from" in caplog.text
    assert not [warning for warning in recwarn if "Paged" in str(warning.message)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is something to page from")
def test_what_cannot_do_without_paging_is_refused():
    with pytest.raises(EnvironmentFault, match=r"PagedAdEMAMix8bit needs a GPU.*Use AdEMAMix8bit, or AdamW"):
        check_optimizer("PagedAdEMAMix8bit", None, 1e-3)


def test_the_check_draws_no_random_numbers_from_the_run():
    need("pytorch_optimizer.Kron")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_optimizer("Kron", None, 1e-3)
    assert torch.equal(torch.get_rng_state(), before)
