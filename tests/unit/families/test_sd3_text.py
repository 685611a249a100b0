"""SD3's text layout: tokens of three encoders, dropout, and the joined context."""

import re

import pytest
import torch
from torch import nn

from library.errors import CheckpointError
from library.families.sd3.checkpoint import inspect_files, read_part
from library.families.sd3.text import drop, encode, join, tokenize
from library.families.sd3.text_sizes import caption_cuts, caption_lengths, text_state_bytes
from library.models.text_encoders import load_clip, load_t5
from library.models.tokenizers import TextTokenizer, load_tokenizers
from library.models.vocabulary import Vocabulary


def _tokenizer(name):
    def spans(caption):
        return [match.span() for match in re.finditer(r"\S+", caption)]

    def encode(caption):
        return [10 + end - start for start, end in spans(caption)]

    def start_of(caption, number):
        return spans(caption)[number][0] if number < len(spans(caption)) else None

    vocabulary = Vocabulary("clip", None, {}, encode, start_of)
    start, end, pad = {"clip_l": (97, 98, 98), "clip_g": (97, 98, 0), "t5xxl": (None, 1, 0)}[name]
    return TextTokenizer(name, vocabulary, None if name == "t5xxl" else 77, start, end, pad)


def _states(batch=2, dtype=torch.float32):
    shapes = {"clip_l": (77, 8), "clip_l_pooled": (8,), "clip_g": (77, 12), "clip_g_pooled": (12,), "t5xxl": (5, 32)}
    return {name: torch.rand(batch, *shape).to(dtype) + 0.1 for name, shape in shapes.items()}


