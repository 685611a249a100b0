"""The builder of the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from examples.tiny_sd3.make import CONTEXT_WIDTH, LATENT_CHANNELS, POOLED_WIDTH, VARIANTS, build_tiny_sd3
from examples.tiny_sd3.tokenizers import WORDS, clip_vocabulary
from library.tensorfile import read_header, read_tensors


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, tiny_sd3: Path):
    again = build_tiny_sd3(tmp_path / "again").model
    other = build_tiny_sd3(tmp_path / "other", seed=1).model
    assert again.read_bytes() == tiny_sd3.read_bytes()
    assert other.read_bytes() != tiny_sd3.read_bytes()


def test_separate_files_hold_what_the_bundle_holds(tiny_sd3: Path, tiny_sd3_factory: Callable[..., Any]):
    bundle = read_tensors(read_header(tiny_sd3))
    files = tiny_sd3_factory(bundle=False)
    joined = read_tensors(read_header(files.model))
    for prefix, path in (
        ("first_stage_model.", files.vae),
        ("text_encoders.clip_l.transformer.", files.clip_l),
        ("text_encoders.clip_g.transformer.", files.clip_g),
        ("text_encoders.t5xxl.transformer.", files.t5xxl),
    ):
        joined |= {prefix + name: tensor for name, tensor in read_tensors(read_header(path)).items()}
    assert joined.keys() == bundle.keys()
    assert all(torch.equal(joined[name], bundle[name]) for name in bundle)


def test_every_weight_is_finite_and_alive(tiny_sd3_factory: Callable[..., Any]):
    for variant in VARIANTS:
        for name, tensor in read_tensors(read_header(tiny_sd3_factory(variant=variant).model)).items():
            assert tensor.isfinite().all(), name
            assert tensor.float().std() > 0, name


def test_sizes_fit_together(tiny_sd3: Path):
    shapes = read_header(tiny_sd3).shapes()
    denoiser, text = "model.diffusion_model.", "text_encoders."
    widths = {
        part: shapes[f"{text}{part}.transformer.text_model.final_layer_norm.weight"][0] for part in ("clip_l", "clip_g")
    }
    assert widths["clip_l"] != widths["clip_g"]
    assert sum(widths.values()) == POOLED_WIDTH == shapes[f"{denoiser}y_embedder.mlp.0.weight"][1]
    assert shapes[f"{text}t5xxl.transformer.shared.weight"][1] == CONTEXT_WIDTH
    assert shapes[f"{denoiser}context_embedder.weight"][1] == CONTEXT_WIDTH >= POOLED_WIDTH
    assert shapes["first_stage_model.encoder.conv_out.weight"][0] == 2 * LATENT_CHANNELS


def test_vocabularies_have_a_row_in_the_encoders_for_each_token(tiny_sd3: Path):
    shapes = read_header(tiny_sd3).shapes()
    vocab, merges = clip_vocabulary()
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert list(vocab)[-2:] == ["<|startoftext|>", "<|endoftext|>"] and vocab["!"] == 0
    assert all(left + right in vocab for left, right in merges)
    table = shapes["text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight"]
    assert table[0] == len(vocab)
    t5 = Tokenizer.from_file(str(tiny_sd3.parent / "tokenizer_3" / "tokenizer.json"))
    assert shapes["text_encoders.t5xxl.transformer.shared.weight"][0] == t5.get_vocab_size()


def test_t5_pieces_are_words_and_the_end_token_comes_last(tiny_sd3: Path):
    t5 = Tokenizer.from_file(str(tiny_sd3.parent / "tokenizer_3" / "tokenizer.json"))
    encoded = t5.encode("a red circle on a white background")
    assert encoded.tokens == ["▁a", "▁red", "▁circle", "▁on", "▁a", "▁white", "▁background", "</s>"]
    assert [t5.id_to_token(index) for index in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert t5.encode("zebra").tokens[1:-1] == list("zebra") and "zebra" not in WORDS
