"""--network_args of networks.lora for U-Nets, before any weights are read."""

import math
import subprocess
import sys

import pytest

from library.errors import OptionError
from networks.lora import check_network_args
from networks.targets import ModelOutline
from networks.unet_args import parse_network_args
from networks.unet_blocks import LAYOUTS
from networks.unet_targets import denoiser_rules

SD, SDXL = LAYOUTS["sd1"], LAYOUTS["sdxl"]
XL = ModelOutline("sdxl", {"input_blocks.4.1.proj_in": (64, 64), "input_blocks.4.0.in_layers.2": (64, 64, 3, 3)}, 1)


def parse(layout=SD, **arguments):
    return parse_network_args(arguments, layout)


@pytest.mark.parametrize(("layout", "length"), [(SD, 25), (SDXL, 23)])
def test_lists_have_a_value_for_each_block(layout, length):
    assert parse(layout, block_dims=",".join(["4"] * length)).block_dims == (4,) * length
    assert parse(layout, conv_block_alphas="[" + ", ".join(["0.5"] * length) + "]").conv_block_alphas == (0.5,) * length
    for wrong in (length - 1, length + 1, 1):
        with pytest.raises(OptionError, match=rf"must be {length} ranks, .*, not {wrong}\."):
            parse(layout, block_dims=",".join(["4"] * wrong))


@pytest.mark.parametrize(
    ("published", "sd", "sdxl"),
    [
        ("time_embed.0", None, 0),
        ("label_emb.0.2", None, 0),
        ("input_blocks.0.0", 0, 1),
        ("input_blocks.4.1.proj_in", 4, 5),
        ("middle_block.0.in_layers.2", 12, 10),
        ("middle_block.2.in_layers.2", 12, 12),
        ("output_blocks.0.0.in_layers.2", 13, 13),
        ("output_blocks.8.1.proj_in", 21, 21),
        ("out.2", None, 22),
    ],
)
def test_blocks_are_counted_from_the_input_to_the_output(published, sd, sdxl):
    assert (SD.block(published), SDXL.block(published)) == (sd, sdxl)


def test_presets_of_learning_rate_factors():
    rates = parse(SDXL, down_lr_weight="sine+.5", up_lr_weight="reverse_linear", mid_lr_weight="0.25").rate_factors(
        SDXL
    )
    assert rates[1:10] == pytest.approx([math.sin(math.pi / 2 * i / 8) + 0.5 for i in range(9)])
    assert rates[10:13] == (0.25,) * 3
    assert rates[13:22] == pytest.approx([1 - i / 8 for i in range(9)])
    mirrored = parse(down_lr_weight="cosine", up_lr_weight="sine").rate_factors(SD)
    assert mirrored[:12] == mirrored[:12:-1]
    assert mirrored[12] == 1
    assert parse(down_lr_weight="zeros + 0.1").rate_factors(SD) == (0.1,) * 12 + (1.0,) * 13


def test_one_number_is_for_every_block_of_the_stretch():
    assert parse(up_lr_weight="0.5").up_lr_weight == (0.5,) * 12
    assert parse(mid_lr_weight="0.5").mid_lr_weight == (0.5,)


def test_factors_up_to_the_threshold_are_0():
    rates = parse(down_lr_weight="linear", block_lr_zero_threshold="0.5").rate_factors(SD)
    assert rates[:6] == (0.0,) * 6
    assert rates[6:12] == pytest.approx([i / 11 for i in range(6, 12)])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conv_dim", "-1", "a rank, 0 or more"),
        ("conv_alpha", "-1", "0 or more"),
        ("block_dims", ",".join(["4"] * 24) + ",x", "a rank, 0 or more"),
        ("down_lr_weight", "1,1,1", "must be 12 numbers, one for each block, or one for all, not 3"),
        ("down_lr_weight", "cosin+.2", "did you mean cosine"),
        ("down_lr_weight", "half", "presets are cosine"),
        ("up_lr_weight", "sine+x", "a number, 0 or more"),
        ("up_lr_weight", "-1", "a number, 0 or more"),
        ("mid_lr_weight", "cosine", "a number, 0 or more"),
        ("mid_lr_weight", "1,1", "must be one number, not 2"),
        ("network_reg_dims", "attn2", "is no pattern=rank"),
        ("network_reg_dims", "[=4", "no regular expression"),
        ("network_reg_lrs", "ff=-1", "0 or more"),
        ("conv_dimm", "4", "did you mean conv_dim"),
        ("train_block_indices", "4", "is not an argument of this network"),
        ("algo", "loha", "but of --network_module=lycoris.kohya"),
    ],
)
def test_wrong_values_are_named(name, value, message):
    with pytest.raises(OptionError, match=message) as caught:
        parse(**{name: value})
    assert str(caught.value).startswith(f"--network_args {name}")