def test_tokens_have_the_published_paddings():
    tokens = tokenize({name: _tokenizer(name) for name in ("clip_l", "clip_g", "t5xxl")}, ["a cat", ""], t5_length=6)
    assert tokens["clip_l"].shape == tokens["clip_g_mask"].shape == (2, 77)
    assert tokens["clip_l"][0, :6].tolist() == [97, 11, 13, 98, 98, 98]
    assert tokens["clip_g"][0, :6].tolist() == [97, 11, 13, 98, 0, 0]
    assert tokens["t5xxl"].tolist() == [[11, 13, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert tokens["t5xxl_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert tokens["clip_l_mask"].sum(1).tolist() == [4, 2]


def test_long_captions_keep_their_end_token():
    tokens = tokenize({"clip_l": _tokenizer("clip_l"), "t5xxl": _tokenizer("t5xxl")}, ["word " * 600], t5_length=256)
    assert tokens["clip_l"].shape == (1, 77) and tokens["clip_l"][0, -1] == 98
    assert tokens["t5xxl"].shape == (1, 256) and tokens["t5xxl"][0, -1] == 1
    assert tokens["t5xxl_mask"].all()


@pytest.mark.parametrize("encoder", ["clip_l", "clip_g", "t5xxl"])
def test_dropout_zeroes_one_encoder_of_the_samples_drawn(encoder):
    states = _states()
    before = {name: state.clone() for name, state in states.items()}
    uniform = {name: torch.tensor([0.2, 0.7]) for name in ("clip_l", "clip_g", "t5xxl")}
    rates = {name: 0.5 if name == encoder else 0.0 for name in uniform}
    dropped = drop(states, uniform, rates)
    for name, state in dropped.items():
        if name in (encoder, f"{encoder}_pooled"):
            assert state[0].count_nonzero() == 0
            assert torch.equal(state[1], before[name][1])
        else:
            assert torch.equal(state, before[name])
    assert all(torch.equal(states[name], before[name]) for name in states)


def test_dropout_at_rate_one_drops_every_draw_and_at_zero_none():
    uniform = {name: torch.tensor([0.0, 1 - 2**-24]) for name in ("clip_l", "clip_g", "t5xxl")}
    assert all(s.count_nonzero() == 0 for s in drop(_states(), uniform, dict.fromkeys(uniform, 1.0)).values())
    assert all((s > 0).all() for s in drop(_states(), uniform, dict.fromkeys(uniform, 0.0)).values())


def test_join_lays_clip_side_by_side_and_t5_below():
    states = _states()
    joined = join(states, context_dim=32, pooled_dim=20)
    assert joined.context.shape == (2, 82, 32)
    assert torch.equal(joined.context[:, :77, :8], states["clip_l"])
    assert torch.equal(joined.context[:, :77, 8:20], states["clip_g"])
    assert joined.context[:, :77, 20:].count_nonzero() == 0
    assert torch.equal(joined.context[:, 77:], states["t5xxl"])
    assert torch.equal(joined.pooled, torch.cat([states["clip_l_pooled"], states["clip_g_pooled"]], -1))


def test_join_keeps_the_precision_of_the_states():
    assert join(_states(dtype=torch.bfloat16), context_dim=32).context.dtype == torch.bfloat16


def test_join_takes_cached_half_precision_t5_beside_live_clip():
    states = {**_states(), "t5xxl": torch.ones(2, 5, 32, dtype=torch.bfloat16)}
    assert join(states, context_dim=32).context.dtype == torch.float32


def test_join_names_the_encoder_that_does_not_fit():
    with pytest.raises(CheckpointError, match="t5xxl is 32 wide, the model expects 64"):
        join(_states(), context_dim=64)
    with pytest.raises(CheckpointError, match="clip_l and clip_g are 20 wide together, the model expects 2048"):
        join(_states(), context_dim=32, pooled_dim=2048)


def test_gradients_reach_the_clip_encoders(tiny_clip_tensors):
    encoders = {name: load_clip(tiny_clip_tensors(name), kind=name) for name in ("clip_l", "clip_g")}
    tokens = {name: torch.tensor([[30, 3, 4, 31, 31]]) for name in encoders}
    states = encode(encoders, tokens, apply_lg_attn_mask=False, apply_t5_attn_mask=False)
    sum(state.square().sum() for state in states.values()).backward()
    for encoder in encoders.values():
        assert encoder.text_model.encoder.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


def test_masked_padding_cannot_change_what_is_left(tiny_clip_tensors, tiny_t5_tensors):
    """With the masks on, the padding tokens may be anything."""
    encoders = {"clip_g": load_clip(tiny_clip_tensors("clip_g"), kind="clip_g"), "t5xxl": load_t5(tiny_t5_tensors)}
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    results = []
    for filler in (0, 7):
        tokens = {
            "clip_g": torch.tensor([[30, 3, 31, filler, filler]]),
            "clip_g_mask": mask,
            "t5xxl": torch.tensor([[5, 6, 1, filler, filler]]),
            "t5xxl_mask": mask,
        }
        with torch.no_grad():
            results.append(encode(encoders, tokens, apply_lg_attn_mask=True, apply_t5_attn_mask=True))
    for name, state in results[0].items():
        assert torch.equal(state, results[1][name])
        assert state.abs().max() > 0


@pytest.fixture
def tiny_clip_tensors():
    def make(kind, width=32, num_tokens=32, num_layers=2):
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        torch.manual_seed(len(kind) + width)
        config = CLIPTextConfig(
            vocab_size=num_tokens, hidden_size=width, intermediate_size=2 * width, projection_dim=width,
            num_hidden_layers=num_layers, num_attention_heads=2, max_position_embeddings=77,
        )  # fmt: skip
        return _randomised(CLIPTextModelWithProjection(config))

    return make


@pytest.fixture
def tiny_t5_tensors():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=24, d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return _randomised(T5EncoderModel(config))


def _randomised(model: nn.Module):
    return {name: torch.randn_like(tensor) * 0.2 for name, tensor in model.state_dict().items()}


def test_lengths_and_cuts_are_told_for_each_encoder():
    tokenizers = {name: _tokenizer(name) for name in ("clip_l", "clip_g", "t5xxl")}
    long = " ".join(["word"] * 80)
    lengths = caption_lengths(tokenizers, ["a cat", long, "a cat"], t5_length=20)
    assert lengths == {"clip_l": ([4, 82, 4], 77), "clip_g": ([4, 82, 4], 77), "t5xxl": ([3, 81, 3], 20)}
    assert caption_cuts(tokenizers, long, t5_length=20) == {"clip_l": 75 * 5, "clip_g": 75 * 5, "t5xxl": 19 * 5}
    assert caption_cuts(tokenizers, "a cat", t5_length=20) == {}


def test_room_of_outputs_is_that_of_the_outputs(tiny_sd3):
    files = inspect_files(tiny_sd3)
    names, captions = ("clip_l", "clip_g", "t5xxl"), ["a red star", "a blue circle on a white background"]
    family = {"t5_length": 16, "element_bytes": 4}
    tokenizers = load_tokenizers(names, model_path=tiny_sd3)
    tokens = tokenize(tokenizers, captions, t5_length=16)
    encoders = {
        "clip_l": load_clip(read_part(files.clip_l, dtype=torch.float32), kind="clip_l"),
        "clip_g": load_clip(read_part(files.clip_g, dtype=torch.float32), kind="clip_g"),
        "t5xxl": load_t5(read_part(files.t5xxl, dtype=torch.float32)),
    }
    with torch.no_grad():
        states = encode(encoders, tokens, apply_lg_attn_mask=False, apply_t5_attn_mask=True)
    whole = sum(state.numel() for name, state in states.items() if name != "t5xxl")
    rows = int(tokens["t5xxl_mask"].sum())  # T5's padding is zero, so it is not stored
    expected = 4 * (whole + rows * states["t5xxl"].shape[-1])
    counts = caption_lengths(tokenizers, captions, t5_length=16)
    lengths = [{name: numbers[index] for name, (numbers, _) in counts.items()} for index in range(2)]
    assert text_state_bytes(files, names, lengths, masked=["t5xxl"], **family) == expected
