"""Files of learned words: the forms that are read, what is written, and what is no such file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from library.checkpoint.embeddings import read_embedding, write_embedding
from library.errors import CheckpointError, OutputError
from library.records import ONLY_VECTORS

ROWS = torch.arange(6.0).reshape(2, 3)
PAIR = {"first": ROWS, "second": torch.ones(2, 5)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kohya.pt", {"emb_params": ROWS}),
        ("a1111.pt", {"string_to_token": {"*": 265}, "string_to_param": {"*": ROWS}, "name": "blarg", "step": 3}),
        ("learned_embeds.bin", {"<blarg>": ROWS}),
        ("half.pt", {"emb_params": ROWS.half()}),
    ],
)
def test_pickled_forms_of_one_encoder_are_read(tmp_path: Path, name: str, content: object):
    torch.save(content, tmp_path / name)
    vectors = read_embedding(tmp_path / name, "--weights")
    assert list(vectors) == [ONLY_VECTORS]
    assert torch.equal(vectors[ONLY_VECTORS], ROWS)


def test_a_single_vector_without_a_row_axis_is_one_row(tmp_path: Path):
    torch.save({"<blarg>": ROWS[1]}, tmp_path / "learned_embeds.bin")
    assert torch.equal(read_embedding(tmp_path / "learned_embeds.bin", "--weights")[ONLY_VECTORS], ROWS[1:])


@pytest.mark.parametrize("ending", ["safetensors", "pt", "ckpt"])
@pytest.mark.parametrize("vectors", [{ONLY_VECTORS: ROWS}, PAIR], ids=["one", "two"])
def test_what_is_written_is_read(tmp_path: Path, ending: str, vectors: dict[str, torch.Tensor]):
    path = tmp_path / f"blarg.{ending}"
    write_embedding(path, vectors, word="blarg", metadata={"modelspec.title": "mine"})
    again = read_embedding(path, "--weights")
    assert again.keys() == vectors.keys()
    assert all(torch.equal(again[name], rows) for name, rows in vectors.items())


def test_a_safetensors_file_has_the_metadata_and_a_pickle_the_word(tmp_path: Path):
    for name in ("a.safetensors", "a.pt"):
        write_embedding(
            tmp_path / name, {ONLY_VECTORS: ROWS}, word="blarg", step=7, metadata={"modelspec.title": "mine"}
        )
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"modelspec.title": "mine"}
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (content["name"], content["step"]) == ("blarg", 7)
    assert torch.equal(content["string_to_param"]["*"], ROWS)


LAYERS = {f"lora_unet_{number}.lora_down.weight": torch.full((2, 3), float(number)) for number in range(8)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (LAYERS, "no embedding of textual inversion.*it has 8 tensors"),
        ({"a.weight": ROWS, "b.weight": ROWS + 1}, "no embedding"),
        ({"emb_params": torch.ones(2, 3, 4)}, "no embedding"),
        ({"emb_params": torch.ones(2, 3, dtype=torch.int64)}, "no embedding"),
        ({"emb_params": torch.ones(0, 3)}, "no embedding"),
        ({"first": ROWS, "second": torch.ones(3, 5)}, r"different numbers of vectors \(first 2, second 3\)"),
        ({"emb_params": ROWS * float("nan")}, "damaged: emb_params has numbers that are not finite"),
    ],
)
def test_other_files_are_told_in_a_sentence(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"^--weights: .*x.safetensors .*{message}"):
        read_embedding(tmp_path / "x.safetensors", "--weights")


def test_missing_cut_and_foreign_files_are_told(tmp_path: Path):
    save_file({"emb_params": ROWS}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-4])
    (tmp_path / "text.pt").write_text("no weights", encoding="utf-8")
    for name, words in (("gone.pt", ""), ("cut.safetensors", "truncated"), ("text.pt", "not a safetensors"), (".", "")):
        with pytest.raises(CheckpointError, match=f"^--weights: .*{words}"):
            read_embedding(tmp_path / name, "--weights")


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError):
        write_embedding(tmp_path / "file" / "a.pt", {ONLY_VECTORS: ROWS}, word="blarg")
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["mine"]
