"""Encoders one after the other give what all of them together give, in one turn or in many."""

import pytest
import torch
from accelerate import Accelerator

from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import parse_options
from library.training.encoding.encoder_turns import EncoderTurns
from library.training.encoding.encoding_setup import EncodingSetup
from library.training.encoding.text_stage import TextStage

CPU = torch.device("cpu")
NAMES = ("clip_l", "clip_g", "t5xxl")
BATCHES = [["a red circle", "a star"], ["", "two squares"], ["a triangle"]]
CLIP_STATES = 2 * (32 + 48) * 78 * 4  # bytes of what waits of a batch of two


@pytest.fixture(scope="module")
def family(tiny_sd3, tmp_path_factory):
    arguments = [f"--pretrained_model_name_or_path={tiny_sd3}", f"--output_dir={tmp_path_factory.mktemp('out')}"]
    arguments += ["--dataset_config=none.toml", "--network_module=networks.lora", "--t5xxl_max_token_length=16"]
    return Sd3Family.from_options(parse_options(Sd3NetworkOptions, arguments, **NETWORK_SCRIPT))


@pytest.mark.parametrize(
    ("names", "waiting_bytes", "num_turns"),
    [
        (NAMES, 1 << 30, 1),
        (NAMES, 2 * CLIP_STATES, 2),
        (NAMES, 1, 3),
        (("t5xxl",), 1, 3),
        (("clip_g",), 1 << 30, 1),
    ],
)
def test_states_are_those_of_all_encoders_together(family, monkeypatch, names, waiting_bytes, num_turns):
    files, loads = family.inspect(), []
    tokenizers = family.load_tokenizers(files, names)
    encoders = family.load_text_encoders(files, torch.float32, CPU, names)
    together = TextStage(family, CPU, encoders, tokenizers)
    setup = EncodingSetup(family, files, None, Accelerator(cpu=True), torch.float32, 2, to_disk=False)  # type: ignore[arg-type]
    real = Sd3Family.load_text_encoders
    monkeypatch.setattr(Sd3Family, "load_text_encoders", lambda *a: (loads.extend(a[-1]), real(*a))[1])
    turns = EncoderTurns(setup, names, tokenizers, BATCHES, waiting_bytes=waiting_bytes)
    for batch in BATCHES:
        expected = together.encode(batch)
        rows = turns.encode(batch)
        assert len(rows) == len(batch)
        for index, row in enumerate(rows):
            assert row.keys() == expected.keys()
            assert all(torch.equal(row[name], expected[name][index]) for name in row)
    assert loads == list(names) * num_turns
