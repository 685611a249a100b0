"""Whole models that are written hold what was trained and, bit by bit, what was not; and they open again."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from examples.tiny_sd3.make import VARIANTS
from library.checkpoint.state_folder import recover_folders
from library.checkpoint.tensor_stream import HASH_KEY
from library.errors import OutputError
from library.families import model_folder
from library.families.sd3.checkpoint import inspect_files, read_part
from library.families.sd3.family import Sd3Family
from library.tensorfile import temporary_name
from library.training.sharding.gathered import LaterTensor

CPU = torch.device("cpu")
CLIPS, ALL = ("clip_l", "clip_g"), ("clip_l", "clip_g", "t5xxl")
PREFIXES = {name: f"text_encoders.{name}.transformer." for name in ALL}


def family_of(tiny):
    return Sd3Family(
        pretrained=tiny.model,
        **{name: getattr(tiny, name) for name in (*ALL, "vae")},
        dropout_rates={},
        flow={},
    )


class Trained:
    """A tiny model, changed as training changes it; `write` writes it."""

    def __init__(self, tiny, encoders=(), dtype=torch.float32):
        self.family = family_of(tiny)
        self.files = self.family.inspect()
        self.denoiser = moved(self.family.load_denoiser(self.files, dtype, CPU))
        loaded = self.family.load_text_encoders(self.files, dtype, CPU, encoders)
        self.encoders = {name: moved(encoder) for name, encoder in loaded.items()}

    def write(self, path, *, layout="safetensors", bundled=(), dtype=None, metadata=None):
        return self.family.write_model(
            path,
            files=self.files,
            denoiser=self.denoiser.state_dict(),
            encoders={name: encoder.state_dict() for name, encoder in self.encoders.items()},
            layout=layout,
            bundled=bundled,
            dtype=dtype,
            metadata=metadata,
        )


def moved(module):
    """Other weights than in the file; not the projection of CLIP-L, which does not train."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.shape != (32, 32) or name != "text_projection.weight":
                parameter.mul_(1.25)
    return module


