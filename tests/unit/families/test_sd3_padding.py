"""Where the SD3 family merges padding: with masks, on hosts that know the lengths, and without changing a loss."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from library.data.cache import used_rows
from library.diffusion.loss import LossSettings
from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.models.attention import flash_attention, torch_attention, use_attention
from library.options.spec import parse_options
from library.records import Batch, BatchPlan, PlannedItem, Size
from library.training.encoding.text_stage import TextStage
from library.training.stepping.batch_loss import BatchLoss

CPU = torch.device("cpu")
NAMES = ["clip_l", "clip_g", "t5xxl"]
CAPTIONS = ["a red circle", "a blue star on white, and beside it two small green squares"]
MASKS = ("--apply_lg_attn_mask", "--apply_t5_attn_mask")
LENGTH = 77 + 64


@pytest.fixture(scope="module")
def make_family(tiny_sd3, tmp_path_factory):
    def make(*flags):
        arguments = [f"--pretrained_model_name_or_path={tiny_sd3}", f"--output_dir={tmp_path_factory.mktemp('out')}"]
        arguments += ["--dataset_config=none.toml", "--network_module=networks.lora", "--t5xxl_max_token_length=64"]
        return Sd3Family.from_options(parse_options(Sd3NetworkOptions, [*arguments, *flags], **NETWORK_SCRIPT))

    return make


@pytest.fixture(scope="module")
def parts(make_family):
    """Denoiser, encoders, tokenizers."""
    family = make_family()
    files = family.inspect()
    encoders = family.load_text_encoders(files, torch.float32, CPU, NAMES)
    return family.load_denoiser(files, torch.float32, CPU), encoders, family.load_tokenizers(files, NAMES)


@pytest.fixture
def denoiser(parts):
    yield parts[0]
    use_attention(parts[0], torch_attention)


def stage(family, parts):
    return TextStage(family, CPU, parts[1], parts[2])


def batch_of(captions, **fields):
    plan = BatchPlan(1, 0, 0, Size(64, 64), tuple(PlannedItem(number, 0) for number in range(len(captions))))
    latents = torch.randn(len(captions), 16, 8, 8, generator=torch.Generator().manual_seed(1))
    ids = tuple(f"{number}#0" for number in range(len(captions)))
    return Batch(plan, ids, tuple(captions), torch.ones(len(captions)), latents=latents, **fields)


def losses(family, denoiser, text, batch):
    """Losses of the batch, and the rows of each context that the denoiser got."""
    rows = []
    handle = denoiser.register_forward_pre_hook(lambda module, arguments: rows.append(arguments[2].shape[1]))
    make = BatchLoss(family, denoiser, text, lambda: None, LossSettings(), nullcontext, nullcontext, seed=1)
    found = torch.cat([make(batch).losses, make.at(batch, 500.0, 0).losses])
    handle.remove()
    return found, rows


@pytest.mark.parametrize(
    "flags",
    [MASKS, MASKS[:1], (*MASKS, "--clip_l_dropout_rate=0.5", "--clip_g_dropout_rate=0.5", "--t5_dropout_rate=0.5")],
    ids=["both masks", "one mask", "dropped encoders"],
)
def test_losses_are_those_with_all_rows_to_rounding(make_family, parts, denoiser, flags):
    family = make_family(*flags)
    found, rows = losses(family, denoiser, stage(family, parts), batch_of(CAPTIONS))
    plain = replace(family, merges_padding=False)
    expected, all_rows = losses(plain, denoiser, stage(plain, parts), batch_of(CAPTIONS))
    assert max(rows) < LENGTH and set(all_rows) == {LENGTH}
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


def test_cached_and_live_states_are_merged_alike(make_family, parts, denoiser):
    family = make_family(*MASKS)
    text = stage(family, parts)
    samples = [{name: state[0] for name, state in text.encode([caption]).items()} for caption in CAPTIONS]
    rows = used_rows(samples)
    assert rows == family.text_rows(family.tokenize(parts[2], CAPTIONS))
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    cached = batch_of(CAPTIONS, text=stacked, text_rows=rows)
    live, cut = (losses(family, denoiser, one, batch) for one, batch in [
        (text, batch_of(CAPTIONS)), (TextStage(family, CPU), cached)
    ])  # fmt: skip
    assert cut[1] == live[1]
    torch.testing.assert_close(cut[0], live[0], rtol=1e-6, atol=0)
    part = cached.take(range(1, 2))
    assert part.text_rows == {name: numbers[1:] for name, numbers in rows.items()}


def test_prompts_are_merged_whether_cached_or_live(make_family, parts):
    family = make_family(*MASKS)
    live = stage(family, parts)
    states = {caption: {name: state[0] for name, state in live.encode([caption]).items()} for caption in CAPTIONS}
    cached = TextStage(family, CPU, prompts=states)
    first, second = (text.for_prompts(CAPTIONS, parts[0]).is_used for text in (live, cached))
    assert torch.equal(first, second) and 0 < first.sum() < first.numel()


def test_without_masks_nothing_is_merged(make_family, parts, denoiser):
    family = make_family()
    _, rows = losses(family, denoiser, stage(family, parts), batch_of(CAPTIONS))
    assert set(rows) == {LENGTH}


def test_padding_may_be_merged_where_fewer_rows_pay(make_family):
    gpu, small, large = torch.device("cuda"), Size(256, 256), Size(1024, 1024)
    family = make_family(*MASKS)
    assert family.may_merge_padding(small, gpu) and not family.may_merge_padding(large, gpu)
    assert family.may_merge_padding(large, CPU)
    assert not make_family().may_merge_padding(small, CPU)


@pytest.mark.parametrize("flag", ["--network_dropout=0.1", "--network_args=dropout=0.1"])
def test_dropout_of_single_values_keeps_all_rows(make_family, flag):
    assert not make_family(*MASKS, flag).merges_padding
    assert make_family(*MASKS, "--network_args=rank_dropout=0.1").merges_padding


def test_an_attention_that_takes_no_bias_gets_all_rows(make_family, parts, denoiser):
    family = make_family(*MASKS)
    use_attention(denoiser, flash_attention)
    seen = []

    def stop(module, arguments):
        seen.append(arguments[2].shape[1])
        raise InterruptedError

    handle = denoiser.register_forward_pre_hook(stop)
    conditioning = stage(family, parts).for_prompts(CAPTIONS, denoiser)
    with pytest.raises(InterruptedError):
        family.predict(denoiser, torch.zeros(2, 16, 8, 8), torch.zeros(2), conditioning)
    handle.remove()
    assert seen == [LENGTH] and conditioning.is_used is not None


def test_zeros_that_stand_for_a_missing_t5_are_merged(make_family, parts):
    family = make_family(*MASKS)
    text = TextStage(family, CPU, {name: parts[1][name] for name in NAMES[:2]}, parts[2])
    conditioning = text.for_prompts(CAPTIONS, parts[0])
    assert conditioning.context.shape[1] == 77 + 77
    assert not conditioning.is_used[:, 77:].any()


def test_conditioning_of_some_samples_knows_their_rows(make_family, parts):
    conditioning = stage(make_family(*MASKS), parts).for_prompts(CAPTIONS, parts[0])
    one = torch.tensor([1])
    own = conditioning.take(one, one)
    assert torch.equal(own.context[0], conditioning.context[1])
    assert torch.equal(own.is_used[0], conditioning.is_used[1])
    assert conditioning.is_used[0].sum() < conditioning.is_used[1].sum()
    zeros = conditioning.context[~conditioning.is_used]
    assert len(zeros) and (zeros == 0).all()
