"""Folders of captioners that cannot be used are refused before weights are read; those in other forms are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import make_captions
from tests.captioning_runs import NUMBER, captioned, captioners, make_pictures, refused

PICKLED_INDEX = {"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """models("blip") and so on: the folder of a tiny captioner, which tests leave as it is."""
    return captioners(tmp_path_factory)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of different colours and sizes."""
    return make_pictures(tmp_path / "pictures")


@pytest.fixture
def copied(models: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a captioner that the test may change."""
    return lambda kind: Path(shutil.copytree(models(kind), tmp_path / f"copied_{kind}"))


def test_a_folder_in_the_place_of_a_caption_is_listed(models, pictures: Path, capsys):
    (pictures / "p1.caption").mkdir()
    assert make_captions.main([str(pictures), f"--model={models('blip')}", "--device=cpu", "--max_length=12"]) == 2
    assert "p1.png cannot have a text file, p1.caption is a folder" in capsys.readouterr().err
    assert sum(path.is_file() for path in pictures.glob("*.caption")) == NUMBER - 1


def test_a_mistyped_folder_is_told_though_nothing_is_left_to_do(models, pictures: Path, capsys):
    captioned(pictures, models("blip"))
    capsys.readouterr()
    assert make_captions.main([str(pictures), "--model=./m/blip"]) == 2
    assert "--model: the folder ./m/blip does not exist" in capsys.readouterr().err


def change_config(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[sorted(weights)[5]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def resize_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[5]
    weights[name] = weights[name].repeat(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop(*patterns: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()

    return remove


def drop_chat_template(folder: Path) -> None:
    drop("*.jinja")(folder)
    for name in ("tokenizer_config.json", "processor_config.json"):
        path = folder / name
        content = json.loads(path.read_text())
        content.pop("chat_template", None)
        path.write_text(json.dumps(content))


def put_template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


@pytest.mark.parametrize(
    ("kind", "damage", "said"),
    [
        ("blip", drop("config.json"), "no config.json"),
        ("blip", drop("model.safetensors"), "has no weights"),
        ("blip", drop("tokenizer.json", "vocab.txt"), "has no tokenizer"),
        ("blip", drop("*processor_config.json"), "no processor that can be read"),
        ("blip", cut_weights, "is truncated"),
        ("blip", drop_a_weight, "1 weights of a BlipForConditionalGeneration are missing"),
        ("blip", resize_a_weight, "their sizes are not those of config.json"),
        ("blip", lambda folder: change_config(folder, model_type="bert"), "does not describe pictures"),
        ("blip", lambda folder: change_config(folder, architectures=["BlipForQuestionAnswering"]), "no captioner"),
        ("blip", lambda folder: change_config(folder, model_type="own", auto_map={"AutoModel": "x.y"}), "needs code"),
        ("florence", lambda folder: change_config(folder, auto_map={"AutoModel": "x.y"}), "florence-community/"),
        ("blip", lambda folder: change_config(folder, model_type="pix2struct"), "does not describe pictures here"),
        ("llava", drop_chat_template, "no chat template"),
        ("llava", put_template("{{ 'user ' + messages[0]['content'] }}"), "makes no message of a picture"),
        ("llava", put_template("{{ raise_exception('roles must alternate') }}"), "roles must alternate"),
        ("llava", put_template("user {{ messages[0]['content'][1]['text'] }}"), "makes no message of a picture"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_in_one_sentence(
    copied, pictures: Path, capsys, kind: str, damage: Callable[[Path], None], said: str
):
    folder = copied(kind)
    damage(folder)
    assert said in refused(capsys, pictures, folder)


def test_a_type_that_transformers_does_not_know_needs_a_newer_one(copied, pictures: Path, capsys):
    folder = copied("blip")
    change_config(folder, model_type="of_tomorrow")
    assert "pip install -U transformers" in refused(capsys, pictures, folder, code=3)


def test_a_model_that_was_not_downloaded_is_told_with_the_way_out(pictures: Path, capsys):
    assert "hf download no/where --local-dir FOLDER" in refused(capsys, pictures, "no/where")


def test_a_task_that_answers_with_boxes_is_refused(models, pictures: Path, capsys):
    assert "gives no caption" in refused(capsys, pictures, models("florence"), "--prompt=<OD>")


@pytest.mark.parametrize(
    ("model_type", "flags", "code", "said"),
    [("bert", (), 2, "does not describe pictures"), ("blip", ("--load_in_4bit",), 3, "needs an NVIDIA GPU")],
)
def test_a_captioner_that_cannot_be_used_is_told_where_nothing_is_left_to_do(
    tmp_path: Path, pictures: Path, capsys, model_type: str, flags: tuple[str, ...], code: int, said: str
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for picture in pictures.iterdir():
        picture.with_suffix(".caption").write_text("a picture")
    assert make_captions.main([str(pictures), f"--model={tmp_path}", "--device=cpu", *flags]) == code
    assert said in capsys.readouterr().err


def test_few_bits_need_a_gpu(models, pictures: Path, capsys):
    assert "needs an NVIDIA GPU" in refused(capsys, pictures, models("blip"), "--load_in_4bit", code=3)


@pytest.mark.parametrize(
    ("kind", "flags", "said"),
    [
        ("blip", ("--prompt=the old house on the sea", "--max_length=6"), "7 tokens, and --max_length 6"),
        ("git", ("--prompt=the old house on the sea", "--max_length=7"), "7 tokens, and --max_length 7"),
        ("git", ("--max_length=97",), "Give at most 96"),
        ("blip2", ("--max_length=96",), "has room for 91 tokens"),
        ("blip", ("--min_length=80",), "above --max_length 75"),
    ],
)
def test_lengths_that_a_model_has_no_room_for_are_refused(
    models, pictures: Path, capsys, kind: str, flags: tuple[str, ...], said: str
):
    assert said in refused(capsys, pictures, models(kind), *flags)


# Forms of weights


def shard(folder: Path) -> None:
    """Two files of weights with their index in the place of one."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()


def test_weights_in_parts_are_read_whatever_the_index_of_the_other_form_names(models, copied, pictures: Path):
    whole = captioned(pictures, models("blip"))
    folder = copied("blip")
    shard(folder)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(PICKLED_INDEX))
    assert len(whole) == NUMBER and captioned(pictures, folder, "--overwrite") == whole


def test_pickled_weights_are_read_where_only_the_index_of_the_others_is_there(models, copied, pictures: Path):
    whole = captioned(pictures, models("blip"))
    folder = copied("blip")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    shard(folder)
    for part in folder.glob("*.safetensors"):
        part.unlink()
    assert captioned(pictures, folder, "--overwrite") == whole


def test_a_missing_part_of_the_weights_is_named(copied, pictures: Path, capsys):
    folder = copied("blip")
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks 1 of 2 files of its weights (model-00002" in refused(capsys, pictures, folder)
