"""Which options change the validation loss itself, and which only the way there."""

import pytest

from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.families.sdxl.options import SDXL_NETWORK_SCRIPT, SdxlNetworkOptions
from library.options.spec import parse_options
from library.training.sweeping.comparable import differing

NEEDED = ["--pretrained_model_name_or_path=a", "--output_dir=o", "--network_module=networks.lora", "--dataset_config=d"]


def parse(flag: str, options_class=Sd3NetworkOptions, text=NETWORK_SCRIPT):
    return parse_options(options_class, [*NEEDED, *([flag] if flag else [])], **text)


@pytest.mark.parametrize(
    "flag",
    [
        *("--weighting_scheme=sigma_sqrt", "--t5xxl_max_token_length=77", "--loss_type=l1", "--mixed_precision=bf16"),
        *("--apply_t5_attn_mask", "--caption_prefix=a", "--resolution=32", "--min_timestep=100"),
    ],
)
def test_what_changes_the_loss_is_named(flag: str):
    assert differing([parse(""), parse(flag)]) == (flag[2:].partition("=")[0],)


def test_the_layer_of_the_text_encoder_is_one_of_them():
    own, other = (parse(flag, SdxlNetworkOptions, SDXL_NETWORK_SCRIPT) for flag in ("", "--v_parameterization"))
    assert differing([own, other]) == ("v_parameterization",)


@pytest.mark.parametrize(
    "flag",
    [
        *("--network_dim=8", "--learning_rate=1", "--seed=3", "--optimizer_type=SGD", "--max_train_steps=9"),
        *("--caption_dropout_rate=0.1", "--flip_aug", "--dataset_config=e", "--ema_decay=0.9", "--network_args=a=b"),
        *("--save_every_n_steps=1", "--gradient_checkpointing", "--cache_latents", "--t5_dropout_rate=0.1"),
    ],
)
def test_what_only_leads_there_is_not(flag: str):
    assert differing([parse(""), parse(flag)]) == ()
