"""Which networks may work beside a denoiser in fewer bits, and that a missing package is told first."""

import sys
from types import SimpleNamespace

import pytest

from library.errors import EnvironmentFault, OptionError
from library.options.groups import MemoryOptions
from library.training.base_format import check_base_format

INT8 = MemoryOptions(base_weights_dtype="int8")
OURS, LYCORIS = "networks.lora", "lycoris.kohya"


def test_wide_weights_and_our_own_networks_ask_for_nothing():
    check_base_format(MemoryOptions(), "some.module", {})
    check_base_format(INT8, OURS, {})


def test_lycoris_may_add_to_what_layers_give_and_nothing_else():
    check_base_format(INT8, LYCORIS, {"bypass_mode": "True"})
    for args in ({}, {"bypass_mode": "False"}):
        with pytest.raises(OptionError, match=r"^--base_weights_dtype int8: .* Add bypass_mode=True"):
            check_base_format(INT8, LYCORIS, args)
    with pytest.raises(OptionError, match="dora_wd=True, which needs the norms"):
        check_base_format(INT8, LYCORIS, {"bypass_mode": "True", "dora_wd": "True"})


@pytest.mark.parametrize("flag", ["fp8_base", "fp8_base_unet"])
def test_unknown_modules_are_refused_under_the_name_that_was_typed(flag):
    memory = MemoryOptions(**{flag: True})
    with pytest.raises(OptionError, match=f"^--{flag} cannot be used with --network_module my.module"):
        check_base_format(memory, "my.module", {})


def test_4_bits_without_their_package_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(EnvironmentFault, match=r"--base_weights_dtype nf4 needs the package bitsandbytes, .* int8\.$"):
        check_base_format(MemoryOptions(base_weights_dtype="nf4"), OURS, {})
