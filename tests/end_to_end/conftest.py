"""Trainings on tiny models: `training` runs sd3_train_network.py and `full_training` sd3_train.py in this process,
`training_of` the scripts of other families, `launch` any in a process of its own, `launch_pair` in two; `refused` runs
the first up to an error that must come before weights are read."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import toml
import torch
from safetensors.torch import load_file

from library.families.sd3.options import FULL_SCRIPT, NETWORK_SCRIPT, Sd3FullOptions, Sd3NetworkOptions
from library.log import LOGGER_NAME
from library.options.spec import ScriptOptions, ScriptText, parse_options
from library.records import Batch
from library.training.trainer import Trainer
from tests.warm_python import WarmPython

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples" / "pictures"
SQUARE = ("blue_triangle.png", "red_circle.png", "red_square.png", "red_star.png")  # 64 x 64, so one bucket
SMALL_BUCKETS = {"resolution": 64, "enable_bucket": True, "max_bucket_reso": 128}
SUBSET_KEYS = {"alpha_mask", "is_reg", "metadata_file", "conditioning_data_dir"}  # that have no place elsewhere

PLAIN = ("axes.grid", "xtick.bottom", "xtick.labelbottom", "ytick.left", "ytick.labelleft")  # without these

NOTHING: Mapping[str, Any] = {}
NAN_FOUND = "has NaN or infinite values"

# Runs the script as its command line asks, and writes what happened to $WITNESS, one file for each process.
WITNESS = """
import importlib, json, os, sys
from library.data import cache
script = importlib.import_module(os.environ["SCRIPT"])
own = [name for name, item in vars(script).items() if getattr(item, "__module__", "") == script.__name__]
name = next(name for name in own if name.endswith("Trainer"))

written = []
real_write = cache.TensorCache.write

def write(self, entry_id, tensors):
    written.append(str(self[entry_id].path))
    real_write(self, entry_id, tensors)

class Witness(getattr(script, name)):
    def run(self):
        code = super().run()
        account = {"losses": self.loss_history, "saved": [str(path) for path in self.saved_files]}
        account |= {"entries": written, "modules": sorted(sys.modules)}
        with open(os.environ["WITNESS"] + os.environ.get("RANK", "0"), "w", encoding="utf-8") as file:
            json.dump(account, file)
        return code

