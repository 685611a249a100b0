"""Learning a word through the scripts: what trains, what is saved, what is refused, and that the word is learned."""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from examples.learned_word import LESSONS, measure, train
from library.checkpoint.embeddings import read_embedding
from library.log import LOGGER_NAME
from library.models.added_words import token_table
from library.records import ONLY_VECTORS
from tests.end_to_end.conftest import OtherTraining
from tests.end_to_end.conftest import _without_repeats as without_repeats

Make = Callable[..., Any]

SCRIPTS = {
    "sd1": "train_textual_inversion",
    "sdxl": "sdxl_train_textual_inversion",
    "sd3": "sd3_train_textual_inversion",
}
WIDTHS = {
    "sd1": {ONLY_VECTORS: 32},
    "sdxl": {"clip_l": 32, "clip_g": 48},
    "sd3": {"clip_l": 32, "clip_g": 48, "t5xxl": 96},
}
FLAGS = ("--token_string=blarg", "--learning_rate=1e-2", "--save_model_as=safetensors", "--cache_latents")
TWO_STEPS = ("--max_train_steps=2", "--num_vectors_per_token=2")


@pytest.fixture
def word_training(training_of: Make, tiny_sd3: Path) -> Make:
    """word_training(kind) gives trainings of a word for a tiny "sd1", "sdxl" or "sd3"."""

    def make(kind: str) -> OtherTraining:
        if kind != "sd3":
            found: OtherTraining = training_of(SCRIPTS[kind], kind)
            return found
        return OtherTraining(training_of(SCRIPTS["sd1"], "sd1").folder, tiny_sd3, SCRIPTS["sd3"])

    return make


def captioned(train: OtherTraining, **keys: Any) -> Path:
    """A dataset whose captions have the word."""
    return train.dataset(train.pictures(), caption_prefix="blarg", **keys)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_only_the_vectors_of_the_word_train(word_training: Make, kind: str):
    train = word_training(kind)
    flags = (*FLAGS, *TWO_STEPS, *(["--train_t5xxl"] if kind == "sd3" else []))
    run = train.run(captioned(train), *flags, "--init_word=red")
    assert {name: tuple(rows.shape) for name, rows in run.weights.items()} == {
        name: (2, width) for name, width in WIDTHS[kind].items()
    }

    trainer, place = run.trainer, (torch.float32, torch.device("cpu"))
    family, files = trainer.family, trainer.files
    now, before = trainer.denoiser.state_dict(), family.load_denoiser(files, *place).state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    for name, encoder in family.load_text_encoders(files, *place, family.encoder_names).items():
        own = {key.replace(".table.", "."): tensor for key, tensor in trainer.text.encoders[name].state_dict().items()}
        assert all(torch.equal(own[key], tensor) for key, tensor in encoder.state_dict().items())
        (red,) = trainer.text.tokenizers[name].vocabulary.encode("red")
        begin, saved = token_table(encoder).weight[red], run.weights[ONLY_VECTORS if kind == "sd1" else name]
        assert (saved - begin).abs().amax() < 0.03 and bool((saved != begin).any(dim=1).all())
    assert trainer.trained_parameters() == list(trainer.vectors.values())


def test_the_third_encoder_of_sd3_passes_over_the_word_unless_it_learns_it(word_training: Make):
    train = word_training("sd3")
    run = train.run(captioned(train), *FLAGS, "--max_train_steps=1")
    assert sorted(run.weights) == ["clip_g", "clip_l"]
    read = {name: tokenizer.vocabulary.encode for name, tokenizer in run.trainer.text.tokenizers.items()}
    assert read["t5xxl"]("blarg red") == read["t5xxl"]("red")
    assert len(read["clip_l"]("blarg red")) == 1 + len(read["clip_l"]("red"))


def test_recomputed_activations_give_the_same_vectors(word_training: Make):
    train = word_training("sdxl")
    dataset = captioned(train)
    kept, again = (
        train.compare(dataset, *FLAGS, *TWO_STEPS),
        train.compare(dataset, *FLAGS, *TWO_STEPS, "--gradient_checkpointing"),
    )
    assert again.losses == pytest.approx(kept.losses, rel=1e-5)
    for name, rows in kept.weights.items():
        assert torch.allclose(again.weights[name], rows, atol=1e-5)


