"""Text of SD 1.x, 2.x and SDXL on small random encoders: weights, rows, which layer is read, sizes."""

import pytest
import torch

from library.errors import OptionError
from library.families.unet.text import (
    SDXL_LAYERS,
    LayerChoice,
    check_clip_skip,
    encode,
    join_sd,
    join_sdxl,
    reached_parameters,
    sd_layers,
    text_settings,
    tokenize,
)
from library.families.unet.text_sizes import caption_cuts, caption_lengths, text_state_bytes
from library.models.tokenizers import TextTokenizer
from library.models.vocabulary import Vocabulary

LAYERS = 4
WIDTHS = {"clip_l": 16, "clip_g": 24}


def words(caption):
    return [10 + len(word) for word in caption.split()]


def start_of(caption, number):
    parts = caption.split(" ")
    return len(" ".join(parts[:number]) + " ") if number < len(caption.split()) else None


def tokenizer(name, pad=98):
    return TextTokenizer(name, Vocabulary("clip", None, {}, words, start_of), 77, 97, 98, pad)


def encoder(width, seed=0):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    ids = {"vocab_size": 99, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    return CLIPTextModelWithProjection(
        CLIPTextConfig(num_hidden_layers=LAYERS, num_attention_heads=2, **sizes, **ids)
    ).eval()


@pytest.fixture(scope="module")
def clips():
    return {name: encoder(width) for name, width in WIDTHS.items()}


def tokens(captions, num_chunks=1, is_weighted=False):
    both = {"clip_l": tokenizer("clip_l"), "clip_g": tokenizer("clip_g", pad=0)}
    return tokenize(both, captions, num_chunks=num_chunks, is_weighted=is_weighted)


@torch.no_grad()
def states(clips, captions, layers=SDXL_LAYERS, **settings):
    return encode(clips, tokens(captions, **settings), layers=layers)


@pytest.mark.parametrize("num_chunks", [1, 2, 3])
def test_states_have_a_begin_an_end_and_75_rows_for_each_row_of_tokens(clips, num_chunks):
    made = states(clips, ["a red cat", "word " * 160], num_chunks=num_chunks)
    rows = 75 * num_chunks + 2
    assert {name: tuple(state.shape) for name, state in made.items()} == {
        "clip_l": (2, rows, 16),
        "clip_g": (2, rows, 24),
        "clip_g_pooled": (2, 24),
    }


def test_rows_of_a_long_caption_are_read_one_by_one(clips):
    long = states(clips, ["word " * 75 + "a cat"], num_chunks=2)
    first, second = (states(clips, [part]) for part in ("word " * 75, "a cat"))
    for name in ("clip_l", "clip_g"):
        expected = torch.cat([first[name][:, :76], second[name][:, 1:]], dim=1)
        torch.testing.assert_close(long[name], expected)
    torch.testing.assert_close(long["clip_g_pooled"], first["clip_g_pooled"])


def test_weights_multiply_the_states_of_their_words_in_both_encoders(clips):
    plain = states(clips, ["a red cat", "a dog"])
    weighted = states(clips, ["a (red:1.5) [cat]", "a dog"], is_weighted=True)
    factors = torch.ones(2, 77, 1)
    factors[0, 2], factors[0, 3] = 1.5, 1 / 1.1
    for name in ("clip_l", "clip_g"):
        torch.testing.assert_close(weighted[name], plain[name] * factors)
    torch.testing.assert_close(weighted["clip_g_pooled"], plain["clip_g_pooled"])


def test_weights_keep_the_precision_of_the_encoder(clips):
    half = {"clip_l": encoder(16).to(torch.bfloat16)}
    made = states(half, ["a (red:1.1) cat"], is_weighted=True)["clip_l"]
    plain = states(half, ["a red cat"])["clip_l"]
    assert made.dtype == torch.bfloat16
    assert torch.equal(made[0, 2], (plain[0, 2].float() * 1.1).to(torch.bfloat16))


def test_clip_skip_counts_layers_from_the_end_and_the_final_norm_follows(clips):
    clip = {"clip": clips["clip_l"]}
    ids = {"clip": tokens(["a red cat"])["clip_l"]}
    with torch.no_grad():
        output = clips["clip_l"](input_ids=ids["clip"], output_hidden_states=True)
        norm = clips["clip_l"].text_model.final_layer_norm
        for clip_skip in (2, 3, LAYERS):
            found = encode(clip, ids, layers=sd_layers(clip_skip))["clip"]
            torch.testing.assert_close(found, norm(output.hidden_states[-clip_skip]))
        for clip_skip in (None, 1):
            torch.testing.assert_close(encode(clip, ids, layers=sd_layers(clip_skip))["clip"], output.last_hidden_state)
        again = clips["clip_l"](input_ids=ids["clip"]).last_hidden_state
    assert torch.equal(again, output.last_hidden_state)  # nothing stays in the encoder


@pytest.mark.parametrize("layer", [*SDXL_LAYERS.values(), *(LayerChoice(n, True) for n in (1, 2, LAYERS))])
def test_reached_parameters_are_those_that_get_a_gradient(layer):
    model = encoder(16)
    made = encode({"x": model}, {"x": tokens(["a red cat"])["clip_l"]}, layers={"x": layer})
    sum((state * torch.randn_like(state)).sum() for state in made.values()).backward()
    changed = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached_parameters(model, layer).keys() == changed


def test_sd_has_no_pooled_vector_and_sdxl_that_of_clip_g(clips):
    made = states(clips, ["a cat", "a dog"])
    joined = join_sdxl(made)
    assert torch.equal(joined.context, torch.cat([made["clip_l"], made["clip_g"]], dim=-1))
    assert torch.equal(joined.pooled, made["clip_g_pooled"])
    alone = join_sd({"clip": made["clip_l"]})
    assert torch.equal(alone.context, made["clip_l"]) and alone.pooled.shape == (2, 0)


def test_settings_name_what_changes_the_states():
    settings = text_settings(sd_layers(2), num_chunks=3, is_weighted=True)
    assert settings == {"clip_skip": "2", "max_token_length": "225", "weighted_captions": "True"}
    assert text_settings(sd_layers(None), num_chunks=1, is_weighted=False)["clip_skip"] == "1"
    assert "clip_skip" not in text_settings(SDXL_LAYERS, num_chunks=1, is_weighted=False)


def test_clip_skip_beyond_the_layers_is_refused():
    check_clip_skip(None, 1)
    check_clip_skip(12, 12)
    with pytest.raises(OptionError, match="--clip_skip 13: the text encoder of this model has 12 layers"):
        check_clip_skip(13, 12)


def test_lengths_and_cuts_know_rows_and_weights():
    both = {"clip_l": tokenizer("clip_l"), "clip_g": tokenizer("clip_g", pad=0)}
    long = "word " * 80 + "end"
    settings = {"num_chunks": 1, "is_weighted": True}
    assert caption_lengths(both, [long, "a (red:2) cat"], **settings) == dict.fromkeys(both, ([83, 5], 77))
    assert caption_cuts(both, long, **settings) == dict.fromkeys(both, 5 * 75)
    assert caption_lengths(both, [long], num_chunks=2, is_weighted=True)["clip_g"] == ([83], 152)
    assert caption_cuts(both, long, num_chunks=2, is_weighted=True) == {}


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_bytes_are_those_of_the_states(clips, num_chunks):
    made = states(clips, ["a cat", "a dog"], num_chunks=num_chunks)
    expected = sum(state.numel() * 4 for state in made.values())
    assert text_state_bytes(WIDTHS, 2, num_chunks=num_chunks, element_bytes=4) == expected