cache.TensorCache.write = write
setattr(script, name, Witness)
sys.exit(script.main())
"""


@dataclass(frozen=True)
class FinishedRun:
    """A training that came to its end.

    Attributes:
        trainer: As the training left it.
        log: Lines of the log, without their importance.
        batches: All that the loop got from the data, in order.
    """

    trainer: Any
    log: tuple[str, ...]
    batches: tuple[Batch, ...] = ()

    @property
    def losses(self) -> list[float]:
        """Of every optimizer step."""
        return list(self.trainer.loss_history)

    @property
    def file(self) -> Path:
        """What was saved last."""
        path: Path = self.trainer.saved_files[-1]
        return path

    @property
    def weights(self) -> dict[str, Any]:
        """Tensors of the last file."""
        return load_file(self.file)

    @property
    def seen(self) -> list[str]:
        """Names of the pictures that were trained, each as often as it was, sorted."""
        records = self.trainer.plan.records
        return sorted(records[item.record].path.name for batch in self.batches for item in batch.plan.items)


class Training:
    """Pictures, dataset files and runs in a folder of the test.

    Args:
        folder: For everything.
        model: What is trained where a test gives no other.
    """

    examples = EXAMPLES
    output = "out"  # begins the names of the output folders
    options_class: type[ScriptOptions] = Sd3NetworkOptions
    script: ScriptText = NETWORK_SCRIPT
    own_flags: tuple[str, ...] = ("--network_module=networks.lora", "--network_dim=4", "--network_alpha=4")
    family_flags: tuple[str, ...] = ("--t5xxl_max_token_length=16",)
    bucket_steps = 16

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self._num_runs = 0

    def pictures(self, names: Sequence[str] = SQUARE, to: str = "pictures") -> Path:
        """A folder with copies of example pictures and their captions."""
        folder = self.folder / to
        folder.mkdir()
        for name in names:
            for file in (name, f"{Path(name).stem}.txt"):
                shutil.copy(EXAMPLES / file, folder)
        return folder

    def dataset(self, pictures: Path, **keys: Any) -> Path:
        """A dataset file: one folder, batches of 2, buckets around 64 x 64, and these keys."""
        own = {key: keys.pop(key) for key in SUBSET_KEYS & keys.keys()}
        return self.dataset_of({"subsets": [{"image_dir": str(pictures), **own}]}, **keys)

    def dataset_of(self, *datasets: Mapping[str, Any], **keys: Any) -> Path:
        """A dataset file of several datasets, with these keys for all."""
        steps = {"bucket_reso_steps": self.bucket_steps, "min_bucket_reso": max(32, self.bucket_steps)}
        general = {**SMALL_BUCKETS, **steps, "caption_extension": ".txt", "batch_size": 2, **keys}
        number = len(list(self.folder.glob("dataset*.toml")))
        path = self.folder / f"dataset{number}.toml"
        path.write_text(toml.dumps({"general": general, "datasets": list(datasets)}), encoding="utf-8")
        return path

    def arguments(self, dataset: Path, *flags: str, model: Path | None = None) -> list[str]:
        """The command line: a fixed seed, no metadata, and for adapters a small LoRA; `flags` come last and win."""
        self._num_runs += 1
        return [
            f"--pretrained_model_name_or_path={model or self.model}",
            f"--dataset_config={dataset}",
            f"--output_dir={self.folder / f'{self.output}{self._num_runs}'}",
            *(*self.own_flags, "--learning_rate=1e-3"),
            *("--seed=5", "--no_metadata", "--max_data_loader_n_workers=0", *self.family_flags),
            *flags,
        ]

    def run(
        self, dataset: Path, *flags: str, model: Path | None = None, after: Mapping[str, Callable[[], object]] = NOTHING
    ) -> FinishedRun:
        """Train in this process; flags that are given twice count once, the last time."""
        return self.run_arguments(_without_repeats(self.arguments(dataset, *flags, model=model)), after=after)

    def trainer_class(self) -> type[Trainer]:
        """What the script runs."""
        from sd3_train_network import Sd3NetworkTrainer

        return Sd3NetworkTrainer

    def run_arguments(
        self, arguments: Sequence[str], *, after: Mapping[str, Callable[[], object]] = NOTHING
    ) -> FinishedRun:
        """Train with exactly this command line; `after` has what happens in the world after a phase of the run."""
        from accelerate.state import AcceleratorState

        base: Any = self.trainer_class()

        class Watched(base):  # type: ignore[misc]
            """Keeps the batches that the loop gets."""

            def __init__(self, options: Any) -> None:
                super().__init__(options)
                self.batches: list[Batch] = []

            def _optimizer_step(self, batches: list[Batch]) -> None:
                self.batches += batches
                super()._optimizer_step(batches)

        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one run, outside tests
        trainer = Watched(parse_options(self.options_class, arguments, **self.script))
        for phase, act in after.items():
            setattr(trainer, phase, _followed(getattr(trainer, phase), act))
        lines: list[str] = []
        logger, handler = logging.getLogger(LOGGER_NAME), _Collector(lines)
        level, _ = logger.level, logger.setLevel("INFO")
        logger.addHandler(handler)
        try:
            trainer.run()
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        return FinishedRun(trainer, tuple(lines), tuple(trainer.batches))

    def compare(self, dataset: Path, *flags: str, model: Path | None = None) -> FinishedRun:
        """A run whose weights can be compared: Adam divides by at least 1e-4, so that rounding is not enlarged."""
        return self.run(dataset, *flags, "--optimizer_args", "eps=1e-4", model=model)

    def unet_only(self, dataset: Path, *flags: str, model: Path | None = None) -> FinishedRun:
        """The fastest training: no text encoder trains, and everything is cached in memory."""
        caches = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
        return self.run(dataset, *caches, *flags, model=model)


class FullTraining(Training):
    """The same with sd3_train.py."""

    output = "full"
    options_class = Sd3FullOptions
    script = FULL_SCRIPT
    own_flags = ()

    def trainer_class(self) -> type[Trainer]:
        """What the script runs."""
        from sd3_train import Sd3FullTrainer

        return Sd3FullTrainer


class OtherTraining(Training):
    """The same with a script of another family.

    Args:
        folder: For everything.
        model: What is trained, with its tokenizers beside it.
        script: Name of the script, without ending.
    """

    def __init__(self, folder: Path, model: Path, script: str) -> None:
        super().__init__(folder, model)
        name, options, text = OTHER_SCRIPTS[script]
        kind = script.partition("_")[0]
        room = importlib.import_module(f"library.families.{kind if kind in ('sdxl', 'sd3') else 'sd'}.options")
        self.options_class, self.script = getattr(room, options), getattr(room, text)
        self._entry, self._trainer_name = script, name
        self.own_flags = Training.own_flags if "network" in script else ()
        self.family_flags = (f"--tokenizer_dir={model.parent}",)
        self.bucket_steps = 32 if "sdxl" in script else 64
        if kind == "sd3":
            self.family_flags, self.bucket_steps = Training.family_flags, Training.bucket_steps

    def trainer_class(self) -> type[Trainer]:
        """What the script runs."""
        found: type[Trainer] = getattr(importlib.import_module(self._entry), self._trainer_name)
        return found


OTHER_SCRIPTS = {  # script: what it runs, and its options
    "sdxl_train_network": ("SdxlNetworkTrainer", "SdxlNetworkOptions", "SDXL_NETWORK_SCRIPT"),
    "sdxl_train": ("SdxlFullTrainer", "SdxlFullOptions", "SDXL_FULL_SCRIPT"),
    "sdxl_train_control_net_lllite": ("SdxlLlliteTrainer", "SdxlLlliteOptions", "SDXL_LLLITE_SCRIPT"),
    "train_network": ("SdNetworkTrainer", "SdNetworkOptions", "SD_NETWORK_SCRIPT"),
    "fine_tune": ("FineTuneTrainer", "FineTuneOptions", "FINE_TUNE_SCRIPT"),
    "train_db": ("DreamBoothTrainer", "DreamBoothOptions", "DREAM_BOOTH_SCRIPT"),
    "train_textual_inversion": ("SdInversionTrainer", "SdInversionOptions", "SD_INVERSION_SCRIPT"),
    "sdxl_train_textual_inversion": ("SdxlInversionTrainer", "SdxlInversionOptions", "SDXL_INVERSION_SCRIPT"),
    "sd3_train_textual_inversion": ("Sd3InversionTrainer", "Sd3InversionOptions", "INVERSION_SCRIPT"),
}


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _followed(phase: Callable[..., object], act: Callable[[], object]) -> Callable[..., None]:
    def both(*args: object, **named: object) -> None:
        phase(*args, **named)
        act()

    return both


def _without_repeats(arguments: Sequence[str]) -> list[str]:
    given = [argument.partition("=")[0] for argument in arguments]
    return [a for i, a in enumerate(arguments) if not a.startswith("--") or given[i] not in given[i + 1 :]]


@dataclass(frozen=True)
class Launched:
    """A command that has ended.

    Attributes:
        code: Its exit code.
        output: What it wrote to stdout and stderr.
        accounts: Of each process that came to its end: losses, saved files, cache entries made, imported modules.
    """

    code: int
    output: str
    accounts: tuple[dict[str, Any], ...]


@pytest.fixture
def plain_curves() -> Iterator[pytest.MonkeyPatch]:
    """The picture of the curves is small and has no ticks, else drawing it takes as long as most trainings; what is
    returned can undo that."""
    from library.training.watching import curves

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "_INCHES", (8.0, 6.0))
        patch.setattr(curves, "_STYLE", {**curves._STYLE, **dict.fromkeys(PLAIN, False)})
        yield patch


@pytest.fixture
def training(
    tmp_path: Path, tiny_sd3: Path, monkeypatch: pytest.MonkeyPatch, plain_curves: pytest.MonkeyPatch
) -> Training:
    """Trainings on the tiny SD3-medium, in this process, on the CPU: there the same bytes come out every time."""
    for backend in (torch.cuda, torch.backends.mps, torch.xpu):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    return Training(tmp_path, tiny_sd3)


@pytest.fixture
def full_training(training: Training) -> FullTraining:
    """Trainings of the whole tiny SD3-medium, in this process, on the CPU."""
    return FullTraining(training.folder, training.model)


@pytest.fixture(scope="session")
def tiny_unet_models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Random tiny models in one file each, with their tokenizers: "sd1", "sd2" (predicts the velocity), "sdxl"."""
    from tests.tiny_unets import write_sd1, write_sd2, write_sdxl

    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("sd1", "sd2", "sdxl")}
    return {
        "sd1": write_sd1(folders["sd1"]).path,
        "sd2": write_sd2(folders["sd2"], is_v=True).path,
        "sdxl": write_sdxl(folders["sdxl"]).path,
    }


