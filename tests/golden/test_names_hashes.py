"""Names, removals and hashes equal the reference values; see data/SOURCES.d/pixels_and_names.md."""

import json
from pathlib import Path

import pytest
import torch

from library.checkpoint.metadata import file_hashes, tensor_hashes
from library.checkpoint.names import (
    STATE,
    epoch_name,
    epoch_to_remove,
    last_name,
    step_name,
    step_to_remove,
)
from library.tensorfile import read_header, read_tensors

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "names_hashes.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["names"], ids=lambda case: str(case["output_name"]))
def test_names(case):
    name, extension, epoch, step = case["output_name"], case["ext"], case["epoch"], case["step"]
    assert epoch_name(name, extension, epoch) == case["epoch_file"]
    assert step_name(name, extension, step) == case["step_file"]
    assert last_name(name, extension) == case["last_file"]
    assert epoch_name(name, "", epoch) == case["epoch_diffusers_dir"]
    assert step_name(name, "", step) == case["step_diffusers_dir"]
    assert epoch_name(name, STATE, epoch) == case["epoch_state_dir"]
    assert step_name(name, STATE, step) == case["step_state_dir"]
    assert last_name(name, STATE) == case["last_state_dir"]


@pytest.mark.parametrize("case", GOLDEN["remove_epoch"])
def test_epochs_that_go(case):
    every, keep = case["save_every_n_epochs"], case["save_last_n_epochs"]
    assert {e: epoch_to_remove(int(e), every, keep) for e in case["removed_at"]} == case["removed_at"]


@pytest.mark.parametrize("case", GOLDEN["remove_step"])
def test_steps_that_go(case):
    every, keep = case["save_every_n_steps"], case["save_last_n_steps"]
    assert {s: step_to_remove(int(s), every, keep) for s in case["removed_at"]} == case["removed_at"]


@pytest.mark.parametrize("case", GOLDEN["retention_simulations"])
def test_what_is_left_after_each_save(case):
    name_of, to_remove = (epoch_name, epoch_to_remove) if case["kind"] == "epoch" else (step_name, step_to_remove)
    every, keep, name = case["every"], case["save_last_n"], case["output_name"]
    keep_state = case["save_last_n_state"] or keep
    present = set()
    for number, listing in case["listing_after"]:
        is_last_epoch = case["kind"] == "epoch" and number == case["total"]
        if number % every == 0 and not is_last_epoch:
            for ending, kept in ((".safetensors", keep), (STATE, keep_state)):
                present.add(name_of(name, ending, number))
                old = to_remove(number, every, kept)
                if old is not None:
                    present.discard(name_of(name, ending, old))
        assert sorted(present) == listing


def test_hashes_of_a_file_and_its_tensors():
    case = GOLDEN["hashes"]
    path = DATA / case["file"]
    header = read_header(path)
    tensors = read_tensors(header)
    expected = (case["sshs_model_hash"], case["sshs_legacy_hash"])
    assert header.metadata == case["file_metadata"]
    assert tensor_hashes(tensors, header.metadata) == expected
    assert list(tensor_hashes(tensors, {})) == case["without_metadata"]
    hashes = file_hashes(path)
    assert hashes.legacy == case["of_file_on_disk"]["model_hash"]
    assert hashes.sha256 == case["of_file_on_disk"]["sha256"]


def test_legacy_hash_of_a_large_tensor():
    recipe = GOLDEN["hashes"]["large_recipe"]
    tensors = {recipe["tensor"]: torch.arange(recipe["n"], dtype=torch.float32) * 0.5}
    expected = (recipe["sshs_model_hash"], recipe["sshs_legacy_hash"])
    assert tensor_hashes(tensors, recipe["metadata"]) == expected
    assert tensor_hashes(tensors, {**recipe["metadata"], "modelspec.title": "not counted"}) == expected
