"""Arguments for network modules of other packages, whose source says what they read."""

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from library.errors import CheckpointError, EnvironmentFault, OptionError
from library.log import LOGGER_NAME
from library.options.groups import NetworkOptions
from library.training.network_module import (
    as_modules_take,
    changed_encoders,
    check_network,
    import_network_module,
    pickled_network,
)
from networks.targets import ModelOutline

OPTIONS = NetworkOptions(network_module="foreign")
MODEL = ModelOutline("sd3", {}, 2)
BODIES = {
    "reads": 'return kwargs.get("algo"), kwargs["factor"], kwargs.pop("rank", 4)',
    "hands on": 'algo = kwargs.get("algo")\n    return dict(**kwargs)',
    "gives away": 'algo = kwargs.get("algo")\n    return print(kwargs)',
    "keeps": 'algo = kwargs.get("algo")\n    settings = kwargs\n    return settings',
    "reads nothing": "return None",
}


@pytest.fixture
def warnings_of(tmp_path, monkeypatch, caplog):
    """warnings_of(body, arguments) gives what is logged for a module whose create_network has that body."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)

    def check(body, arguments):
        name = f"foreign_{abs(hash(body))}"
        source = f"RENAMED = {{'old_rank': 'rank'}}\n\ndef create_network(dim, **kwargs):\n    RENAMED\n    {body}\n"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        check_network(importlib.import_module(name), OPTIONS, arguments, model=MODEL, depth=2)
        return [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]

    return check


def test_unknown_arguments_are_warnings_with_the_nearest_name(warnings_of):
    given = {"algoo": "lokr", "zzz": "1", "algo": "a", "factor": "4", "rank": "2", "dim": "1", "old_rank": "3"}
    first, second = warnings_of(BODIES["reads"], given)
    assert first.startswith("--network_args algoo: foreign_") and first.endswith("Did you mean algo?")
    assert second.startswith("--network_args zzz: foreign_") and second.endswith("has no effect.")


@pytest.mark.parametrize("body", ["hands on", "gives away", "keeps", "reads nothing"])
def test_nothing_is_said_where_it_cannot_be_told(warnings_of, body):
    assert warnings_of(BODIES[body], {"algoo": "lokr"}) == []


def test_our_own_modules_refuse_instead():
    with pytest.raises(OptionError, match="x_attn_dim"):
        check_network(importlib.import_module("networks.lora"), OPTIONS, {"x_attn_dimm": "4"}, model=MODEL, depth=2)


def test_known_module_of_a_missing_package_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lycoris", None)
    monkeypatch.setitem(sys.modules, "lycoris.kohya", None)
    with pytest.raises(EnvironmentFault, match="pip install lycoris-lora"):
        import_network_module("lycoris.kohya")


def test_a_module_of_older_guides_is_told_what_does_the_same():
    with pytest.raises(OptionError, match=r"locon_kohya: cannot be imported.*networks\.lora, whose .* conv_dim"):
        import_network_module("locon.locon_kohya")


def test_the_only_encoder_of_a_family_is_no_list():
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    assert as_modules_take([first], ("clip",)) is first
    assert as_modules_take([first], ("clip_l", "clip_g")) == [first]
    assert as_modules_take([first, second], ("clip_l", "clip_g")) == [first, second]
    assert as_modules_take([], ("clip",)) == []


class Touching:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_that_could_run_code_is_read_where_it_is_allowed_and_runs_none(tmp_path):
    path, mark = tmp_path / "a.ckpt", tmp_path / "was_run"
    torch.save({"lora_te_a.alpha": torch.ones(()), "extra": Touching(mark)}, path)
    options = NetworkOptions(network_module="foreign", network_weights=path)
    module = ModuleType("foreign")
    module.create_network = lambda: None
    with pytest.raises(CheckpointError, match="--allow_pickle"):
        check_network(module, options, {}, model=MODEL, depth=2)
    check_network(module, options, {}, model=MODEL, depth=2, allow_pickle=True)
    assert pickled_network(path) == {"lora_te_a.alpha": torch.ones(())}
    assert changed_encoders(path, ("clip",)) == ("clip",)
    assert not mark.exists()
