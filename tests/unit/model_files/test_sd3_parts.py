"""Parts of SD3 in one file and apart: names, what stays as it is stored, and what goes wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import CheckpointError, OptionError, OutputError
from library.families.sd3.checkpoint import inspect_files, read_part
from library.model_files.options.sd3_parts import JoinOptions, SplitOptions
from library.model_files.sd3_parts import PREFIXES, join_parts, split_parts
from library.tensorfile import read_header

KINDS = ("vae", "clip_l", "clip_g", "t5xxl")
T5_LAYER = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.fixture
def separate(tiny_sd3_factory):
    return tiny_sd3_factory(variant="5-medium", bundle=False)


def join(tiny, output, **changes):
    parts = {kind: getattr(tiny, kind) for kind in KINDS}
    join_parts(JoinOptions(**{"dit": tiny.model, **parts, "output": output, **changes}))
    return load_file(output)


def split(path, folder):
    split_parts(SplitOptions(split=path, output_dir=folder))
    return {file.stem: file for file in sorted(folder.iterdir())}


def joined_again(files, output):
    join_parts(JoinOptions(**files, output=output))
    return output


def test_one_file_has_every_part_under_its_published_prefix(separate, tmp_path):
    found = join(separate, tmp_path / "all.safetensors")
    for kind in KINDS:
        for name, tensor in load_file(getattr(separate, kind)).items():
            assert torch.equal(found[PREFIXES[kind] + name], tensor)
    assert all(name.startswith(tuple(PREFIXES.values())) for name in found)


def test_together_apart_and_together_are_the_same_bytes(separate, tmp_path):
    join(separate, tmp_path / "all.safetensors")
    files = split(tmp_path / "all.safetensors", tmp_path / "parts")
    assert set(files) == {"dit", *KINDS}
    again = joined_again(files, tmp_path / "again.safetensors")
    assert again.read_bytes() == (tmp_path / "all.safetensors").read_bytes()


def test_parts_are_as_published_ones_are(separate, tmp_path):
    join(separate, tmp_path / "all.safetensors")
    files = split(tmp_path / "all.safetensors", tmp_path / "parts")
    for kind in KINDS:
        assert load_file(files[kind]).keys() == load_file(getattr(separate, kind)).keys()
        assert read_header(files[kind]).metadata == {"format": "pt"}
    assert all(name.startswith("model.diffusion_model.") for name in load_file(files["dit"]))


def test_prefixes_of_the_input_do_not_matter(separate, tmp_path):
    expected = join(separate, tmp_path / "all.safetensors")
    bare = {name.removeprefix(PREFIXES["dit"]): tensor for name, tensor in load_file(separate.model).items()}
    save_file(bare, tmp_path / "bare.safetensors")
    prefixed = {f"text_encoders.clip_l.transformer.{n}": t for n, t in load_file(separate.clip_l).items()}
    save_file(prefixed, tmp_path / "clip.safetensors")
    vae = {f"vae.{name}": tensor for name, tensor in load_file(separate.vae).items()}
    save_file(vae, tmp_path / "vae.safetensors")
    changes = {"dit": tmp_path / "bare.safetensors", "clip_l": tmp_path / "clip.safetensors"}
    found = join(separate, tmp_path / "other.safetensors", vae=tmp_path / "vae.safetensors", **changes)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_what_the_mmdit_says_of_itself_is_kept(separate, tmp_path):
    save_file(load_file(separate.model), tmp_path / "dit.safetensors", {"modelspec.title": "mine", "x": "y"})
    join(separate, tmp_path / "all.safetensors", dit=tmp_path / "dit.safetensors")
    assert read_header(tmp_path / "all.safetensors").metadata == {"modelspec.title": "mine", "x": "y"}


def test_a_part_that_is_given_wins_over_the_one_inside_and_a_line_says_so(separate, tmp_path, caplog):
    join(separate, tmp_path / "all.safetensors")
    other = {name: tensor + 1 for name, tensor in load_file(separate.vae).items()}
    save_file(other, tmp_path / "vae.safetensors")
    with caplog.at_level("WARNING", logger="easel"):
        join_parts(
            JoinOptions(
                dit=tmp_path / "all.safetensors", vae=tmp_path / "vae.safetensors", output=tmp_path / "new.safetensors"
            )
        )
    found = load_file(tmp_path / "new.safetensors")
    assert "has a vae inside" in caplog.text and "takes its place" in caplog.text
    assert torch.equal(found["first_stage_model.decoder.conv_in.bias"], other["decoder.conv_in.bias"])
    assert PREFIXES["t5xxl"] + T5_LAYER in found


def fp8_t5(separate, path):
    """A T5 as tools write it: one layer in fp8 with a scale and a mark, or all of it plain."""
    tensors = load_file(separate.t5xxl)
    layer = tensors[T5_LAYER].float()
    scale = layer.abs().max() / 448
    tensors |= {
        T5_LAYER: (layer / scale).to(torch.float8_e4m3fn),
        T5_LAYER.replace("weight", "scale_weight"): scale,
        "scaled_fp8": torch.empty(2).to(torch.float8_e4m3fn),
    }
    save_file(tensors, path)
    return tensors


def bits(tensor):
    return tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor


def test_fp8_stays_as_it_is_with_scales_and_marks(separate, tmp_path):
    stored = fp8_t5(separate, tmp_path / "t5.safetensors")
    found = join(separate, tmp_path / "all.safetensors", t5xxl=tmp_path / "t5.safetensors")
    for name, tensor in stored.items():
        own = found[PREFIXES["t5xxl"] + name]
        assert own.dtype == tensor.dtype and torch.equal(bits(own), bits(tensor)), name
    again = load_file(split(tmp_path / "all.safetensors", tmp_path / "parts")["t5xxl"])
    assert again.keys() == stored.keys() and all(torch.equal(bits(again[n]), bits(stored[n])) for n in stored)


def test_layers_that_a_header_says_are_quantised_keep_that_under_their_new_names(separate, tmp_path):
    layer, entry = T5_LAYER.removesuffix(".weight"), {"format": "float8_e4m3fn"}
    tensors = load_file(separate.t5xxl)
    tensors |= {T5_LAYER: tensors[T5_LAYER].to(torch.float8_e4m3fn), f"{layer}.weight_scale": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "t5.safetensors", {"_quantization_metadata": json.dumps({"layers": {layer: entry}})})
    join(separate, tmp_path / "all.safetensors", t5xxl=tmp_path / "t5.safetensors")
    said = json.loads(read_header(tmp_path / "all.safetensors").metadata["_quantization_metadata"])["layers"]
    assert said == {PREFIXES["t5xxl"] + layer: entry}
    part = split(tmp_path / "all.safetensors", tmp_path / "parts")["t5xxl"]
    assert json.loads(read_header(part).metadata["_quantization_metadata"])["layers"] == {layer: entry}


def test_a_precision_is_that_of_all_weights_and_leaves_no_scale(separate, tmp_path):
    fp8_t5(separate, tmp_path / "t5.safetensors")
    found = join(separate, tmp_path / "all.safetensors", t5xxl=tmp_path / "t5.safetensors", save_precision="bf16")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert not any("scale" in name for name in found)
    expected = load_file(separate.t5xxl)[T5_LAYER].float()
    assert (found[PREFIXES["t5xxl"] + T5_LAYER].float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_fp8_can_be_asked_for_where_numbers_fit_into_it(separate, tmp_path):
    found = join(separate, tmp_path / "all.safetensors", save_precision="fp8_e5m2")
    assert {tensor.dtype for tensor in found.values()} == {torch.float8_e5m2}
    large = {name: tensor * 0 + 500 for name, tensor in load_file(separate.vae).items()}
    save_file(large, tmp_path / "vae.safetensors")
    with pytest.raises(OutputError, match="above 448, which fp8 cannot hold"):
        join(separate, tmp_path / "x.safetensors", vae=tmp_path / "vae.safetensors", save_precision="fp8")
    assert not (tmp_path / "x.safetensors").exists()


def test_the_joined_file_is_read_as_the_same_model(separate, tmp_path):
    join(separate, tmp_path / "all.safetensors")
    whole = inspect_files(tmp_path / "all.safetensors")
    apart = inspect_files(separate.model, **{kind: getattr(separate, kind) for kind in KINDS})
    for kind in KINDS:
        found, expected = read_part(getattr(whole, kind)), read_part(getattr(apart, kind))
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vae": "t5xxl"}, "--vae: .* has no VAE: it is a T5 text encoder alone"),
        ({"clip_l": "clip_g"}, "--clip_l: .* has a CLIP of width 48"),
        ({"t5xxl": "vae"}, "--t5xxl: .* it is a VAE alone"),
        ({"dit": "vae"}, "--dit: .* is a VAE alone, not an SD3 / SD3.5 model"),
    ],
)
def test_a_part_in_the_place_of_another_is_named(separate, tmp_path, changes, said):
    given = {kind: getattr(separate, other) for kind, other in changes.items()}
    with pytest.raises(CheckpointError, match=said):
        join(separate, tmp_path / "x.safetensors", **given)
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_there_already_is_not_replaced(separate, tmp_path):
    join(separate, tmp_path / "all.safetensors")
    (tmp_path / "clip_g.safetensors").write_text("mine")
    with pytest.raises(OptionError, match=r"clip_g.safetensors is there already"):
        split(tmp_path / "all.safetensors", tmp_path)
    assert (tmp_path / "clip_g.safetensors").read_text() == "mine"
    assert not (tmp_path / "dit.safetensors").exists()


def test_a_part_that_cannot_be_read_leaves_no_other_part(separate, tmp_path):
    tensors = join(separate, tmp_path / "all.safetensors")
    tensors[f"{PREFIXES['clip_g']}text_projection.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "all.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        split(tmp_path / "all.safetensors", tmp_path / "parts")
    assert not list((tmp_path / "parts").iterdir())


def test_a_file_with_only_the_mmdit_is_not_taken_apart(separate, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to take apart"):
        split(separate.model, tmp_path / "parts")


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (JoinOptions, {"save_precision": "fp9"}, "--save_precision needs one of"),
        (JoinOptions, {"output": Path("x")}, "must end in .safetensors"),
        (SplitOptions, {"split": Path("x")}, "need each other"),
    ],
)
def test_options_that_make_no_sense_are_refused(kind, values, said):
    with pytest.raises(OptionError, match=said):
        kind(**values)
