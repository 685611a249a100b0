import subprocess
import sys

import pytest

from library.errors import OptionError
from networks.lora_sd3 import check_network_args
from networks.sd3_args import Sd3NetworkArgs, parse_network_args
from networks.sd3_targets import denoiser_rules
from networks.targets import plan_modules


def test_values_as_they_are_typed():
    args = parse_network_args(
        {
            "context_attn_dim": "2",
            "x_mod_dim": "0",
            "emb_dims": "[2, 3,4,5,6,7]",
            "train_block_indices": "1,2,6-8",
            "split_qkv": "true",
            "verbose": "False",
            "rank_dropout": "0.1",
            "loraplus_lr_ratio": "16",
            "dropout": None,
        },
        24,
    )
    assert args == Sd3NetworkArgs(
        context_attn_dim=2,
        x_mod_dim=0,
        emb_dims=(2, 3, 4, 5, 6, 7),
        train_block_indices=frozenset({1, 2, 6, 7, 8}),
        split_qkv=True,
        rank_dropout=0.1,
        loraplus_lr_ratio=16.0,
    )


@pytest.mark.parametrize(
    ("text", "indices"),
    [("all", None), ("none", frozenset()), ("", frozenset()), ("0-23", frozenset(range(24))), (" 3 , 5 ", {3, 5})],
)
def test_block_indices(text, indices):
    assert parse_network_args({"train_block_indices": text}, 24).train_block_indices == indices


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x_attn_dimm", "2", "did you mean x_attn_dim"),
        ("x_attn_dim", "four", "x_attn_dim=four: must be a rank"),
        ("x_attn_dim", "-1", "must be a rank"),
        ("x_attn_dim", "2.5", "must be a rank"),
        ("emb_dims", "1,2,3", "six ranks"),
        ("emb_dims", "1,2,3,4,5,-6", "six ranks"),
        ("train_block_indices", "3,24", "no block 24; its blocks are 0 to 23"),
        ("train_block_indices", "0-99", "its blocks are 0 to 23"),
        ("train_block_indices", "5-2", "write 2-5"),
        ("train_block_indices", "1,,2", "no block index"),
        ("train_block_indices", "first", "no block index"),
        ("split_qkv", "yes please", "True or False"),
        ("rank_dropout", "1.0", "below 1"),
        ("module_dropout", "nan", "below 1"),
        ("loraplus_lr_ratio", "0", "above 0"),
        ("loraplus_lr_ratio", "inf", "above 0"),
    ],
)
def test_wrong_values_are_named(name, value, message):
    with pytest.raises(OptionError, match=message) as caught:
        parse_network_args({name: value}, 24)
    assert str(caught.value).startswith("--network_args ")


def test_all_problems_are_told_at_once():
    with pytest.raises(OptionError) as caught:
        parse_network_args({"emb_dims": "1", "x_mlp_dimm": "3", "verbose": "maybe"})
    assert all(name in str(caught.value) for name in ("emb_dims", "x_mlp_dimm", "verbose"))


def test_unknown_depth_leaves_the_upper_end_open():
    assert parse_network_args({"train_block_indices": "99"}).train_block_indices == {99}


NO_RANKS = {f"{half}_{kind}_dim": "0" for half in ("x", "context") for kind in ("attn", "mlp", "mod")}


@pytest.mark.parametrize("args", [{"train_block_indices": "none"}, NO_RANKS])
def test_nothing_to_train_is_an_error_with_the_valid_range(args):
    check_network_args(args, 24)
    check_network_args({**args, "emb_dims": "0,0,0,0,0,4"}, 24, trains_text_encoders=False)
    with pytest.raises(OptionError, match=r"0 modules.*0 to 23"):
        check_network_args(args, 24, trains_text_encoders=False)
    with pytest.raises(OptionError, match="0 modules"):
        check_network_args({}, 24, trains_text_encoders=False, trains_denoiser=False)


def test_conv_dim_needs_emb_dims():
    assert "conv_dim has no effect" in parse_network_args({"conv_dim": "2"}).warnings()[0]
    args = parse_network_args({"conv_dim": "2", "emb_dims": "1,1,0,1,1,1"})
    assert not args.warnings()
    (planned,) = plan_modules(["x_embedder.proj"], denoiser_rules(args, 4, 8.0))
    assert (planned.rank, planned.alpha) == (2, 1.0)


def test_checking_needs_no_torch():
    code = (
        "import sys; from networks.lora import check_network_args;"
        "check_network_args({'x_attn_dim': '4'}, 24, trains_text_encoders=False); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
