"""The trainers of the scripts, without model files and caches.

Options, plan, optimizer, step and what watches it are the trainers' own, and so is everything that options such as
--blocks_to_swap or --torch_compile do to the model. Different are three things: the model is drawn at random on its
device, text encoders and VAE are not there, and batches, of random latents and text states, lie ready in page-locked
memory, where a loader's process would put them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.subject import Subject
from library.data.plan.batches import sample_id
from library.families.base import ModelFamily
from library.options.spec import parse_options
from library.records import Batch, BatchPlan, View
from library.training.encoding.text_stage import TextStage
from library.training.full_trainer import FullTrainer
from library.training.network_trainer import NetworkTrainer
from library.training.trainer import Trainer

NUM_BATCHES = 2  # different ones, in turn
NUM_STEPS = 1000  # of the run that is begun; it never ends


class NoEncoders:
    """Stands where caches and encoders are: all is cached, and nothing has to be loaded."""

    latents = texts = None

    def __init__(self, trainer: Trainer) -> None:
        self.text = TextStage(trainer.family, trainer.device)

    def load(self) -> None:
        """Nothing."""

    def vae(self) -> Any:
        """Is not needed."""
        raise AssertionError("latents are cached")


class Unfiled(Trainer):
    """What both trainings share.

    Args:
        options: Of the script.
        subject: The model.
    """

    def __init__(self, options: Any, subject: Subject) -> None:
        self.subject = subject
        super().__init__(options)

    def make_family(self) -> ModelFamily:
        """That of the model, without files."""
        family: ModelFamily = self.subject.family(self.options)
        return family

    def build(self) -> None:
        """The phases of a run up to its first step. The claim on the output folder ends with them."""
        with self.continuation:
            self._phases()

    def _phases(self) -> None:
        self.check_options()
        self.plan_run()
        self.inspect_files()
        self.start()
        self.encoders = NoEncoders(self)  # type: ignore[assignment]
        self.load()
        self.build_trainables()
        self.compile_blocks()
        self.swap_blocks()
        self.build_optimizer()
        self.build_loop()

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Without end, of the pictures of the plan in turn."""
        plans = (plan for epoch in count(1) for plan in self.plan.epoch(epoch, seed=self.seed, rank=0))
        ready = [self._ready(plan) for plan, _ in zip(plans, range(NUM_BATCHES), strict=False)]
        for number, plan in enumerate(plans):
            yield self._batch(plan, ready[number % NUM_BATCHES])

    def _ready(self, plan: BatchPlan) -> dict[str, Any]:
        """The tensors of a batch, where the loader leaves them."""
        number, cells = len(plan.items), self.family.pixels_per_latent
        latents = torch.randn(number, self.subject.latent_channels, plan.size.height // cells, plan.size.width // cells)
        text = self.subject.text_states(number, self.weight_dtype)
        loss_weights, latents = torch.ones(number), latents.to(self.weight_dtype)
        if self.device.type == "cuda":
            text = {name: state.pin_memory() for name, state in text.items()}
            loss_weights, latents = loss_weights.pin_memory(), latents.pin_memory()
        return {"loss_weights": loss_weights, "latents": latents, "text": text}

    def _batch(self, plan: BatchPlan, ready: Mapping[str, Any]) -> Batch:
        records = [self.plan.records[item.record] for item in plan.items]
        ids = tuple(sample_id(record, item.repeat) for record, item in zip(records, plan.items, strict=True))
        views = tuple(
            View(record.size, self.plan.crops[item.record]) for record, item in zip(records, plan.items, strict=True)
        )
        return Batch(plan, ids, tuple(record.caption for record in records), views=views, **ready)

    def one_step(self, batches: Iterator[Batch]) -> None:
        """A step as the loop makes it, with what watches it."""
        self.optimizer_step([next(batches)])
        if (report := self.take_report()) is not None:
            self.watch.step(report)

    def let_go(self) -> None:
        """Take the hooks off the weights: with them, a training is a circle that Python cannot see, and stays."""
        for parameter in (*self.denoiser.parameters(), *self.trained_parameters()):
            hooks = getattr(parameter, "_post_accumulate_grad_hooks", None)
            if hooks:
                hooks.clear()


class UnfiledNetworkTrainer(Unfiled, NetworkTrainer):
    """A LoRA."""


class UnfiledFullTrainer(Unfiled, FullTrainer):
    """The whole denoiser."""


def write_dataset(folder: Path, side: int, batch: int) -> Path:
    """As many pictures of one colour as two batches have, for the plan; returns the dataset configuration."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for index in range(NUM_BATCHES * batch):
        Image.new("RGB", (side, side)).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text("a photo", encoding="utf-8")
    config = folder / "dataset.toml"
    subset = f"[[datasets.subsets]]\nimage_dir = '{pictures.as_posix()}'\n"
    config.write_text(f"[[datasets]]\nresolution = {side}\nbatch_size = {batch}\ncaption_extension = '.txt'\n{subset}")
    return config


def build_training(
    folder: Path, subject: Subject, flags: Sequence[str], *, side: int, batch: int, is_network: bool
) -> Unfiled:
    """A training just before its first step.

    Args:
        folder: Empty; for the pictures and the output.
        subject: The model.
        flags: Of the script, beside those that all runs have.
        side: Of the pictures, in pixels.
        batch: Pictures of a step.
        is_network: A LoRA; else the whole model.

    Raises:
        UserError: Options that contradict each other or that this machine cannot run.
    """
    values = {
        "pretrained_model_name_or_path": folder / "random_numbers.safetensors",
        "dataset_config": write_dataset(folder, side, batch),
        "output_dir": folder / "output",
        "cache_dir": folder / "caches",
        "max_train_steps": NUM_STEPS,
        "max_data_loader_n_workers": 0,
        "mixed_precision": "bf16",
        "seed": 1,
    }
    switches = ["cache_latents_to_disk", "cache_text_encoder_outputs_to_disk", "no_metadata"]
    line = [f"--{name}={value}" for name, value in values.items()] + [f"--{name}" for name in switches] + [*flags]
    if is_network:
        line += [f"--network_module={subject.network_module}", "--network_train_unet_only"]
    options, script = subject.script(is_network=is_network)
    kind: type[Unfiled] = UnfiledNetworkTrainer if is_network else UnfiledFullTrainer
    trainer = kind(parse_options(options, line, **script), subject)
    trainer.build()
    return trainer
