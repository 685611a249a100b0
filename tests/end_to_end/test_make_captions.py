"""finetune/make_captions.py on tiny captioners of transformers, in this process and on the CPU."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_corpus import write
from PIL import Image

from finetune import make_captions_by_git
from library.preparing.captioning.batching import encode_batch
from library.preparing.captioning.models import find_captioner
from library.preparing.captioning.prompting import encoder
from tests.captioning_runs import NUMBER, SHORT, AtCaption, captioned, captioners, captions_in, make_pictures, refused
from tests.warm_python import WarmPython

SEARCH, DRAW = ("--beam_search",), ()
BEAMS = (*SEARCH, "--num_beams=3")

KILLED = """
import os, signal, sys
from finetune import make_captions
from tests.captioning_runs import AtCaption
with AtCaption(3, lambda: os.kill(os.getpid(), signal.SIGKILL)):
    make_captions.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """models("blip") and so on: the folder of a tiny captioner, which tests leave as it is."""
    return captioners(tmp_path_factory)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of different colours and sizes."""
    return make_pictures(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("blip", SEARCH),
        ("blip", BEAMS),
        ("blip", DRAW),
        ("git", BEAMS),
        ("git", DRAW),
        ("florence", BEAMS),
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


def test_a_caption_that_is_written_by_hand_during_a_run_is_kept(models, pictures: Path, capsys):
    with AtCaption(2, lambda: (pictures / "p5.caption").write_text("by hand")):
        captions = captioned(pictures, models("blip"), "--debug")
    assert (captions["p5"], len(captions)) == ("by hand", NUMBER)
    assert "wrote 5, kept 1" in capsys.readouterr().err


@pytest.fixture
def ctrl_c():
    """What SIGINT does in a terminal: a shell that starts tests in the background lets them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_run_goes_on_where_it_was(models, tmp_path: Path):
    whole = captioned(make_pictures(tmp_path / "whole", 12), models("blip"), "--batch_size=4")
    folder = make_pictures(tmp_path / "parts", 12)
    with AtCaption(3, lambda: signal.raise_signal(signal.SIGINT)):
        part = captioned(folder, models("blip"), "--debug", code=130)
    assert 2 <= len(part) <= 3
    assert captioned(folder, models("blip"), "--batch_size=3") == whole


def test_a_killed_run_goes_on_where_it_was(models, warm_python: WarmPython, pictures: Path, tmp_path: Path):
    whole = captioned(Path(shutil.copytree(pictures, tmp_path / "whole")), models("blip"))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    arguments = [str(pictures), f"--model={models('blip')}", *SHORT, "--debug"]
    started = warm_python.start([str(script), *arguments], tmp_path / "killed.log")
    assert warm_python.wait(started) == (-signal.SIGKILL,), started.printed()
    assert 1 <= len(captions_in(pictures)) <= 3
    assert captioned(pictures, models("blip"), "--batch_size=3") == whole


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


def test_a_strip_that_no_model_can_see_is_listed(models, pictures: Path, capsys):
    Image.new("RGB", (4, 2000)).save(pictures / "long.png")
    assert len(captioned(pictures, models("git"), "--batch_size=4", code=2)) == NUMBER
    assert "long.png is more than 50 times as long as wide" in capsys.readouterr().err


def test_pictures_of_different_sizes_stay_alone_where_a_model_pads_badly(models):
    found = find_captioner(str(models("qwen")), None)
    encode = encoder(found.kind, found.processor, found.prompt)
    batch = [(Path(name), Image.new("RGB", size)) for name, size in (("a", (28, 28)), ("b", (84, 56)))]
    alone, together = (encode_batch(batch, encode, [], may_pad=may_pad) for may_pad in (False, True))
    assert [paths for paths, _ in alone] == [[Path("a")], [Path("b")]] and len(together) == 1
    assert alone[0][1]["attention_mask"].all() and not together[0][1]["attention_mask"].all()


def test_fewer_pixels_are_what_a_model_that_chats_sees(models, pictures: Path):
    whole = captioned(pictures, models("qwen"), *SEARCH)
    assert captioned(pictures, models("qwen"), *SEARCH, "--max_pixels=1024", "--overwrite") != whole


def test_sub_folders_are_captioned_when_asked(models, pictures: Path):
    shutil.copytree(pictures, pictures / "more")
    captioned(pictures, models("git"), "--recursive", script=make_captions_by_git)
    assert len(list((pictures / "more").glob("*.caption"))) == NUMBER


@pytest.mark.parametrize("kind", ["blip", "git"])
def test_a_prompt_begins_the_captions_of_blip_and_git(models, pictures: Path, kind: str):
    captions = captioned(pictures, models(kind), "--prompt=the man's t-shirt", "--batch_size=4")
    assert all(caption.startswith("the man's t-shirt") for caption in captions.values())
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


def test_too_little_memory_is_told_with_what_to_do(models, pictures: Path, capsys):
    flags = ("--beam_search", "--num_beams=1000000000000", "--batch_size=2")
    assert "smaller --batch_size than 2" in refused(capsys, pictures, models("blip"), *flags, code=3)
