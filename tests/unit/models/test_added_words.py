"""A word with vectors of its own: how texts are read that have it, and what encoders make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples.tiny_sd3.tokenizers import write_tokenizers
from library.errors import CheckpointError
from library.models.added_words import WordTable, add_rows, add_words, token_table, vectors_for, with_word
from library.models.tokenizers import TokenizerSet, load_tokenizers
from library.models.word_places import has_word

NAMES = ("clip_l", "clip_g", "t5xxl")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSet:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    return load_tokenizers(NAMES, tokenizer_dir=folder)


def clip(tokenizer: Any, width: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(width)
    config = CLIPTextConfig(
        vocab_size=tokenizer.vocabulary.rows, hidden_size=width, intermediate_size=64, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77, eos_token_id=2,
    )  # fmt: skip
    return _drawn(CLIPTextModelWithProjection(config))


def t5(tokenizer: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=tokenizer.vocabulary.rows, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    return _drawn(T5EncoderModel(config))


def _drawn(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model.eval().requires_grad_(False)


def encoded(encoder: Any, tokenizer: Any, text: str) -> list[torch.Tensor]:
    ids = torch.tensor([tokenizer.encode(text, 32)[0]])
    output = encoder(input_ids=ids)
    return [output.last_hidden_state, *([output.text_embeds] if hasattr(output, "text_embeds") else [])]


@pytest.mark.parametrize(
    ("text", "is_there"),
    [
        ("a tok", True), ("TOK, red", True), ("(tok:1.2)", True), ("tok's", True), ("tok-like", True),
        ("\u3042tok\u306e", True),
        ("token", False), ("a tok2", False), ("sprintok", False), ("tok_1", False), ("to k", False), ("", False),
    ],
)  # fmt: skip
def test_a_word_is_never_part_of_another_one(text: str, is_there: bool):
    assert has_word(text, "tok") == is_there


def test_signs_may_be_part_of_a_word():
    assert has_word("a photo of <cat>, red", "<cat>") and not has_word("a cat", "<cat>")


@pytest.mark.parametrize("name", NAMES)
def test_a_word_is_all_of_its_ids_and_the_rest_is_read_as_before(tokenizers: TokenizerSet, name: str):
    known, own = tokenizers[name], with_word(tokenizers[name], "blarg", (900, 901))
    read, plain = own.vocabulary.encode, known.vocabulary.encode
    assert read("a red circle") == plain("a red circle")
    assert read("a blarg on a red circle, Blarg") == [*plain("a"), 900, 901, *plain("on a red circle,"), 900, 901]
    assert read("blargs") == plain("blargs")
    assert own.token_count("blarg") == known.token_count("") + 2
    assert own.identity() != known.identity()


def test_an_encoder_without_vectors_passes_over_the_word(tokenizers: TokenizerSet):
    own = with_word(tokenizers["t5xxl"], "blarg", ())
    plain = tokenizers["t5xxl"].vocabulary.encode
    assert own.vocabulary.encode("a blarg on red") == [*plain("a"), *plain("on red")]


def test_an_encoder_whose_vectors_are_not_there_passes_over_the_word_too(tokenizers: TokenizerSet):
    own = {name: tokenizers[name] for name in ("clip_l", "t5xxl")}
    encoder = clip(tokenizers["clip_l"])
    add_words(own, {"clip_l": encoder}, "blarg", {"clip_l": torch.ones(2, 32)})
    read = {name: tokenizer.vocabulary.encode("a blarg on red") for name, tokenizer in own.items()}
    plain = tokenizers["t5xxl"].vocabulary.encode
    assert read["t5xxl"] == [*plain("a"), *plain("on red")]
    first = tokenizers["clip_l"].vocabulary.rows
    assert {first, first + 1} < set(read["clip_l"])


@pytest.mark.parametrize("name", ["clip_l", "t5xxl"])
@given(
    words=st.lists(st.sampled_from(["blarg", "red", "circle", "on", "a", ","]), max_size=12), room=st.integers(0, 14)
)
def test_what_is_before_a_cut_is_what_is_read(tokenizers: TokenizerSet, name: str, words: list[str], room: int):
    vocabulary = with_word(tokenizers[name], "blarg", (900, 901)).vocabulary
    caption = " ".join(words)
    ids, start = vocabulary.encode(caption), vocabulary.start_of(caption, room)
    assert (start is None) == (len(ids) <= room)
    if start is not None:
        read = vocabulary.encode(caption[:start].rstrip())
        assert read == ids[: len(read)] and room - len(read) in (0, 1)  # 1: in the middle of the word's two


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_that_is_a_known_words_row_acts_as_that_word(tokenizers: TokenizerSet, name: str):
    tokenizer = tokenizers[name]
    encoder = t5(tokenizer) if name == "t5xxl" else clip(tokenizer)
    wanted = encoded(encoder, tokenizer, "a red circle on red")
    (red,) = tokenizer.vocabulary.encode("red")
    rows = token_table(encoder).weight[[red]].clone()
    own = {name: tokenizer}
    add_words(own, {name: encoder}, "blarg", {name: rows})
    found = encoded(encoder, own[name], "a blarg circle on blarg")
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert not torch.allclose(encoded(encoder, own[name], "a circle on")[0], wanted[0], atol=1e-3)


def test_a_second_word_goes_behind_the_first(tokenizers: TokenizerSet):
    encoder, own = clip(tokenizers["clip_l"]), {"clip_l": tokenizers["clip_l"]}
    first = token_table(encoder).num_embeddings
    add_words(own, {"clip_l": encoder}, "blarg", {"clip_l": torch.ones(2, 32)})
    add_words(own, {"clip_l": encoder}, "zorp", {"emb_params": torch.full((1, 32), 3.0)})
    assert own["clip_l"].vocabulary.encode("zorp blarg zorp") == [first + 2, first, first + 1, first + 2]
    rows = token_table(encoder)(torch.tensor([first + 2, first, 0]))
    assert rows[:2].mean(dim=1).tolist() == [3.0, 1.0]
    assert torch.equal(rows[2], token_table(encoder).weight[0])


def test_gradients_reach_the_new_rows_and_nothing_else(tokenizers: TokenizerSet):
    encoder = clip(tokenizers["clip_l"])
    rows = nn.Parameter(torch.zeros(3, 32))
    ids = add_rows(encoder, rows, tokenizers["clip_l"].end)
    encoder(input_ids=torch.tensor([[5, ids[0], ids[2], tokenizers["clip_l"].end]])).text_embeds.sum().backward()
    assert rows.grad is not None
    assert [bool(row.any()) for row in rows.grad] == [True, False, True]
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is not None] == [
        "text_model.embeddings.token_embedding.rows"
    ]


def test_rows_are_given_in_the_format_of_the_table():
    table = nn.Embedding(4, 2, dtype=torch.bfloat16)
    wider = WordTable(table, nn.Parameter(torch.ones(1, 2)))
    assert wider(torch.tensor([0, 4])).dtype == torch.bfloat16
    assert (wider.num_embeddings, wider.embedding_dim) == (5, 2)


@pytest.mark.parametrize(
    "vectors", [{"clip_l": torch.ones(1, 48)}, {"emb_params": torch.ones(1, 32)}, {"t5xxl": torch.ones(1, 32)}]
)
def test_vectors_of_another_model_are_refused(vectors: dict[str, torch.Tensor]):
    tables = {"clip_l": nn.Embedding(2, 32), "clip_g": nn.Embedding(2, 48)}
    with pytest.raises(CheckpointError, match="^--weights: x is of another model: .* read clip_l 32, clip_g 48"):
        vectors_for(vectors, tables, "--weights: x")
