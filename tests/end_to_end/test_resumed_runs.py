"""Going on elsewhere and otherwise: with two processes, with loss scaling, and from the hub."""

from pathlib import Path

import accelerate
import pytest
import torch
from safetensors.torch import load_file

from library.checkpoint.state_folder import open_folder
from library.training.saving.upload import Uploader
from tests.hub_server import running_hub

CACHED = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
FLAGS = ("--max_train_steps=4", "--save_every_n_steps=2", "--save_state", "--output_name=x")


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


def test_two_processes_go_on_to_the_same_bytes(training, launch_pair):
    dataset = training.dataset(training.pictures(), batch_size=1)
    flags = ("--network_train_unet_only", "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")
    flags = (*flags, "--max_train_epochs=2", "--save_every_n_steps=2", "--save_state", "--output_name=x")
    whole = launch_pair(training.arguments(dataset, *flags, "--ema_decay=0.9"), is_watched=False)
    assert whole.code == 0, whole.output
    state = f"--resume={training.folder / 'out1' / 'x-step00000002-state'}"
    rest = launch_pair(training.arguments(dataset, *flags, "--ema_decay=0.9", state), is_watched=False)
    assert rest.code == 0, rest.output
    for name in ("x.safetensors", "x-ema.safetensors", "x_loss_by_image.csv"):
        first, second = ((training.folder / out / name).read_bytes() for out in ("out1", "out2"))
        assert first == second, name


class ScalingAccelerator(accelerate.Accelerator):
    """As on a GPU: autocast and loss scaling in fp16."""

    def __init__(self, **options):
        super().__init__(**options)
        self.native_amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)


def test_loss_scaling_goes_on_where_it_was(training, dataset, monkeypatch):
    """The scale grows after three steps; the state has it, and how far it is to the next time."""
    monkeypatch.setattr(accelerate, "Accelerator", ScalingAccelerator)
    flags = (*CACHED, *FLAGS, "--max_train_steps=6", "--mixed_precision=fp16")
    whole = training.run(dataset, *flags)
    state = torch.load(whole.file.parent / "x-step00000004-state" / "training.pt", weights_only=True)
    assert state["scaler"]["scale"] == 2.0**11
    rest = training.run(dataset, *flags, f"--resume={whole.file.parent / 'x-step00000004-state'}")
    assert rest.trainer.continuation.first_step == 4
    assert rest.file.read_bytes() == whole.file.read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer_type=AdamW8bit",),
        ("--optimizer_type=Adafactor",),
        ("--optimizer_type=Prodigy", "--learning_rate=1"),
        ("--optimizer_type=RAdamScheduleFree",),
        ("--lr_scheduler=reduce_lr_on_plateau",),
        ("--lr_scheduler_type=CosineAnnealingLR", "--lr_scheduler_args", "T_max=5"),
        ("--mixed_precision=bf16", "--full_bf16"),
        ("--scale_weight_norms=0.1",),
        ("--network_module=lycoris.kohya", "--network_args", "algo=lokr"),
    ],
    ids=lambda flags: " ".join(flags),
)
def test_every_kind_of_training_goes_on_to_the_same_bytes(training, dataset, flags):
    for package in {"Prodigy": "prodigyopt", "RAdamScheduleFree": "schedulefree", "lycoris": "lycoris"}.items():
        if any(package[0] in flag for flag in flags):
            pytest.importorskip(package[1])
    flags = (*CACHED, *FLAGS, *flags)
    whole = training.run(dataset, *flags)
    rest = training.run(dataset, *flags, f"--resume={whole.file.parent / 'x-step00000002-state'}")
    assert rest.file.read_bytes() == whole.file.read_bytes() and rest.losses == whole.losses


def test_a_changed_rate_that_is_allowed_is_trained_with(training, dataset):
    flags = (*CACHED, *FLAGS, "--lr_scheduler=linear", "--learning_rate=1e-3")
    whole = training.run(dataset, *flags)
    state = f"--resume={whole.file.parent / 'x-step00000002-state'}"
    flags = (*flags, "--learning_rate=4e-3", "--optimizer_args", "weight_decay=0.2")
    rest = training.run(dataset, *flags, state, "--allow_changed")
    assert rest.trainer.watch._rates["lr/unet"][2:] == pytest.approx([2e-3, 1e-3])
    assert rest.trainer.optimizer.param_groups[0]["weight_decay"] == 0.2
    assert rest.losses[:2] == whole.losses[:2] and rest.file.read_bytes() != whole.file.read_bytes()


def test_an_average_that_no_state_has_begins_with_its_weights(training, dataset):
    flags = (*CACHED, *FLAGS)
    whole = training.run(dataset, *flags)
    state = f"--resume={whole.file.parent / 'x-step00000002-state'}"
    rest = training.run(dataset, *flags, "--ema_decay=1", state, "--allow_changed", "--max_train_steps=3")
    before = load_file(whole.file.parent / "x-step00000002.safetensors")
    for name, average in load_file(rest.file.parent / "x-ema.safetensors").items():
        if not name.endswith(".alpha"):  # the first update takes 2/11 of what the average began with
            torch.testing.assert_close(average, (2 * before[name] + 9 * rest.weights[name]) / 11)


def test_a_run_is_uploaded_while_it_goes_on_and_continued_from_the_hub(training, dataset, monkeypatch):
    with running_hub(monkeypatch) as hub:
        to_hub = ("--huggingface_repo_id=owner/name", "--huggingface_token=hf_secret", "--save_state_to_huggingface")
        whole = training.unet_only(dataset, *FLAGS, *to_hub)
        assert {"x.safetensors", "x-step00000002.safetensors", "x-state/manifest.json"} <= set(hub.files)
        assert hub.files["x.safetensors"] == whole.file.read_bytes()
        assert any(line.startswith("uploaded to owner/name") for line in whole.log)
        resume = ("--resume=owner/name/x-step00000002-state", "--resume_from_huggingface")
        rest = training.unet_only(dataset, *FLAGS, *resume, "--huggingface_token=hf_secret")
        assert rest.trainer.continuation.first_step == 2
        assert rest.file.read_bytes() == whole.file.read_bytes()
    written = [
        path for folder in ("out1", "out2") for path in Path(training.folder / folder).rglob("*") if path.is_file()
    ]
    assert written and not any(b"hf_secret" in path.read_bytes() for path in written)


def test_a_hub_that_is_never_reached_costs_nothing_but_the_copies(training, dataset, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(Uploader.__init__, "__kwdefaults__", {"delays": (0.01,)})
    plain = training.unet_only(dataset, *FLAGS)
    flags = ("--huggingface_repo_id=owner/name", "--huggingface_token=hf_secret")
    run = training.unet_only(dataset, *FLAGS, *flags)
    assert run.file.read_bytes() == plain.file.read_bytes()
    assert [line for line in run.log if "x.safetensors" in line and "not uploaded" in line]


def test_a_state_is_complete_and_says_where_it_stands(training, dataset):
    run = training.unet_only(dataset, *FLAGS)
    about = open_folder(run.file.parent / "x-step00000002-state").about
    assert (about["current_step"], about["current_epoch"], about["seed"]) == (2, 1, 5)