def assert_equal(found, expected, dtype=None):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        wanted = expected[name] if dtype is None else expected[name].to(dtype)
        assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted), name


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def separate(tiny_sd3_factory):
    return tiny_sd3_factory(bundle=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_opens_with_equal_tensors(variant, tiny_sd3_factory, tmp_path):
    model = Trained(tiny_sd3_factory(variant=variant))
    assert model.write(tmp_path / "m.safetensors", bundled=ALL) == [tmp_path / "m.safetensors"]
    model.write(tmp_path / "folder", layout="diffusers")
    for path in (tmp_path / "m.safetensors", tmp_path / "folder"):
        files = inspect_files(path)
        files.check_complete()
        assert files.variant == variant and files.config == model.files.config
        assert_equal(read_part(files.denoiser), model.denoiser.state_dict())
        for kind in ("vae", *ALL):
            expected = read_part(getattr(model.files, kind))
            if path.suffix == "" and kind == "t5xxl":  # folders hold the table of tokens once
                del expected["encoder.embed_tokens.weight"]
            assert_equal(read_part(getattr(files, kind)), expected)


def test_one_file_has_all_published_names_and_nothing_else(tiny_sd3_factory, tmp_path):
    tiny = tiny_sd3_factory(variant="5-medium")
    Trained(tiny, dtype=torch.float16).write(tmp_path / "m.safetensors", bundled=ALL)
    written, published = load_file(tmp_path / "m.safetensors"), load_file(tiny.model)
    assert written.keys() == published.keys()
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    rest = {name: tensor for name, tensor in published.items() if not name.startswith("model.diffusion_model.")}
    assert_equal({name: written[name] for name in rest}, rest)


@pytest.mark.parametrize("bundled", [(), CLIPS, ("t5xxl",), ALL])
def test_a_trained_encoder_is_inside_or_beside(bundled, separate, tmp_path):
    model = Trained(separate, encoders=ALL)
    written = model.write(tmp_path / "m.safetensors", bundled=bundled)
    beside = [name for name in ALL if name not in bundled]
    assert written == [tmp_path / "m.safetensors", *(tmp_path / f"m_{name}.safetensors" for name in beside)]
    assert sorted(path.name for path in written) == names(tmp_path)
    main = load_file(tmp_path / "m.safetensors")
    for name in ALL:
        state = model.encoders[name].state_dict()
        if name == "clip_l":
            del state["text_projection.weight"]
        if name in bundled:
            prefix = PREFIXES[name]
            found = {key.removeprefix(prefix): tensor for key, tensor in main.items() if key.startswith(prefix)}
        else:
            found = load_file(tmp_path / f"m_{name}.safetensors")
            with safe_open(tmp_path / f"m_{name}.safetensors", "pt") as file:
                assert file.metadata() == {"format": "pt"}
            assert found.keys() == load_file(getattr(separate, name)).keys()
        assert_equal(found, state)


def test_an_encoder_that_was_not_trained_is_inside_only_where_it_is_asked_for(separate, tmp_path):
    model = Trained(separate, encoders=("clip_l",))
    model.write(tmp_path / "m.safetensors", bundled=("t5xxl",))
    assert names(tmp_path) == ["m.safetensors", "m_clip_l.safetensors"]
    prefixes = {name.split(".transformer.")[0] for name in load_file(tmp_path / "m.safetensors") if "encoders" in name}
    assert prefixes == {"text_encoders.t5xxl"}


def test_every_float_is_cast_and_untrained_parts_keep_their_type_otherwise(tiny_sd3_factory, tmp_path):
    model = Trained(tiny_sd3_factory(dtype="bf16"))
    model.write(tmp_path / "kept.safetensors", bundled=CLIPS)
    kept = load_file(tmp_path / "kept.safetensors")
    assert kept.pop("model.diffusion_model.pos_embed").dtype == torch.bfloat16  # which does not train
    types = {name.split(".")[0]: tensor.dtype for name, tensor in kept.items()}
    assert types == {"model": torch.float32, "first_stage_model": torch.bfloat16, "text_encoders": torch.bfloat16}
    model.write(tmp_path / "cast.safetensors", bundled=CLIPS, dtype=torch.float16)
    cast = load_file(tmp_path / "cast.safetensors")
    assert {tensor.dtype for tensor in cast.values()} == {torch.float16}
    stored = read_part(model.files.vae, dtype=torch.float16)
    assert_equal({f"first_stage_model.{name}": tensor for name, tensor in stored.items()}, {
        name: tensor for name, tensor in cast.items() if name.startswith("first_stage_model.")
    })  # fmt: skip


def test_a_t5_in_fp8_is_written_in_fp16_with_the_same_numbers(separate, tmp_path):
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(separate.t5xxl).items()}
    from safetensors.torch import save_file

    save_file(stored, tmp_path / "t5_fp8.safetensors")
    Trained(replace(separate, t5xxl=tmp_path / "t5_fp8.safetensors")).write(
        tmp_path / "m.safetensors", bundled=("t5xxl",)
    )
    prefix = PREFIXES["t5xxl"]
    main = load_file(tmp_path / "m.safetensors")
    found = {name.removeprefix(prefix): tensor for name, tensor in main.items() if name.startswith(prefix)}
    assert_equal(found, {name: tensor.half() for name, tensor in stored.items()})


def test_numbers_that_fp16_cannot_hold_are_told_and_nothing_is_written(separate, tmp_path):
    model = Trained(separate)
    with torch.no_grad():
        model.denoiser.final_layer.linear.bias[3] = 1e6
    with pytest.raises(OutputError, match=r"final_layer\.linear\.bias has numbers that float16 cannot hold"):
        model.write(tmp_path / "m.safetensors", dtype=torch.float16)
    assert names(tmp_path) == []


