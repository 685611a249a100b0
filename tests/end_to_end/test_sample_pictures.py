"""Sample pictures of the tiny model: edited prompts, faults that never reach the training, and no effect on it."""

import contextlib
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import parse_options
from library.training.sampling.prompts import PromptDefaults, PromptFile
from library.training.sampling.sampling import MAX_FAILED_EVENTS, SamplePictures

CACHED = ("--network_train_unet_only", "--cache_text_encoder_outputs_to_disk")
CLIP_LIVE = ("--cache_text_encoder_outputs_to_disk",)
CAT = "a cat --w 64 --h 64 --d 1 --s 2 --l 4.5 --n blue"
DOG = "a dog --w 64 --h 64 --d 1 --s 2 --l 4.5 --n green"


@pytest.fixture(autouse=True)
def _log_lines_reach_caplog(monkeypatch):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)


class Studio:
    """A prompt file, a loaded model, and the pictures drawn with both."""

    def __init__(self, trainer, folder, prompts):
        self.trainer, self.prompts, self.folder = trainer, prompts, folder / "sample"
        self.pictures = self.make()

    def make(self, **changes):
        trainer = self.trainer
        settings = {
            "family": trainer.family,
            "encoders": trainer.encoders,
            "denoiser": trainer.denoiser,
            "device": trainer.device,
            "autocast": contextlib.nullcontext,
            "folder": self.folder,
            "output_name": "mine",
        }
        file = PromptFile(self.prompts, PromptDefaults.of_family(trainer.family))
        return SamplePictures(file, **{**settings, **changes})

    def write(self, *lines):
        self.prompts.write_text("\n".join(lines), encoding="utf-8")

    def draw(self, step=1):
        return self.pictures.draw(step=step, epoch_end=None)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(CAT, encoding="utf-8")
    return path


@pytest.fixture
def load(training, prompts):
    """load(*flags) goes through the phases of a training up to the loaded models."""

    def run(*flags, model=None):
        from accelerate.state import AcceleratorState

        from sd3_train_network import Sd3NetworkTrainer

        AcceleratorState._reset_state(reset_partial_state=True)
        pictures = training.folder / "pictures"
        dataset = training.dataset(pictures if pictures.exists() else training.pictures())
        arguments = training.arguments(dataset, *flags, f"--sample_prompts={prompts}", "--sample_at_first", model=model)
        trainer = Sd3NetworkTrainer(parse_options(Sd3NetworkOptions, arguments, **NETWORK_SCRIPT))
        for phase in ("check_options", "plan_run", "inspect_files", "start", "look_at_pictures", "load"):
            getattr(trainer, phase)()
        return trainer

    return run


@pytest.fixture(scope="module")
def loaded():
    """What `live` has loaded: one model for all tests, which leave it as it is."""
    return []


@pytest.fixture
def live(loaded, load, prompts, tmp_path):
    """With text encoders that run in every step."""
    if not loaded:
        loaded.append(load("--network_train_unet_only"))
    return Studio(loaded[0], tmp_path, prompts)


@pytest.fixture
def studio(load, prompts, tmp_path):
    """studio(*flags) with a model of its own."""
    return lambda *flags, model=None: Studio(load(*flags, model=model), tmp_path, prompts)


@pytest.fixture
def weight(live):
    """A weight of the denoiser that is the same again after the test."""
    parameter = next(live.trainer.denoiser.parameters())
    before = parameter.detach().clone()
    yield parameter
    parameter.data.copy_(before)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("flags", [CACHED, CLIP_LIVE], ids=["all cached", "T5 cached"])
def test_new_prompts_are_encoded_as_live_encoders_would(live, studio, flags, tmp_path):
    """Negative prompts too. What was loaded for it is gone afterwards, and the states are in the prompts' folder."""
    live.write(DOG)
    (expected,) = [pixels(path) for path in live.draw()]
    live.write(CAT)
    cached = studio(*flags)
    text = cached.trainer.encoders.text
    before = dict(text.encoders)
    cached.write(CAT, DOG)
    first, second = cached.draw(2)
    assert abs(pixels(second) - expected).max() <= 1
    assert abs(pixels(first) - expected).max() > 1
    assert text.encoders == before
    assert {"a dog", "green"} <= text.prompts.keys()
    assert len(list(tmp_path.glob("prompts.txt_cache/*.safetensors"))) == 4


def test_prompts_that_were_encoded_in_another_run_need_no_encoder(studio, caplog):
    caplog.set_level(logging.INFO, "easel")
    first = studio(*CACHED)
    first.write(CAT, DOG)
    expected = pixels(first.draw()[1])
    assert caplog.text.count("sample prompts: encoding 2 new texts") == 1
    first.write(CAT)
    later = studio(*CACHED)
    later.write(DOG)
    (path,) = later.draw(2)
    assert (pixels(path) == expected).all()
    assert caplog.text.count("sample prompts: encoding 2 new texts") == 1


def test_without_a_folder_for_states_they_are_in_memory(studio, tmp_path, caplog):
    cached = studio(*CACHED)
    shutil.rmtree(tmp_path / "prompts.txt_cache")
    (tmp_path / "prompts.txt_cache").write_text("in the way")
    cached.write(DOG)
    assert len(cached.draw()) == 1
    assert "kept in memory only" in caplog.text
    assert len(cached.draw(2)) == 1