def test_all_problems_are_told_at_once():
    with pytest.raises(OptionError) as caught:
        parse(conv_dim="x", block_dim="4", mid_lr_weight="sine")
    assert all(name in str(caught.value) for name in ("conv_dim", "block_dim ", "mid_lr_weight"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv_alpha": "1"}, "conv_alpha has no effect without conv_dim"),
        ({"block_lr_zero_threshold": "0.1"}, "no effect without down_lr_weight"),
        ({"block_dims": ",".join(["4"] * 23)}, "no adapters are made in blocks 0 and 1 and 22"),
    ],
)
def test_what_has_no_effect_is_a_warning(arguments, message):
    assert message in parse(SDXL, **arguments).warnings(SDXL)[0]
    assert not parse(SDXL, conv_dim="4", conv_alpha="1", down_lr_weight="sine").warnings(SDXL)


def ranks(names, **arguments):
    """{name: (rank, alpha)} by the table of an SDXL model."""
    from networks.targets import plan_modules

    rules = denoiser_rules(parse(SDXL, **arguments), SDXL, 8, 2.0)
    return {plan.name: (plan.rank, plan.alpha) for plan in plan_modules(names, rules)}


LAYERS = ["input_blocks.4.1.proj_in", "input_blocks.4.0.emb_layers.1", "input_blocks.4.0.in_layers.2", "out.2"]


def test_convolutions_come_by_conv_dim():
    assert ranks(LAYERS) == {LAYERS[0]: (8, 2.0)}
    assert ranks(LAYERS, conv_dim="3") == {LAYERS[0]: (8, 2.0), LAYERS[1]: (8, 2.0), LAYERS[2]: (3, 1.0)}
    assert LAYERS[2] not in ranks(LAYERS, conv_dim="0")


def test_an_alpha_of_0_is_the_rank():
    assert ranks(LAYERS, conv_dim="3", conv_alpha="0")[LAYERS[2]] == (3, 3.0)
    zeros = ",".join(["0"] * 23)
    found = ranks(LAYERS, conv_dim="3", block_alphas=zeros, conv_block_alphas=zeros)
    assert (found[LAYERS[0]], found[LAYERS[2]]) == ((8, 8.0), (3, 3.0))


def test_lists_set_rank_and_alpha_of_a_block_and_fall_back_to_the_general_ones():
    dims = ",".join("5" if block == 5 else "0" for block in range(23))
    assert ranks([*LAYERS, "input_blocks.5.1.proj_in"], block_dims=dims) == {LAYERS[0]: (5, 2.0)}
    assert ranks(LAYERS, block_alphas=dims.replace("0", "1"))[LAYERS[0]] == (8, 5.0)
    assert ranks(LAYERS, conv_block_dims=dims, conv_alpha="0.5")[LAYERS[2]] == (5, 0.5)
    assert ranks(LAYERS, conv_dim="3", conv_block_alphas=dims.replace("0", "1"))[LAYERS[2]] == (3, 5.0)


def test_blocks_without_learning_rate_get_no_adapter():
    assert not ranks(LAYERS, down_lr_weight="zeros", conv_dim="4")
    assert ranks(LAYERS, up_lr_weight="zeros")


def test_nothing_to_train_is_an_error():
    none = {"down_lr_weight": "0"}
    check_network_args(none, model=XL)
    check_network_args({}, model=XL, trains_text_encoders=False)
    with pytest.raises(OptionError, match="0 modules"):
        check_network_args(none, model=XL, trains_text_encoders=False)
    with pytest.raises(OptionError, match="0 modules"):
        check_network_args({}, model=XL, trains_text_encoders=False, trains_denoiser=False)
    with pytest.raises(OptionError, match="--network_dim"):
        check_network_args({}, model=XL, network_dim=0)


def test_arguments_for_what_does_not_train_are_warned_of(caplog):
    given = {"conv_dim": "2", "up_lr_weight": "1", "loraplus_text_encoder_lr_ratio": "2", "network_reg_dims": "te=2"}
    check_network_args(given, model=XL)
    assert not caplog.records
    check_network_args(given, model=XL, trains_denoiser=False)
    check_network_args(given, model=XL, trains_text_encoders=False)
    assert [record.getMessage().partition(" ")[2] for record in caplog.records] == [
        "conv_dim, up_lr_weight: no effect with --network_train_text_encoder_only.",
        "loraplus_text_encoder_lr_ratio: no effect with --network_train_unet_only.",
    ]


def test_the_module_for_sd3_refuses_other_models():
    from networks import lora_sd3

    with pytest.raises(OptionError, match=r"is for SD3.*Use networks\.lora\."):
        lora_sd3.check_network_args({}, model=XL)


def test_checking_needs_no_torch():
    code = (
        "import sys; from networks.targets import ModelOutline;"
        "from networks.lora import check_network_args, check_network_file;"
        "model = ModelOutline('sd1', {'down_blocks.0.attentions.0.proj_in': (4, 4, 1, 1)}, 1);"
        "args = check_network_args({'conv_dim': '4'}, model=model);"
        "name, shapes = 'lora_unet_down_blocks_0_attentions_0_proj_in', {};"
        "shapes[name + '.lora_down.weight'], shapes[name + '.lora_up.weight'] = (4, 4, 1, 1), (4, 4, 1, 1);"
        "check_network_file(shapes, 'a', model=model, args=args, trains_text_encoders=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
