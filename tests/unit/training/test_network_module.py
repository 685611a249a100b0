"""Arguments for network modules of other packages, whose source says what they read."""

import importlib
import logging
import sys

import pytest

from library.errors import EnvironmentFault, OptionError
from library.log import LOGGER_NAME
from library.options.groups import NetworkOptions
from library.training.network_module import check_network, import_network_module

OPTIONS = NetworkOptions(network_module="foreign")
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
        check_network(importlib.import_module(name), OPTIONS, arguments, depth=2)
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
        check_network(importlib.import_module("networks.lora"), OPTIONS, {"x_attn_dimm": "4"}, depth=2)


def test_known_module_of_a_missing_package_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lycoris", None)
    monkeypatch.setitem(sys.modules, "lycoris.kohya", None)
    with pytest.raises(EnvironmentFault, match="pip install lycoris-lora"):
        import_network_module("lycoris.kohya")