def test_drawing_changes_no_random_state(live):
    """Whatever happens in it: here the context of the denoiser draws random numbers."""

    @contextlib.contextmanager
    def careless():
        torch.rand(3), random.random(), np.random.rand()
        yield

    live.pictures = live.make(autocast=careless)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]
    assert len(live.draw()) == 1
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()[1:3]) == str(before[2])


def test_a_prompt_without_a_seed_gets_another_picture_each_time(live):
    live.write("a cat --w 64 --h 64 --s 1", CAT)
    torch.manual_seed(0)
    first = [pixels(path) for path in live.draw(1)]
    torch.manual_seed(0)
    second = [pixels(path) for path in live.draw(2)]
    assert abs(first[0] - second[0]).max() > 1
    assert (first[1] == second[1]).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"K\xe4tzchen", "is not UTF-8"),
        (b"cat --w 4096", "this model goes up to"),
        (None, "does not exist"),
    ],
)
def test_a_faulty_file_is_one_error_and_the_last_good_prompts_are_drawn(live, content, words, caplog):
    live.prompts.unlink()
    if content is not None:
        live.prompts.write_bytes(content)
    assert len(live.draw(1)) == len(live.draw(2)) == 1
    (error,) = errors(caplog)
    assert words in error and "prompts stay as they are" in error
    live.write(CAT, DOG)
    assert len(live.draw(3)) == 2


def test_a_prompt_of_100000_words_is_drawn(studio):
    cached = studio(*CACHED)
    words = " ".join(f"word{number}" for number in range(100_000))
    cached.write(f"{words} --w 64 --h 64 --s 1", CAT)
    assert len(cached.draw()) == 2


def test_one_prompt_that_fails_costs_no_other(live, caplog):
    live.write("too wide --w 4096 --h 64 --s 1", CAT)
    live.pictures = live.make()  # with that prompt from the start, which a training refuses
    (path,) = live.draw()
    assert path.name.startswith("mine_000001_01_")
    (error,) = errors(caplog)
    assert 'prompt 1 ("too wide") is not drawn' in error and "larger than the model's table of positions" in error
    assert live.pictures.summary()[1].startswith("sample pictures: 1 could not be drawn; last problem: prompt 1")


def test_after_three_empty_events_nothing_is_drawn_any_more(live, weight, caplog):
    assert len(live.draw(1)) == 1
    weight.data.fill_(float("nan"))
    for step in range(MAX_FAILED_EVENTS + 2):
        assert live.draw(step + 2) == ()
    assert live.pictures.is_off
    told = errors(caplog)
    assert len(told) == MAX_FAILED_EVENTS + 1
    assert all("NaN or infinite" in error for error in told[:-1])
    assert "switched off" in told[-1]


def test_a_picture_in_between_keeps_sampling_on(live, weight):
    good = weight.detach().clone()
    for step in range(2 * MAX_FAILED_EVENTS):
        weight.data.copy_(good if step % MAX_FAILED_EVENTS == 2 else torch.full_like(good, float("nan")))
        live.draw(step)
    assert not live.pictures.is_off
    assert live.pictures.num_drawn == 2


def test_an_unwritable_folder_is_told_and_used_again_once_it_can_be(live, caplog):
    live.folder.write_text("in the way")
    assert live.draw(1) == ()
    (error,) = errors(caplog)
    assert str(live.folder) in error and "cannot be written" in error
    live.folder.unlink()
    assert len(live.draw(2)) == 1


def test_prompts_that_cannot_be_encoded_leave_the_others(studio, tiny_sd3, tmp_path, caplog):
    shutil.copytree(tiny_sd3.parent, tmp_path / "model")
    model = tmp_path / "model" / tiny_sd3.name
    cached = studio(*CACHED, model=model)
    model.unlink()
    cached.write(CAT, DOG)
    assert len(cached.draw()) == 1
    (error,) = errors(caplog)
    assert "new prompts cannot be encoded" in error and str(model) in error
    assert cached.pictures.num_failed == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "there is not enough memory"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("first line\nsecond line"), "RuntimeError: first line. Training goes on."),
        (ValueError(), "ValueError. Training goes on."),
    ],
)
def test_any_error_is_told_with_its_reason(live, caplog, error, words):

    @contextlib.contextmanager
    def autocast():
        raise error
        yield

    live.pictures = live.make(autocast=autocast)
    assert live.draw() == ()
    assert words in errors(caplog)[0]


def test_ctrl_c_passes_through(live):

    @contextlib.contextmanager
    def autocast():
        raise KeyboardInterrupt
        yield

    live.pictures = live.make(autocast=autocast)
    with pytest.raises(KeyboardInterrupt):
        live.draw()


def test_a_run_that_stops_leaves_the_picture_it_is_at(live, caplog):
    live.write(*[CAT] * 3)
    answers = iter([False, False, False, *[True] * 9])  # one prompt of two steps, then at the first step of the next
    live.pictures = live.make(is_stopping=lambda: next(answers))
    assert len(live.draw()) == 1
    assert not errors(caplog)
    assert live.pictures.num_failed == 0


def test_the_contact_sheet_grows_with_every_event(live):
    live.draw(10)
    sheet = live.folder / "mine_contact_sheet.png"
    narrow = Image.open(sheet).width
    live.write(CAT, DOG)
    live.pictures.draw(step=20, epoch_end=2)
    picture = Image.open(sheet)
    assert picture.width > narrow
    assert (live.folder / "mine_contact_sheet.json").exists()
    assert str(sheet) in live.pictures.summary()[0]
    assert [prompt.prompt for prompt, _ in live.pictures.last_drawn] == ["a cat", "a dog"]