def test_the_header_has_the_metadata_and_the_hash(separate, tmp_path):
    Trained(separate).write(tmp_path / "m.safetensors", metadata={"modelspec.title": "t", HASH_KEY: ""})
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "t" and len(metadata[HASH_KEY]) == 66


def test_a_ckpt_has_the_same_tensors_and_side_files_stay_safetensors(separate, tmp_path):
    model = Trained(separate, encoders=("clip_g",))
    written = model.write(tmp_path / "m.ckpt", layout="ckpt", bundled=("clip_l",))
    assert written == [tmp_path / "m.ckpt", tmp_path / "m_clip_g.safetensors"]
    model.write(tmp_path / "same.safetensors", bundled=("clip_l",))
    pickled = torch.load(tmp_path / "m.ckpt", weights_only=True)
    assert list(pickled) == ["state_dict"]
    assert_equal(pickled["state_dict"], load_file(tmp_path / "same.safetensors"))


@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
def test_what_a_model_takes_is_known_before_it_is_written(layout, separate, tmp_path):
    model = Trained(separate, encoders=("clip_l",))
    states = {name: encoder.state_dict() for name, encoder in model.encoders.items()}
    what = {"files": model.files, "denoiser": model.denoiser.state_dict(), "encoders": states, "layout": layout}
    needed = model.family.model_bytes(**what, bundled=("t5xxl",), dtype=torch.bfloat16)
    model.write(tmp_path / "m.safetensors", layout=layout, bundled=("t5xxl",), dtype=torch.bfloat16)
    found = sum(len(load_bytes(path)) for path in tmp_path.rglob("*.safetensors") if path.is_file())
    assert needed == found


def load_bytes(path):
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
def test_tensors_that_are_gathered_when_they_are_used_are_written_alike(layout, separate, tmp_path):
    model = Trained(separate, encoders=("clip_l", "t5xxl"))
    model.write(tmp_path / "at_hand", layout=layout, bundled=ALL)
    states = {name: encoder.state_dict() for name, encoder in model.encoders.items()}
    model.family.write_model(
        tmp_path / "later",
        files=model.files,
        denoiser=later(model.denoiser.state_dict()),
        encoders={name: later(state) for name, state in states.items()},
        layout=layout,
        bundled=ALL,
        dtype=None,
        metadata=None,
    )
    assert contents(tmp_path / "later") == contents(tmp_path / "at_hand")


def later(state):
    return {name: LaterTensor(tensor, torch.Tensor.clone) for name, tensor in state.items()}


def contents(path):
    if path.is_file():
        return path.read_bytes()
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_folder_is_replaced_as_a_whole_and_its_shards_have_an_index(separate, tmp_path, monkeypatch):
    model = Trained(separate)
    model.write(tmp_path / "m", layout="diffusers")
    (tmp_path / "m" / "of_the_old_one").touch()
    monkeypatch.setattr(model_folder, "MAX_SHARD_BYTES", 500_000)
    model.write(tmp_path / "m", layout="diffusers", dtype=torch.float16)
    assert names(tmp_path) == ["m"] and not (tmp_path / "m" / "of_the_old_one").exists()
    folder = tmp_path / "m" / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1 and names(folder) == sorted(
        [*files, "config.json", "diffusion_pytorch_model.safetensors.index.json"]
    )
    assert index["metadata"]["total_size"] == sum(len(load_bytes(folder / file)) for file in files)
    found = read_part(inspect_files(tmp_path / "m").denoiser)
    assert_equal(found, model.denoiser.state_dict(), torch.float16)


def test_without_t5_a_folder_says_so(separate, tmp_path):
    Trained(replace(separate, t5xxl=None)).write(tmp_path / "m", layout="diffusers")
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["text_encoder_3"] == index["tokenizer_3"] == [None, None]
    assert not (tmp_path / "m" / "text_encoder_3").exists() and not (tmp_path / "m" / "tokenizer_3").exists()


