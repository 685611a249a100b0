"""CLIP and T5 built from tensors alone."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from library.errors import CheckpointError
from library.models.text_encoders import clip_heads, load_clip, load_t5, token_rows

MANIFEST = Path(__file__).parents[2] / "golden" / "data" / "state_dicts" / "sd3_medium_incl_clips_t5xxlfp16.json.gz"


def _clip_model(width=48, projected=48, act="gelu", heads=3):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(width)
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=80, projection_dim=projected, num_hidden_layers=3,
        num_attention_heads=heads, max_position_embeddings=77, hidden_act=act, bos_token_id=62, eos_token_id=63,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    return model


def _clip_tensors(model):
    return {name: tensor for name, tensor in model.state_dict().items() if "position_ids" not in name}


def _t5_model():
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=96, d_kv=8, d_ff=112, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def _ids():
    return torch.tensor([[62, 5, 9, 63, 0, 0], [62, 63, 63, 63, 63, 63]])


def test_clip_g_equals_the_model_its_tensors_came_from():
    model = _clip_model()
    loaded = load_clip(_clip_tensors(model), kind="clip_g")
    with torch.no_grad():
        expected, got = (m(_ids(), output_hidden_states=True) for m in (model, loaded))
    torch.testing.assert_close(got.text_embeds, expected.text_embeds)
    torch.testing.assert_close(got.hidden_states[-2], expected.hidden_states[-2])


@pytest.mark.parametrize("has_projection", [False, True])
def test_clip_l_gives_the_unprojected_vector(has_projection):
    model = _clip_model(32, 32, "quick_gelu", heads=2)
    tensors = _clip_tensors(model)
    if not has_projection:
        del tensors["text_projection.weight"]
    loaded = load_clip(tensors, kind="clip_l")
    with torch.no_grad():
        states = model.text_model(_ids()).last_hidden_state
        assert torch.equal(loaded(_ids()).text_embeds, torch.stack([states[0, 3], states[1, 1]]))


def test_clip_takes_the_names_without_prefix_and_ignores_position_ids():
    tensors = _clip_tensors(_clip_model())
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    bare["embeddings.position_ids"] = torch.arange(77)[None]
    with torch.no_grad():
        expected, got = (load_clip(given, kind="clip_g")(_ids()).text_embeds for given in (tensors, bare))
    assert torch.equal(got, expected)


def test_weights_are_used_without_a_copy_and_nothing_is_left_on_meta():
    tensors = _clip_tensors(_clip_model())
    loaded = load_clip(tensors, kind="clip_g")
    weight = loaded.text_model.encoder.layers[0].mlp.fc1.weight
    assert weight.data_ptr() == tensors["text_model.encoder.layers.0.mlp.fc1.weight"].data_ptr()
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert not loaded.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("text_model.final_layer_norm.weight"),
            r"1 tensors are missing \(text_model.final_layer_norm.weight\)",
        ),
        (lambda t: t.pop("text_projection.weight"), "text_projection.weight is missing"),
        (lambda t: t.update(surprise=torch.zeros(1)), r"1 tensors are unknown \(surprise\)"),
        (
            lambda t: t.update({"text_model.final_layer_norm.bias": torch.zeros(7)}),
            r"another shape \(text_model.final_layer_norm.bias \[7\] for \[48\]\)",
        ),
    ],
)
def test_wrong_tensors_are_named(change, message):
    tensors = _clip_tensors(_clip_model())
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_clip(tensors, kind="clip_g")


@pytest.mark.parametrize(
    ("width", "heads"), [(768, 12), (1280, 20), (1024, 16), (64, 1), (96, 6), (48, 3), (32, 2), (24, 3), (10, 1)]
)
def test_heads_follow_from_the_width(width, heads):
    assert clip_heads(width) == heads


@pytest.mark.parametrize("missing", ["shared.weight", "encoder.embed_tokens.weight"])
def test_t5_equals_the_model_its_tensors_came_from_with_either_embedding(missing):
    model = _t5_model()
    tensors = dict(model.state_dict())
    del tensors[missing]
    loaded = load_t5(tensors)
    ids = torch.tensor([[5, 6, 7, 1, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).last_hidden_state, model(ids).last_hidden_state)
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


def test_t5_has_no_dropout_even_in_training_mode():
    loaded = load_t5(_t5_model().state_dict()).train()
    ids = torch.arange(2, 32)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, loaded(ids).last_hidden_state)


def test_t5_in_half_precision_keeps_what_exceeds_float16():
    tensors = dict(_t5_model().state_dict())
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    tensors[name] = torch.full_like(tensors[name], 6e4) * torch.linspace(-1, 1, 96)[:, None]
    ids = torch.tensor([[5, 6, 7, 1]])
    with torch.no_grad():
        expected = load_t5(tensors)(ids).last_hidden_state
        half = load_t5({key: tensor.half() for key, tensor in tensors.items()})
        states = half(ids).last_hidden_state
    assert states.dtype == torch.float16
    torch.testing.assert_close(states.float(), expected, atol=0.02, rtol=0.02)


def test_t5_of_another_version_is_refused():
    tensors = {name.replace("wi_0", "wi"): tensor for name, tensor in _t5_model().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"t5xxl: encoder.block.0.layer.1.DenseReluDense.wi_0.weight is missing"):
        load_t5(tensors)


def test_published_encoders_load_on_the_meta_device():
    published = json.loads(gzip.decompress(MANIFEST.read_bytes()))["tensors"]
    for name, width, heads, layers, rows in (
        ("clip_l", 768, 12, 12, 49408),
        ("clip_g", 1280, 20, 32, 49408),
        ("t5xxl", 4096, 64, 24, 32128),
    ):
        prefix = f"text_encoders.{name}.transformer."
        tensors = {
            key.removeprefix(prefix): torch.empty(shape, device="meta")
            for key, (shape, _) in published.items()
            if key.startswith(prefix)
        }
        model = load_t5(tensors) if name == "t5xxl" else load_clip(tensors, kind=name)
        config = model.config
        assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (width, heads, layers)
        assert token_rows({key: tuple(tensor.shape) for key, tensor in tensors.items()}, name) == rows
