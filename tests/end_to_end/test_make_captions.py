"""finetune/make_captions.py on tiny captioners of transformers, in this process and on the CPU."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune import make_captions, make_captions_by_git
from tests import tiny_captioners
from tests.bad_corpus import write

NUMBER = 6
SHORT = ("--device=cpu", "--max_length=12")
SEARCH, DRAW = ("--beam_search",), ()

Captions = Mapping[str, str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """models("blip") and so on: the folder of a tiny captioner, which tests leave as it is."""
    built: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in built:
            built[kind] = getattr(tiny_captioners, f"build_{kind}")(tmp_path_factory.mktemp(kind))
        return built[kind]

    return build


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of different colours and sizes."""
    return make_pictures(tmp_path / "pictures")


@pytest.fixture
def broken_model(models: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a captioner that the test may change."""
    return lambda kind: Path(shutil.copytree(models(kind), tmp_path / f"broken_{kind}"))


def make_pictures(folder: Path, number: int = NUMBER) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(random.integers(0, 255, (4 + index % 5, 6, 3), np.uint8))
        coarse.resize((60 + 20 * (index % 6), 50), Image.Resampling.NEAREST).save(folder / f"p{index}.png")
    return folder


def captioned(folder: Path, model: Path, *flags: str, script=make_captions, code: int = 0) -> Captions:
    """Run the script; what the caption files hold afterwards, by the names of their pictures."""
    assert script.main([str(folder), f"--model={model}", *SHORT, *flags]) == code
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.caption"))}


def refused(capsys: pytest.CaptureFixture[str], folder: Path, model: Path | str, *flags: str, code: int = 2) -> str:
    """The one error that a run ends with."""
    capsys.readouterr()
    assert make_captions.main([str(folder), f"--model={model}", "--device=cpu", *flags]) == code
    error = capsys.readouterr().err.rpartition("error: ")[2].strip()
    assert "\n" not in error and not list(folder.rglob("*.caption"))
    return error


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("blip", SEARCH),
        ("blip", (*SEARCH, "--num_beams=3")),
        ("blip", DRAW),
        ("git", DRAW),
        ("florence", DRAW),
        ("llava", DRAW),
        ("qwen", SEARCH),
        ("qwen", DRAW),
        ("blip2", DRAW),
        ("pair", DRAW),
    ],
)
def test_captions_are_the_same_batched_and_one_by_one(models, pictures: Path, kind: str, flags: tuple[str, ...]):
    alone = captioned(pictures, models(kind), *flags)
    together = captioned(pictures, models(kind), *flags, "--batch_size=4", "--overwrite")
    assert together == alone
    assert len(alone) == NUMBER and len(set(alone.values())) > 1


def test_drawn_captions_depend_on_the_seed_and_not_on_the_other_pictures(models, pictures: Path):
    every = captioned(pictures, models("blip"), "--batch_size=3")
    assert captioned(pictures, models("blip"), "--batch_size=3", "--seed=7", "--overwrite") != every
    for index in (0, 1, 2):
        (pictures / f"p{index}.png").unlink()
        (pictures / f"p{index}.caption").unlink()
    rest = captioned(pictures, models("blip"), "--batch_size=3", "--overwrite")
    assert rest == {name: every[name] for name in ("p3", "p4", "p5")}


def test_captions_that_are_there_are_kept(models, pictures: Path):
    (pictures / "p1.caption").write_text("by hand", encoding="utf-8")
    (pictures / "p2.caption").write_text("", encoding="utf-8")
    captions = captioned(pictures, models("blip"))
    assert (captions["p1"], captions["p2"], len(captions)) == ("by hand", "", NUMBER)


def test_an_interrupted_run_goes_on_where_it_was(models, tmp_path: Path):
    number = 40
    whole = captioned(make_pictures(tmp_path / "whole", number), models("blip"), "--batch_size=4")
    folder = make_pictures(tmp_path / "parts", number)

    def interrupt() -> None:
        while len(list(folder.glob("*.caption"))) < 3:
            time.sleep(0.002)
        signal.raise_signal(signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    part = captioned(folder, models("blip"), code=130)
    watcher.join()
    assert 3 <= len(part) < number
    assert captioned(folder, models("blip"), "--batch_size=3") == whole


def test_broken_pictures_are_listed_and_the_others_captioned(models, pictures: Path, capsys):
    write(pictures, "trunc.jpg", "zero.png")
    captions = captioned(pictures, models("blip"), "--batch_size=4", code=2)
    assert sorted(captions) == [f"p{index}" for index in range(NUMBER)]
    error = capsys.readouterr().err
    assert "2 pictures were passed over" in error and "trunc.jpg" in error and "zero.png" in error


def test_pictures_that_would_share_a_file_have_none(models, pictures: Path, capsys):
    shutil.copy(pictures / "p0.png", pictures / "p0.webp")
    assert "p0" not in captioned(pictures, models("blip"), code=2)
    assert "shares the text file p0.caption" in capsys.readouterr().err


def test_a_picture_that_the_model_cannot_take_is_listed(models, pictures: Path, capsys):
    Image.new("RGB", (2000, 4)).save(pictures / "long.png")
    assert len(captioned(pictures, models("qwen"), "--batch_size=4", code=2)) == NUMBER
    assert "long.png cannot be given to this model" in capsys.readouterr().err


def test_sub_folders_are_captioned_when_asked(models, pictures: Path):
    shutil.copytree(pictures, pictures / "more")
    captioned(pictures, models("git"), "--recursive", script=make_captions_by_git)
    assert len(list((pictures / "more").glob("*.caption"))) == NUMBER


@pytest.mark.parametrize("kind", ["blip", "git"])
def test_a_prompt_begins_the_captions_of_blip_and_git(models, pictures: Path, kind: str):
    captions = captioned(pictures, models(kind), "--prompt=the old house", "--batch_size=4")
    assert all(caption.startswith("the old house") for caption in captions.values())
    assert len(set(captions.values())) > 1


def test_a_prompt_of_a_model_that_chats_is_no_part_of_its_captions(models, pictures: Path):
    captions = captioned(pictures, models("llava"), *SEARCH, "--prompt=Describe the picture user user user")
    assert all("user user user" not in caption for caption in captions.values())
    assert captioned(pictures, models("llava"), *SEARCH, "--prompt=sky sea", "--overwrite") != captions


def test_a_trigger_word_comes_first_and_a_postfix_last(models, pictures: Path):
    captions = captioned(pictures, models("blip"), "--trigger_word=zorp", "--postfix=film", "--caption_separator=; ")
    assert all(caption.startswith("zorp; ") and caption.endswith("; film\n") for caption in captions.values())


def test_a_model_of_the_hub_is_found_in_its_cache(models, pictures: Path):
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / "models--someone--captioner"
    shutil.copytree(models("blip"), repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert len(captioned(pictures, Path("someone/captioner"))) == NUMBER


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
        ("llava", drop_chat_template, "no chat template"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_in_one_sentence(
    broken_model, pictures: Path, capsys, kind: str, damage: Callable[[Path], None], said: str
):
    folder = broken_model(kind)
    damage(folder)
    assert said in refused(capsys, pictures, folder)


def test_a_type_that_transformers_does_not_know_needs_a_newer_one(broken_model, pictures: Path, capsys):
    folder = broken_model("blip")
    change_config(folder, model_type="of_tomorrow")
    assert "pip install -U transformers" in refused(capsys, pictures, folder, code=3)


def test_a_model_that_was_not_downloaded_is_told_with_the_way_out(pictures: Path, capsys):
    assert "hf download no/where --local-dir FOLDER" in refused(capsys, pictures, "no/where")


def test_a_task_that_answers_with_boxes_is_refused(models, pictures: Path, capsys):
    assert "gives no caption" in refused(capsys, pictures, models("florence"), "--prompt=<OD>")


def test_few_bits_need_a_gpu(models, pictures: Path, capsys):
    assert "needs an NVIDIA GPU" in refused(capsys, pictures, models("blip"), "--load_in_4bit", code=3)


def test_too_little_memory_is_told_with_what_to_do(models, pictures: Path, capsys):
    flags = ("--beam_search", "--num_beams=1000000000000", "--batch_size=2")
    assert "smaller --batch_size than 2" in refused(capsys, pictures, models("blip"), *flags, code=3)
