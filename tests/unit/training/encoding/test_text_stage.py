"""Text encoders in a step: those that train run under autocast, the others in the precision they are loaded in."""

import pytest
import torch

from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import parse_options
from library.training.encoding.text_stage import TextStage

CAPTIONS = ["a red circle", ""]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def family(tiny_sd3, tmp_path_factory):
    arguments = [f"--pretrained_model_name_or_path={tiny_sd3}", f"--output_dir={tmp_path_factory.mktemp('out')}"]
    arguments += ["--dataset_config=none.toml", "--network_module=networks.lora", "--t5xxl_max_token_length=16"]
    return Sd3Family.from_options(parse_options(Sd3NetworkOptions, arguments, **NETWORK_SCRIPT))


@pytest.fixture
def make_stage(family):
    """make_stage(names, dtype, trained) loads these encoders of the tiny model."""

    def make(names, dtype, trained=()):
        files = family.inspect()
        encoders = family.load_text_encoders(files, dtype, CPU, names)
        return TextStage(family, CPU, encoders, family.load_tokenizers(files, names), trained=trained)

    return make


def test_frozen_t5_keeps_its_range_under_autocast(make_stage):
    stage = make_stage(["t5xxl"], torch.float16)
    t5 = stage.encoders["t5xxl"]
    for name, parameter in t5.named_parameters():
        if name.endswith("DenseReluDense.wo.weight"):
            assert parameter.dtype == torch.float32
            parameter.data *= 1e5  # sums beyond 65504, as the real T5's
    expected = stage.encode(CAPTIONS)
    with torch.autocast("cpu", torch.float16):
        states = stage.encode(CAPTIONS)
        narrowed = t5(input_ids=stage.family.tokenize(stage.tokenizers, CAPTIONS)["t5xxl"]).last_hidden_state
    assert (narrowed - expected["t5xxl"]).abs().max() > 0.1  # transformers cuts what overflows
    assert states["t5xxl"].isfinite().all() and states["t5xxl"].count_nonzero() > 0
    assert states["t5xxl"].dtype == torch.bfloat16  # as a cache keeps it
    assert torch.equal(states["t5xxl"], expected["t5xxl"])


def test_trained_clip_runs_under_autocast_and_gets_gradients(make_stage):
    stage = make_stage(["clip_l", "clip_g"], torch.float32, trained=("clip_l",))
    for encoder in stage.encoders.values():
        encoder.requires_grad_(True)
    outside = stage.encode(CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        inside = stage.encode(CAPTIONS)
    assert outside["clip_l_pooled"].dtype == torch.float32
    assert inside["clip_l_pooled"].dtype == torch.bfloat16
    torch.testing.assert_close(inside["clip_l"].float(), outside["clip_l"], rtol=0.1, atol=0.1)
    assert not torch.equal(inside["clip_l"].float(), outside["clip_l"])
    assert inside["clip_l"].requires_grad and not inside["clip_g"].requires_grad
    for name in ("clip_g", "clip_g_pooled"):
        assert torch.equal(inside[name], outside[name]) and inside[name].dtype == torch.float32


def test_order_of_encoders_changes_nothing(make_stage):
    frozen = make_stage(["clip_l", "clip_g", "t5xxl"], torch.float32).encode(CAPTIONS)
    mixed = make_stage(["clip_l", "clip_g", "t5xxl"], torch.float32, trained=("clip_g",)).encode(CAPTIONS)
    assert frozen.keys() == mixed.keys()
    assert all(torch.equal(mixed[name], frozen[name]) for name in frozen)
