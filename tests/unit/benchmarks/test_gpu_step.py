"""What runs at true sizes on a GPU runs here at small ones: the same rows, by the same code."""

import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import gpu_step
from benchmarks.gpu_rows import FAMILIES, OURS, TRAININGS, VARIANTS, Row, rows
from benchmarks.plain_loop import fused_adamw
from benchmarks.random_model import random_mmdit
from benchmarks.random_unet import random_unet
from benchmarks.subject import SUBJECTS
from benchmarks.unet_sizes import TINY_UNETS
from benchmarks.unfiled_training import build_training
from library.options.spec import parse_options

TINY = SUBJECTS["tiny"].models
PLAIN = {"is_diffusers": False, "recomputes": False}
QUICK = ["--device=cpu", "--sizes=tiny", "--pixels=512", "--seconds=0.1"]
FEW = [*QUICK, "--models=SD3-medium"]


@pytest.fixture(autouse=True)
def _no_accelerator_left():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def cells(line):
    return dict(zip(gpu_step.HEAD, [cell.strip() for cell in line.strip("|").split("|")], strict=True))


def test_two_rows_are_measured_and_compared(capsys):
    assert gpu_step.main([*FEW, "--batches=1", "--trainings", "LoRA 16", "--rows", "plain", "written"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| SD3")]
    ours, written = map(cells, lines)
    assert [ours["row"], written["row"]] == ["plain", "written"]
    seconds = [float(found["s/step"]) for found in (ours, written)]
    assert all(one > 0 for one in seconds)
    assert ours["remark"] == "" and ours["x"] == "-"
    assert float(written["x"]) == pytest.approx(seconds[1] / seconds[0], rel=0.01)


def test_a_row_that_cannot_be_says_why(capsys, monkeypatch):
    impossible = replace(VARIANTS["plain"], flags=("--base_weights_dtype=int8", "--fp8_base"))
    monkeypatch.setitem(VARIANTS, "plain", impossible)
    assert gpu_step.main([*FEW, "--batches=1", "--trainings", "LoRA 16", "--rows", "plain"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| SD3")]
    assert "exclude each other" in cells(line)["remark"] and cells(line)["s/step"] == "-"


def test_rows_that_would_take_too_long_are_counted(capsys):
    gpu_step.main([*FEW, "--time-limit=0"])
    number = sum(row.model == "SD3-medium" and row.pixels == 512 for row in rows())
    assert f"{number} of {number} rows were left out for want of time." in capsys.readouterr().out


def test_what_a_row_will_take_is_foreseen_from_the_slowest_so_far():
    limit = gpu_step.Limit(seconds=100.0, steps_seconds=1.0)
    assert limit.allows(1e12)
    limit.learn(1e12, gpu_step.Figures(seconds=1.0), wall=5.0)
    assert limit.allows(5e12) and not limit.allows(20e12)  # 7 steps of 20 s


def test_every_row_is_there_once_the_published_run_first():
    chosen = rows()
    assert len(set(chosen)) == len(chosen)
    assert chosen[0] == Row("SD3.5-medium", 1024, 3, "LoRA 128, attention", "plain")
    assert {row.variant for row in chosen} == set(VARIANTS) and {row.training for row in chosen} == set(TRAININGS)
    assert all(TRAININGS[row.training].rank for row in chosen if VARIANTS[row.variant].loop != OURS)


def test_what_a_row_is_compared_with_comes_before_it():
    place = {row: number for number, row in enumerate(rows())}
    for row, number in place.items():
        base = replace(row, variant=VARIANTS[row.variant].against)
        assert VARIANTS[base.variant].loop == OURS
        assert base == row or place.get(base, -1) < number


FAMILY = {name: family for family, names in FAMILIES.items() for name in names}


def test_a_family_has_its_rows_the_run_of_small_cards_first():
    for family, first in {
        "sdxl": Row("SDXL", 1024, 1, "LoRA 8", "plain"),
        "sd15": Row("SD1.5", 512, 4, "LoRA 8", "plain"),
    }.items():
        given = gpu_step._parser().parse_args([f"--family={family}"])
        chosen = gpu_step.choose(given)
        assert chosen[0] == first
        assert {row.model for row in chosen} == set(FAMILIES[family])


def test_our_scripts_accept_the_flags_of_every_row():
    kinds = {(FAMILY[row.model], row.training, row.variant) for row in rows() if VARIANTS[row.variant].loop == OURS}
    needed = ["--pretrained_model_name_or_path=a", "--dataset_config=b", "--output_dir=c", "--mixed_precision=bf16"]
    for family, training, variant in kinds:
        subject, is_network = TINY[FAMILIES[family][0]], bool(TRAININGS[training].rank)
        options, script = subject.script(is_network=is_network)
        flags = [*TRAININGS[training].all_flags(), *VARIANTS[variant].all_flags(subject.depth)]
        network = [f"--network_module={subject.network_module}", "--network_train_unet_only"] if is_network else []
        parse_options(options, [*needed, *network, *flags], **script)


@pytest.mark.parametrize(
    ("name", "training"),
    [("SD3.5-medium", "LoRA 16"), ("SD3.5-medium", "LoRA 128, attention"), ("SDXL", "LoRA 8"), ("SD1.5", "LoRA 8")],
)
def test_the_trainer_and_the_hand_written_loop_train_as_many_numbers(name, training, tmp_path, monkeypatch):
    subject, chosen = TINY[name], replace(TRAININGS[training], is_in_8_bits=False)
    trainer = build_training(tmp_path, subject, chosen.all_flags(), side=64, batch=2, is_network=True)
    known = []
    monkeypatch.setattr("benchmarks.gpu_rows.fused_adamw", known.extend)
    subject.other_step(chosen, side=64, batch=2, device=torch.device("cpu"), **PLAIN)
    assert sum(p.numel() for p in known) == sum(p.numel() for p in trainer.trained_parameters())


@pytest.mark.parametrize("is_diffusers", [False, True], ids=["written", "diffusers"])
def test_a_loop_over_a_unet_makes_a_step(is_diffusers, monkeypatch):
    if is_diffusers:
        pytest.importorskip("peft")
    known = []
    monkeypatch.setattr("benchmarks.gpu_rows.fused_adamw", lambda trained: known.extend(trained) or fused_adamw(known))
    how = {"is_diffusers": is_diffusers, "recomputes": True}
    step = TINY["SDXL"].other_step(TRAININGS["LoRA 8"], side=32, batch=1, device=torch.device("cpu"), **how)
    before = [parameter.detach().clone() for parameter in known]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, known, strict=True))


@pytest.mark.parametrize(
    ("name", "is_network"),
    [("SD3.5-medium", True), ("SD3.5-medium", False), ("SDXL", False)],
)
def test_a_training_without_files_makes_finite_steps_and_leaves_nothing_behind(name, is_network, tmp_path):
    flags = ["--gradient_checkpointing", "--learning_rate=1e-3", "--fused_backward_pass", "--max_grad_norm=0"]
    trainer = build_training(tmp_path, TINY[name], flags, side=64, batch=2, is_network=is_network)
    before = [parameter.detach().clone() for parameter in trainer.trained_parameters()]
    batches = trainer.batches_from(0)
    for _ in range(3):
        trainer.one_step(batches)
    trainer.flush_report()
    assert len(trainer.loss_history) == 3 and all(math.isfinite(loss) for loss in trainer.loss_history)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.trained_parameters(), strict=True))
    denoiser = weakref.ref(trainer.denoiser)
    trainer.let_go()
    AcceleratorState._reset_state(reset_partial_state=True)
    del trainer, batches
    gc.collect()
    assert denoiser() is None


def test_random_weights_are_alike_wherever_they_are_asked_for():
    for draw, size in ((random_mmdit, TINY["SD3-medium"].config), (random_unet, TINY_UNETS["SDXL"])):
        models = [draw(size, torch.float32, torch.device("cpu")) for _ in range(2)]
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(one, other) and torch.isfinite(one).all()


def test_cards_are_known_by_their_names():
    named = {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA L40S": 362, "NVIDIA L4": 121}
    assert {name: gpu_step.peak_tflops(f"cuda:0 ({name})") for name in named} == named
    assert gpu_step.peak_tflops("cuda (NVIDIA GeForce RTX 4090)") == 165
    assert gpu_step.peak_tflops("CPU") is None