@pytest.fixture
def training_of(training: Training, tiny_unet_models: Mapping[str, Path]) -> Callable[..., OtherTraining]:
    """training_of(script, kind) gives trainings of a tiny "sd1", "sd2" or "sdxl", in this process, on the CPU."""
    return lambda script, kind: OtherTraining(training.folder, tiny_unet_models[kind], script)


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """The file with WITNESS."""
    path = tmp_path / "witness.py"
    path.write_text(WITNESS, encoding="utf-8")
    return path


def _accounts(folder: Path) -> tuple[dict[str, Any], ...]:
    files = sorted(folder.glob("witness.[0-9]"))
    return tuple(json.loads(file.read_text(encoding="utf-8")) for file in files)


@pytest.fixture
def launch(tmp_path: Path, witness: Path) -> Callable[..., Launched]:
    """launch(arguments, launcher=(), script="sd3_train_network") starts a script, without a GPU.

    It runs in a Python of its own, in the repository. Further options go to subprocess.run.
    """

    def start(
        arguments: Sequence[str],
        launcher: Sequence[str] = (),
        *,
        script: str = "sd3_train_network",
        is_watched: bool = True,
        **options: Any,
    ) -> Launched:
        name = str(witness) if is_watched else f"{script}.py"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"WITNESS": str(tmp_path / "witness."), "SCRIPT": script}
        done = subprocess.run(
            [sys.executable, *launcher, name, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
            check=False,
            **options,
        )
        return Launched(done.returncode, done.stdout.decode("utf-8", "replace"), _accounts(tmp_path))

    return start


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Starts scripts in processes of their own that need not import torch."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    started = WarmPython()
    yield started
    started.close()


@pytest.fixture
def launch_pair(tmp_path: Path, witness: Path, warm_python: WarmPython) -> Callable[..., Launched]:
    """launch_pair(arguments, script="sd3_train_network") runs a script in two processes that find each other as those
    of torchrun do, without a GPU. The code is the first that is not 0."""

    def start(arguments: Sequence[str], *, script: str = "sd3_train_network", is_watched: bool = True) -> Launched:
        name = witness if is_watched else ROOT / f"{script}.py"
        variables = {"WITNESS": str(tmp_path / "witness."), "SCRIPT": script}
        output = tmp_path / f"pair{len(list(tmp_path.glob('pair*.log')))}.log"
        started = warm_python.start([str(name), *arguments], output, ranks=2, environment=variables)
        code = next((code for code in warm_python.wait(started) if code), 0)
        return Launched(code, started.printed(), _accounts(tmp_path))

    return start


@dataclass(frozen=True)
class Refusal:
    """What a user sees of a run that ended early.

    Attributes:
        code: The exit code.
        shown: Everything on stderr.
        printed: Everything on stdout.
    """

    code: int
    shown: str
    printed: str = ""

    @property
    def error(self) -> str:
        """The error with its list. There is one, it comes last, and no traceback is around it."""
        found = re.findall(r"^error: .*$", self.shown, re.MULTILINE)
        assert len(found) == 1 and "Traceback" not in self.shown, self.shown
        return self.shown[self.shown.index(found[0]) :].rstrip()

    @property
    def has_read_weights(self) -> bool:
        """Whether the run got as far as the numbers of the model."""
        return NAN_FOUND in self.shown


@pytest.fixture(scope="session")
def nan_model(tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its tokenizers; every number is NaN, so a run that reads one ends with an error about it."""
    folder = tmp_path_factory.mktemp("nan_model")
    for tokenizer in tiny_sd3.parent.glob("tokenizer*"):
        shutil.copytree(tokenizer, folder / tokenizer.name)
    content = tiny_sd3.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    path = folder / "sd3.safetensors"
    path.write_bytes(content[:start] + b"\xff" * (len(content) - start))
    return path


@pytest.fixture
def refused(
    training: Training, nan_model: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Refusal]]:
    """refused(dataset, *flags) runs the script's main, on a model whose weights must not be read (or on `model`)."""
    import sd3_train_network

    logger = logging.getLogger(LOGGER_NAME)
    before = logger.handlers[:], logger.propagate, logger.level

    def run(dataset: Path, *flags: str, model: Path = nan_model) -> Refusal:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        code = sd3_train_network.main(_without_repeats(training.arguments(dataset, *flags, model=model)))
        written = capsys.readouterr()
        return Refusal(code, written.err, written.out)

    yield run
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])