def test_a_resumed_training_is_an_unbroken_one(word_training: Make):
    train = word_training("sd1")
    dataset = captioned(train, flip_aug=True)
    flags = (*FLAGS, "--num_vectors_per_token=2", "--max_train_steps=4", "--ema_decay=0.9")
    whole = train.run(dataset, *flags, "--save_every_n_steps=2", "--save_state")
    state = whole.file.with_name("blarg-step00000002-state")
    assert state.is_dir() and whole.file.with_name("blarg-step00000002.safetensors").is_file()
    resumed = train.run(dataset, *flags, f"--resume={state}")
    assert resumed.losses == whole.losses
    assert torch.equal(resumed.weights[ONLY_VECTORS], whole.weights[ONLY_VECTORS])
    average = read_embedding(whole.file.with_name("blarg-ema.safetensors"), "average")
    assert not torch.equal(average[ONLY_VECTORS], whole.weights[ONLY_VECTORS])


def test_samples_and_validation_know_the_word_and_the_file_tells_of_it(word_training: Make):
    train = word_training("sdxl")
    prompts = train.folder / "prompts.txt"
    prompts.write_text("a blarg --w 64 --h 64 --s 1 --d 1", encoding="utf-8")
    flags = (*FLAGS, *TWO_STEPS, f"--sample_prompts={prompts}", "--sample_every_n_steps=2", "--sample_at_first")
    arguments = without_repeats(train.arguments(captioned(train, validation_split=0.5), *flags))
    run = train.run_arguments([flag for flag in arguments if flag != "--no_metadata"])
    first, *_, last = sorted((run.file.parent / "sample").glob("blarg_*.png"))
    assert first.read_bytes() != last.read_bytes()
    assert any("validation" in line for line in run.log)
    with safe_open(run.file, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"
    assert metadata["modelspec.title"] == metadata["modelspec.trigger_phrase"] == "blarg"


def test_a_template_stands_in_for_captions_which_may_be_missing(word_training: Make):
    train = word_training("sd1")
    pictures = train.pictures()
    for caption in pictures.glob("*.txt"):
        caption.unlink()
    flags = (*FLAGS, "--max_train_steps=4", "--use_style_template")
    run = train.run(train.dataset(pictures, validation_split=0.5), *flags)
    captions = [caption for batch in run.batches for caption in batch.captions]
    assert len(set(captions)) > 2 and all("blarg" in caption for caption in captions)
    again = train.run(train.dataset(pictures, validation_split=0.5, batch_size=1), *flags)
    assert sorted(caption for batch in again.batches for caption in batch.captions) == sorted(captions[:4])
    kept = [batch.captions for batch in map(run.trainer.validation.make, run.trainer.validation.batches)]
    assert kept and all("blarg" in caption for own in kept for caption in own)


def test_a_training_begins_with_the_vectors_of_a_file(word_training: Make):
    train = word_training("sd1")
    dataset = captioned(train)
    first = train.run(dataset, *FLAGS, *TWO_STEPS, "--save_model_as=pt")
    assert first.file.name == "blarg.pt"
    vectors = read_embedding(first.file, "file")[ONLY_VECTORS]
    second = train.run(dataset, *FLAGS, *TWO_STEPS, f"--weights={first.file}", "--learning_rate=1e-9")
    assert torch.allclose(second.weights[ONLY_VECTORS], vectors, atol=1e-6)


def test_looking_needs_no_weights(word_training: Make, capsys: pytest.CaptureFixture[str]):
    train = word_training("sd3")
    dataset = captioned(train)
    train.run(dataset, *FLAGS, "--train_t5xxl", "--dry_run", "--fit=24GB")
    told = capsys.readouterr().out
    assert "trains: clip_l at 0.01, clip_g at 0.01, t5xxl at 0.01" in told and "GiB" in told
    train.run(dataset, *FLAGS, "--use_object_template", "--debug_dataset")
    lines = [line for line in capsys.readouterr().out.splitlines() if "): " in line]
    assert lines and all("blarg" in line and "blarg," not in line for line in lines)


# What is refused


def refused(train: OtherTraining, dataset: Path, *flags: str, model: Path) -> int:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = train.arguments(dataset, *FLAGS, "--max_train_steps=1", *flags, model=model)
    code: int = importlib.import_module(train._entry).main(without_repeats(arguments))
    return code


@pytest.fixture
def no_weights(tiny_unet_models: Any, tiny_sd3: Path) -> Callable[[str], Path]:
    """A copy of a tiny model whose weights are NaN: whoever reads them says so."""
    from library.tensorfile import read_header, read_tensors, write_tensors

    def make(kind: str) -> Path:
        source = tiny_sd3 if kind == "sd3" else tiny_unet_models[kind]
        copy = source.with_name(f"nan_{source.name}")
        if not copy.exists():
            tensors = read_tensors(read_header(source))
            write_tensors(copy, {name: t * float("nan") if t.is_floating_point() else t for name, t in tensors.items()})
        return copy

    return make


@pytest.fixture
def quiet_end() -> Any:
    """The log as it was before a script set it up."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("sd1", ("--token_string=zorp",), "none of the 4 captions has the word zorp of --token_string"),
        ("sd1", ("--token_string=red", "--use_object_template"), "the tokenizer of clip knows this word already"),
        ("sd1", ("--token_string=a blarg",), "--token_string is one word, got 'a blarg'"),
        ("sd1", ("--token_string=<blarg>",), "--token_string <blarg> is no name for a file"),
        ("sd1", ("--token_string=..",), "--token_string .. is no name for a file"),
        ("sd1", ("--init_word= ",), "--init_word is empty"),
        ("sd1", ("--cache_text_encoder_outputs",), "--cache_text_encoder_outputs cannot be used here"),
        ("sd1", ("--use_object_template", "--use_style_template"), "exclude each other"),
        ("sd1", ("--num_vectors_per_token=0",), "--num_vectors_per_token"),
        ("sd1", ("--num_vectors_per_token=2", "--weights={one}"), "has 1 vector, and --num_vectors_per_token is 2"),
        ("sdxl", ("--weights={one}",), "is of another model: its vectors have widths emb_params 32"),
        ("sd1", ("--weights={model}",), "is no embedding of textual inversion"),
        ("sd1", ("--weights=nothing.pt",), "nothing.pt"),
        ("sd1", ("--learning_rate=0",), "leaves nothing to train"),
        ("sd1", ("--init_wrd=red",), "--init_word"),
        ("sd3", ("--train_t5xxl", "--mixed_precision=fp16"), "cannot be used with --mixed_precision fp16"),
        ("sd3", ("--train_t5xxl", "--t5xxl_device=cpu"), "t5xxl"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence_before_weights_are_read(
    kind: str, flags: tuple[str, ...], message: str, word_training: Make, no_weights: Any, quiet_end: Any, capsys: Any
):
    train, model = word_training(kind), no_weights(kind)
    torch.save({ONLY_VECTORS: torch.ones(1, 32)}, train.folder / "one.pt")
    given = [flag.format(one=train.folder / "one.pt", model=model) for flag in flags]
    code = refused(train, captioned(train), *given, model=model)
    told = capsys.readouterr().err
    assert code == 2 and message in " ".join(told.split()) and "NaN" not in told, told
    assert not list(train.folder.rglob("blarg*.safetensors"))


def test_captions_are_not_counted_for_a_word_that_is_known(word_training: Make, quiet_end: Any, capsys: Any):
    train = word_training("sd1")
    code = refused(train, train.dataset(train.pictures()), "--token_string=red", model=train.model)
    told = capsys.readouterr().err
    assert code == 2 and "knows this word already" in told and "do not have the word" not in told


def test_captions_without_the_word_are_counted(word_training: Make):
    train = word_training("sd1")
    pictures = train.pictures()
    (pictures / "red_circle.txt").write_text("a blarg", encoding="utf-8")
    run = train.run(train.dataset(pictures), *FLAGS, "--max_train_steps=1")
    assert any("3 of 4 captions do not have the word blarg" in line for line in run.log)


def test_captions_too_long_for_the_word_are_counted(word_training: Make):
    train = word_training("sd1")
    pictures = train.pictures()
    for caption in pictures.glob("*.txt"):
        caption.write_text("a blarg", encoding="utf-8")
    (pictures / "red_circle.txt").write_text("red " * 74 + "blarg", encoding="utf-8")
    dataset, told = train.dataset(pictures), "1 of 4 captions are so long that clip does not read the whole word blarg"
    run = train.run(dataset, *FLAGS, *TWO_STEPS)
    assert any(told in line and "red_circle" in line for line in run.log)
    assert not any("so long" in line for line in train.run(dataset, *FLAGS, "--max_train_steps=1").log)
    longer = train.run(dataset, *FLAGS, *TWO_STEPS, "--max_token_length=150")
    assert not any("so long" in line for line in longer.log)


def test_a_word_that_no_encoder_would_read_is_refused(
    word_training: Make, no_weights: Any, quiet_end: Any, capsys: Any
):
    train, model = word_training("sdxl"), no_weights("sdxl")
    dataset = train.dataset(train.pictures(), caption_suffix="red " * 90 + "blarg")
    assert refused(train, dataset, model=model) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "so long that no text encoder reads them as far as the word blarg" in told and "NaN" not in told


def test_pictures_of_regularisation_keep_their_captions_beside_a_template(word_training: Make):
    train = word_training("sd1")
    pictures = train.pictures()
    regular = shutil.copytree(pictures, pictures.with_name("regular"))
    for caption in regular.glob("*.txt"):
        caption.write_text("another thing", encoding="utf-8")
    dataset = train.dataset(pictures)
    more = f'\n[[datasets.subsets]]\nimage_dir = "{regular.as_posix()}"\nis_reg = true\n'
    dataset.write_text(dataset.read_text(encoding="utf-8") + more, encoding="utf-8")
    run = train.run(dataset, *FLAGS, "--max_train_steps=4", "--use_object_template")
    captions = {caption for batch in run.batches for caption in batch.captions}
    assert "another thing" in captions and any("blarg" in caption for caption in captions)
    assert all("blarg" in caption for caption in captions - {"another thing"})


# What other programs make of it


@pytest.mark.parametrize(("kind", "ending"), [("sd1", "safetensors"), ("sd1", "pt"), ("sdxl", "safetensors")])
def test_diffusers_reads_the_file_and_encodes_prompts_as_here(
    word_training: Make, kind: str, ending: str, tmp_path: Path
):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from safetensors.torch import load_file

    from tests.tiny_unets import write_sd1_folder, write_sdxl_folder

    train = word_training(kind)
    run = train.run(captioned(train), *FLAGS, *TWO_STEPS, f"--save_model_as={ending}")
    writers = {"sd1": write_sd1_folder, "sdxl": write_sdxl_folder}
    kinds: dict[str, Any] = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
    pipeline = kinds[kind].from_pretrained(writers[kind](tmp_path / "folder").path)
    if kind == "sd1":
        pipeline.load_textual_inversion(run.file, token="blarg")
    else:
        vectors = load_file(run.file)
        for name, end in (("clip_l", ""), ("clip_g", "_2")):
            parts = {part: getattr(pipeline, f"{part}{end}") for part in ("text_encoder", "tokenizer")}
            pipeline.load_textual_inversion(vectors[name], token="blarg", **parts)
    prompt = "a blarg on a red blarg"
    with torch.no_grad():
        theirs = pipeline.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        ours = run.trainer.text.for_prompts([prompt], run.trainer.denoiser)
    assert torch.allclose(theirs[0], ours.context, atol=1e-5)
    if kind == "sdxl":
        assert torch.allclose(theirs[2], ours.pooled, atol=1e-5)


def test_the_word_is_learned(tmp_path: Path, quiet_end: Any):
    """Blue triangles, by a model that draws things in five colours and three shapes."""
    lesson = LESSONS["sd1"]
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    found = measure(lesson, train(lesson, tmp_path, steps=60, rate=3e-2), 24)
    assert found["its backgrounds, without the vectors"] <= 0.25
    assert found["its backgrounds, with the vectors"] >= 0.6