def test_without_tokenizers_a_folder_is_written_and_it_is_told(separate, tmp_path, caplog):
    model = Trained(separate)
    model.family = replace(model.family, pretrained=tmp_path / "elsewhere" / "m.safetensors")
    model.write(tmp_path / "m", layout="diffusers")
    assert (
        f"{tmp_path / 'm'} is written without tokenizers" in caplog.text
        and (tmp_path / "m" / "model_index.json").exists()
    )


def test_clip_words_from_tokenizer_json_are_written_in_the_form_that_all_versions_read(separate, tmp_path):
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

    model = Trained(separate)
    words = tmp_path / "words" / "tokenizer"
    shutil.copytree(separate.model.parent / "tokenizer_3", tmp_path / "words" / "tokenizer_3")
    CLIPTokenizer.from_pretrained(separate.model.parent / "tokenizer").save_pretrained(words)
    for old in ("vocab.json", "merges.txt"):
        (words / old).unlink(missing_ok=True)
    assert isinstance(Tokenizer.from_file(str(words / "tokenizer.json")), Tokenizer)
    model.family = replace(model.family, tokenizer_dir=tmp_path / "words")
    model.write(tmp_path / "m", layout="diffusers")
    for folder, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        again = CLIPTokenizer.from_pretrained(tmp_path / "m" / folder)
        wanted = CLIPTokenizer.from_pretrained(separate.model.parent / folder)
        text = "a red Circle on blue, zebra 12"
        assert again(text, padding="max_length").input_ids == wanted(text, padding="max_length").input_ids
        assert (again.pad_token, again.model_max_length) == (pad, 77)


@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
def test_the_models_own_files_are_never_written_over(layout, separate, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(separate.model.parent, folder)
    tiny = type(separate)(*(folder / path.name for path in (getattr(separate, n) for n in ("model", *ALL, "vae"))))
    model = Trained(tiny, encoders=("clip_l",))
    own = folder if layout == "diffusers" else folder / "vae.safetensors"
    with pytest.raises(OutputError, match="is of the model that this training reads"):
        model.write(own, layout=layout)
    os.replace(folder / "clip_l.safetensors", folder / "m_clip_l.safetensors")
    model = Trained(replace(tiny, clip_l=folder / "m_clip_l.safetensors"), encoders=("clip_l",))
    with pytest.raises(OutputError, match="m_clip_l.safetensors is of the model"):
        model.write(folder / "m.safetensors")


@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
def test_a_folder_that_holds_something_else_is_never_replaced(layout, separate, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.png").touch()
    with pytest.raises(OutputError, match="pictures is something else than a model in this layout"):
        Trained(separate).write(tmp_path / "pictures", layout=layout)
    assert names(tmp_path / "pictures") == ["mine.png"]


def test_a_source_that_has_gone_costs_the_save_and_leaves_the_old_model(separate, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(separate.model.parent, folder)
    tiny = type(separate)(*(folder / path.name for path in (getattr(separate, n) for n in ("model", *ALL, "vae"))))
    model = Trained(tiny)
    model.write(tmp_path / "m", layout="diffusers")
    before = (tmp_path / "m" / "model_index.json").stat().st_ino
    (folder / "vae.safetensors").unlink()
    for path, layout in ((tmp_path / "m.safetensors", "safetensors"), (tmp_path / "m", "diffusers")):
        with pytest.raises(OutputError, match="a part of the model cannot be read"):
            model.write(path, layout=layout)
    assert names(tmp_path) == ["in", "m"] and (tmp_path / "m" / "model_index.json").stat().st_ino == before


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_model_folder_that_a_kill_left_without_its_name_gets_it_if_it_is_complete(is_complete, separate, tmp_path):
    Trained(separate).write(tmp_path / "m", layout="diffusers")
    if not is_complete:
        (tmp_path / "m" / "model_index.json").unlink()
    ended = temporary_name(os.getpid()).replace(f".{os.getpid()}-", ".999999999-")
    os.replace(tmp_path / "m", tmp_path / f".m{ended}")
    assert len(recover_folders(tmp_path)) == 1
    assert names(tmp_path) == (["m"] if is_complete else [])
