"""SD3's text encoders and their layout equal reference values. Source: tests/golden/data/SOURCES.d/text_and_vae.md."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from library.families.sd3.text import encode, join
from library.models.text_encoders import load_clip, load_t5

DATA = Path(__file__).parent / "data"
INPUTS = {"clip_l": "l", "clip_g": "g", "t5xxl": "t5"}


def _read(name):
    return load(gzip.decompress((DATA / name).read_bytes()))


def _part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def weights():
    return _read("sd3_text_weights.safetensors.gz")


@pytest.fixture(scope="module")
def encoders(weights):
    return {
        "clip_l": load_clip(_part(weights, "clip_l."), kind="clip_l", num_heads=4),
        "clip_g": load_clip(_part(weights, "clip_g."), kind="clip_g", num_heads=6),
        "t5xxl": load_t5(_part(weights, "t5.")),
    }


@pytest.fixture(scope="module")
def golden():
    return _read("sd3_text.safetensors.gz")


def _tokens(golden):
    ids = {name: golden[f"in.{short}_tokens"] for name, short in INPUTS.items()}
    return {**ids, **{f"{name}_mask": golden[f"in.{short}_attn_mask"] for name, short in INPUTS.items()}}


def _encode(encoders, golden, is_masked):
    with torch.no_grad():
        return encode(encoders, _tokens(golden), apply_lg_attn_mask=is_masked, apply_t5_attn_mask=is_masked)


@pytest.mark.parametrize("is_masked", [False, True])
def test_states_equal_the_reference_where_there_is_no_padding(encoders, golden, is_masked):
    states = _encode(encoders, golden, is_masked)
    rows = golden["in.l_attn_mask"].bool() if is_masked else torch.ones(2, 77, dtype=torch.bool)
    expected = golden[f"lg_mask_{int(is_masked)}.lg_out"]
    torch.testing.assert_close(
        torch.cat([states["clip_l"], states["clip_g"]], -1)[rows], expected[rows], atol=1e-4, rtol=0
    )
    rows = golden["in.t5_attn_mask"].bool() if is_masked else torch.ones(2, 12, dtype=torch.bool)
    expected = golden[f"t5_mask_{int(is_masked)}.t5_out"]
    torch.testing.assert_close(states["t5xxl"][..., :512][rows], expected[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_masked", [False, True])
def test_pooled_vectors_equal_the_reference(encoders, weights, golden, is_masked):
    """The reference applies CLIP-L's projection; we do not, as other tools, so it is applied here."""
    states = _encode(encoders, golden, is_masked)
    projected = states["clip_l_pooled"] @ weights["clip_l.text_projection.weight"].T
    pooled = torch.cat([projected, states["clip_g_pooled"]], -1)
    torch.testing.assert_close(pooled, golden[f"lg_mask_{int(is_masked)}.lg_pooled"], atol=1e-4, rtol=0)


def test_padding_rows_are_zero_under_the_masks_only(encoders, golden):
    masked, plain = (_encode(encoders, golden, is_masked) for is_masked in (True, False))
    for name, short in INPUTS.items():
        padding = golden[f"in.{short}_attn_mask"] == 0
        assert padding.any()
        assert masked[name][padding].count_nonzero() == 0
        assert (plain[name][padding].abs().amax(-1) > 0).all()


def test_context_equals_the_reference_sums(encoders, golden):
    expected = json.loads((DATA / "sd3_text.json").read_text(encoding="utf-8"))
    context = join(_encode(encoders, golden, False), context_dim=4096).context
    assert list(context.shape) == expected["contexts"]["lg_0_t5_0"]["shape"]
    assert context.double().sum().item() == pytest.approx(expected["contexts"]["lg_0_t5_0"]["sum"], abs=0.05)
    assert context.double().abs().sum().item() == pytest.approx(expected["contexts"]["lg_0_t5_0"]["abs_sum"], rel=1e-5)
    assert context[:, :77, 160:].count_nonzero() == 0


def test_context_without_t5_has_77_zero_rows(encoders, golden):
    expected = json.loads((DATA / "sd3_text.json").read_text(encoding="utf-8"))
    clips = {name: encoders[name] for name in ("clip_l", "clip_g")}
    context = join(_encode(clips, golden, False), context_dim=4096).context
    assert list(context.shape) == expected["context_without_t5_shape"]
    assert context[:, 77:].count_nonzero() == 0


@pytest.mark.parametrize("name", ["clip_l", "clip_g", "t5xxl"])
def test_sizes_read_from_shapes_equal_the_configuration(encoders, name):
    expected = json.loads((DATA / "sd3_text.json").read_text(encoding="utf-8"))[{"t5xxl": "t5"}.get(name, name)]
    config = encoders[name].config.to_dict()
    not_sizes = {"bos_token_id", "pad_token_id"}
    assert {key: config[key] for key in expected if key not in not_sizes} == {
        key: value for key, value in expected.items() if key not in not_sizes
    }
