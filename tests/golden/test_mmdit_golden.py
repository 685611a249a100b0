"""MMDiT and position tables against stored values (data/SOURCES.d/mmdit.md).

Outputs within 2e-4, gradients within 1e-3 of their maximum, tables within 1e-5.
"""

import gzip
import json
import lzma
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from library.models.mmdit import MMDiT, config_from_shapes, timestep_embedding
from library.models.positions import ScaledPositionTables, centred_window

DATA = Path(__file__).parent / "data"
VARIANTS = ("sd3_medium_like", "sd35_medium_like", "sd35_large_like")
SECOND = {"sd35_medium_like": "_attn2_head_dim_64"}
FACTS = json.loads((DATA / "mmdit_forward.json").read_text())


@pytest.fixture(scope="module")
def stored():
    return load(gzip.decompress((DATA / "mmdit_forward.safetensors.gz").read_bytes()))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    path = next(DATA.glob(f"mmdit_weights_{request.param}.safetensors.*"))
    content = (lzma if path.suffix == ".xz" else gzip).decompress(path.read_bytes())
    weights = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in load(content).items()}
    with torch.device("meta"):
        model = MMDiT(config_from_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}))
    model.load_state_dict(weights, assign=True)
    return request.param, model.requires_grad_(True)


def inputs(stored, name, case):
    return [stored[f"{name}.case{case}.{key}"] for key in ("x", "timestep", "context", "y")]


@pytest.mark.parametrize("case", [0, 1])
def test_output_equals_the_stored_one(variant, case, stored):
    name, model = variant
    latents, *others = inputs(stored, name, case)
    windows = {"": None}
    if sizes := FACTS["scaled_latent_sizes"][name]:
        height, width = latents.shape[2] // 2, latents.shape[3] // 2
        table = ScaledPositionTables(sizes, model.config.hidden).table(height, width)
        windows["_scaled_pos"] = centred_window(table, height, width)
    for positions, window in windows.items():
        expected = stored[f"{name}.case{case}.output{positions}{SECOND.get(name, '')}"]
        with torch.no_grad():
            output = model(latents, *others, positions=window)
        torch.testing.assert_close(output, expected, rtol=5e-5, atol=2e-4)  # 2.1e-4 of 3.6 on another processor


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_gradients_equal_the_stored_ones(variant, is_checkpointed, stored):
    name, model = variant
    model.gradient_checkpointing = is_checkpointed
    model.zero_grad()
    loss = model(*inputs(stored, name, 0)).square().mean()
    loss.backward()
    model.gradient_checkpointing = False
    assert loss.item() == pytest.approx(stored[f"{name}.case0.loss{SECOND.get(name, '')}"].item(), rel=1e-5)
    prefix = f"{name}.case0.grad{SECOND.get(name, '')}."
    wanted = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    parameters = dict(model.named_parameters())
    assert len(wanted) >= 2
    for key, gradient in wanted.items():
        difference = (parameters[key].grad - gradient).abs().max() / gradient.abs().max()
        assert difference < 1e-3, key


def test_timestep_embedding_equals_the_stored_one(stored):
    embedding = timestep_embedding(stored["timestep_embedding_256.t"], 256)
    # The last bit of a frequency, which processors round differently, times a timestep of up to 1000 radians.
    torch.testing.assert_close(embedding, stored["timestep_embedding_256.out"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", FACTS["scaled_pos_embed"])
def test_scaled_tables_equal_the_stored_ones_in_the_order_of_calls(case, stored):
    facts = FACTS["scaled_pos_embed"][case]
    tables = ScaledPositionTables(facts["latent_sizes"], 128)
    limits = facts["area_limit_to_patched_size"]
    for call in facts["crops_in_call_order"]:
        assert [list(limit) for limit in tables.area_limits] == limits
        rows, columns = call["latent_hw"]
        window = centred_window(tables.table(rows // 2, columns // 2), rows // 2, columns // 2)
        expected = stored[f"pos_embed.hidden128.scaled.{case}.{rows}x{columns}"]
        torch.testing.assert_close(window, expected, rtol=0, atol=1e-5)
        limits = call["table_extended_after_call"] or limits


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (16, 10), (6, 30)])
def test_centred_windows_of_one_table_equal_the_stored_ones(rows, columns, stored):
    weights = load(gzip.decompress((DATA / "mmdit_weights_sd3_medium_like.safetensors.gz").read_bytes()))
    window = centred_window(weights["model.diffusion_model.pos_embed"], rows // 2, columns // 2)
    expected = stored[f"pos_embed.hidden128.center_crop.{rows}x{columns}"]
    torch.testing.assert_close(window, expected, rtol=0, atol=1e-5)
