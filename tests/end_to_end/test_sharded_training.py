"""sd3_train.py on two processes: sharded as with FSDP2, and as whole copies, it trains what one process trains.

torch takes long to start, so one pair of processes makes several trainings, one after the other.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from library.families.sd3.options import FULL_SCRIPT, Sd3FullOptions
from library.options.spec import parse_options

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
PICTURES = ("blue_triangle", "red_circle", "red_square", "red_star", "blue_circle")  # three train, two are validated
CACHED = ("--cache_latents", "--cache_text_encoder_outputs", "--validation_split=0.4")
EVERYTHING = (*CACHED, "--max_train_epochs=3", "--save_every_n_epochs=2", "--save_state", "--ema_decay=0.9")
ENCODERS = ("--cache_latents", "--train_text_encoder", "--train_t5xxl", "--save_clip", "--save_t5xxl")
ENCODERS += ("--max_train_steps=2",)
BITS = ("--optimizer_type=AdamW8bit", "--max_train_steps=2")
HALF = (*CACHED, *BITS, "--full_bf16", "--mixed_precision=bf16", "--save_state")
ZERO = ("--deepspeed", "--zero_stage=2", "--offload_optimizer_device=cpu")
ACCUMULATED = "--gradient_accumulation_steps=2"
STATE = "epoch-000002-state"
STEP_STATE = "at-step00000001-state"

# Makes the trainings of $JOBS in the same two processes; writes what each process has seen of each, as it ends.
TRAININGS = """
import json, os, sys
from pathlib import Path
import torch
from accelerate.state import AcceleratorState
from library.errors import DatasetError, UserError
from library.families.sd3.options import FULL_SCRIPT, Sd3FullOptions
from library.options.spec import parse_options
from library.training.stepping.batch_loss import BatchLoss
from sd3_train import Sd3FullTrainer

rank = os.environ["RANK"]
torch.distributed.destroy_process_group = lambda *_: None  # the next training has the same group
loss = BatchLoss.__call__

class Witness(Sd3FullTrainer):
    def _optimizer_step(self, batches):
        if fault == "data" and rank == "1" and self.step == 1 and batches:
            self.loop.fail(DatasetError("red_star.png: the disk is gone. Plug it in."))
            batches = []
        super()._optimizer_step(batches)

def no_memory(self, batch):
    if rank == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
    return loss(self, batch)

for job in json.loads(Path(os.environ["JOBS"]).read_text()):
    fault = job["fault"]
    os.environ.update(ACCELERATE_USE_FSDP=str(job["is_sharded"]), FSDP_VERSION="2")
    AcceleratorState._reset_state(reset_partial_state=True)
    BatchLoss.__call__ = no_memory if fault == "memory" else loss
    trainer = Witness(parse_options(Sd3FullOptions, job["arguments"], **FULL_SCRIPT))
    account = {"error": ""}
    try:
        account["code"] = trainer.run()
    except UserError as error:
        account["error"] = str(error)
    if fault == "memory" and account["error"]:
        print(f"rank {rank}: {account['error']}", flush=True)
        sys.exit(3)
    account["held"] = sum(p.numel() for p in trainer.trained_parameters())
    account["of"] = sum(p.numel() for p in trainer.trained_state().values())
    account |= {"losses": trainer.loss_history, "step": trainer.step}
    account["saved"] = [str(path) for path in trainer.saved_files]
    Path(os.environ["JOBS"] + f".{job['name']}.{rank}").write_text(json.dumps(account))
"""


class Runs:
    """Trainings in this process, and those of a pair of processes.

    Args:
        folder: For everything.
        model: That trains.
    """

    def __init__(self, folder, model):
        self.folder, self.model, self.jobs = folder, model, []
        self.output, self.code = "", None
        pictures = folder / "1_pictures"
        pictures.mkdir()
        for name in PICTURES:
            for ending in (".png", ".txt"):
                shutil.copy(ROOT / "examples" / "pictures" / f"{name}{ending}", pictures)
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("a red circle --w 64 --h 64 --s 2 --d 1", encoding="utf-8")

    def arguments(self, name, *flags):
        """Of a training into the folder of this name."""
        return [
            *(f"--pretrained_model_name_or_path={self.model}", f"--output_dir={self.folder / name}"),
            *(f"--train_data_dir={self.folder}", "--resolution=64", "--train_batch_size=1", "--caption_extension=.txt"),
            *("--seed=5", "--no_metadata", "--t5xxl_max_token_length=16", "--max_data_loader_n_workers=0"),
            *("--learning_rate=1e-3", "--optimizer_args", "eps=1e-4", *flags),
        ]

    def alone(self, name, *flags):
        """Train in this process; the finished trainer."""
        from accelerate.state import AcceleratorState

        from sd3_train import Sd3FullTrainer

        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = Sd3FullTrainer(parse_options(Sd3FullOptions, self.arguments(name, *flags), **FULL_SCRIPT))
        trainer.run()
        return trainer

    def add(self, name, *flags, is_sharded=True, fault=""):
        """A training of the pair, behind those that were added before. `is_sharded` is what the launcher asks for."""
        job = {"name": name, "arguments": self.arguments(name, *flags), "is_sharded": is_sharded, "fault": fault}
        self.jobs.append(job)

    def start(self):
        """The trainings of the pair."""
        script, jobs = self.folder / "trainings.py", self.folder / "jobs"
        script.write_text(TRAININGS, encoding="utf-8")
        jobs.write_text(json.dumps(self.jobs), encoding="utf-8")
        environment = {**os.environ, "JOBS": str(jobs), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, *TORCHRUN, str(script)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
            check=False,
        )
        self.code, self.output = done.returncode, done.stdout.decode("utf-8", "replace")

    def accounts(self, name):
        """What both processes have seen of a training."""
        files = [self.folder / f"jobs.{name}.{rank}" for rank in "01"]
        assert all(file.exists() for file in files), self.output
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_sd3):
    made = Runs(tmp_path_factory.mktemp("sharded"), tiny_sd3)
    sampled = (*EVERYTHING, f"--sample_prompts={made.prompts}", "--sample_every_n_epochs=2")
    made.add("sharded", *sampled)
    made.add("resumed", *sampled, f"--resume={made.folder / 'sharded' / STATE}")
    made.add("copies", *CACHED, "--max_train_epochs=3", is_sharded=False)
    kept = (*ZERO, "--max_train_epochs=3", "--save_every_n_epochs=2", "--gradient_checkpointing")
    made.add("kept", *CACHED, *kept, is_sharded=False)
    made.add("encoders", *ENCODERS, "--gradient_checkpointing")
    made.add("bits", *CACHED, *BITS, "--save_state_on_train_end")
    made.add("half", *HALF, "--save_every_n_steps=1")
    made.add("half_resumed", *HALF, f"--resume={made.folder / 'half' / STEP_STATE}")
    made.add("data", *CACHED, "--max_train_steps=4", fault="data")
    made.add("memory", *CACHED, "--max_train_steps=4", fault="memory")
    with pytest.MonkeyPatch.context() as patch:
        for backend in (torch.cuda, torch.backends.mps, torch.xpu):
            patch.setattr(backend, "is_available", lambda: False)
        made.one = made.alone("one", *sampled, ACCUMULATED)
        made.start()
        resumed = ("--allow_changed", f"--resume={made.folder / 'sharded' / STATE}")
        made.one_resumed = made.alone("one_resumed", *sampled, ACCUMULATED, *resumed)
        made.one_encoders = made.alone("one_encoders", *ENCODERS, ACCUMULATED)
        made.one_half = made.alone("one_half", *HALF, ACCUMULATED)
        made.one_bits = made.alone("one_bits", *CACHED, *BITS, ACCUMULATED, "--save_state_on_train_end")
    return made


def assert_same_file(found, expected, atol=1e-6):
    """Names in their order, shapes, types, and numbers but for rounding."""
    found, expected = load_file(found), load_file(expected)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def assert_same_state(found, expected):
    """Weights, average and optimizer."""
    for name in ("weights", "ema"):
        assert_same_file(found / f"{name}.safetensors", expected / f"{name}.safetensors")
    found, expected = (torch.load(folder / "training.pt", weights_only=True) for folder in (found, expected))
    told, of = found["optimizer"], expected["optimizer"]
    torch.testing.assert_close(told.pop("tensors"), of.pop("tensors"), rtol=0, atol=1e-6)
    assert told == of and found["schedule"] == expected["schedule"]


def moved(file, model):
    """The furthest that a number of the model has gone."""
    before, after = load_file(model), load_file(file)
    return max((after[name] - before[name].to(after[name].dtype)).abs().max().item() for name in after)


def test_two_copies_train_what_one_process_trains(runs):
    copies, _ = runs.accounts("copies")
    assert copies["losses"] == pytest.approx(runs.one.loss_history, rel=1e-5)
    assert_same_file(copies["saved"][-1], runs.folder / "one" / "last.safetensors")
    assert moved(copies["saved"][-1], runs.model) > 1e-3


@pytest.mark.parametrize("name", ["sharded", "kept"])
def test_shards_train_what_one_process_trains(runs, name):
    """Whether gathered weights are freed or kept, and shards lie on the device or on the host; asked for with FSDP's
    variables or with --deepspeed."""
    first, second = runs.accounts(name)
    assert first["losses"] == second["losses"] == pytest.approx(runs.one.loss_history, rel=1e-5)
    for file in ("epoch-000002.safetensors", "last.safetensors"):
        assert_same_file(runs.folder / name / file, runs.folder / "one" / file)


def test_each_process_has_half_of_everything(runs):
    for name in ("sharded", "kept"):
        first, second = runs.accounts(name)
        assert first["held"] == second["held"] == first["of"] / 2
    copies, _ = runs.accounts("copies")
    assert copies["held"] == copies["of"] == first["of"]


def test_only_the_first_process_saves(runs):
    first, second = runs.accounts("sharded")
    assert second["saved"] == [] and len(first["saved"]) == 2


def test_averages_and_states_are_those_of_one_process(runs):
    for file in ("epoch-000002-ema.safetensors", "last-ema.safetensors"):
        assert_same_file(runs.folder / "sharded" / file, runs.folder / "one" / file)
    for state in (STATE, "last-state"):
        assert_same_state(runs.folder / "sharded" / state, runs.folder / "one" / state)


def test_validation_losses_are_those_of_one_process(runs):
    def watched(name):
        return json.loads((runs.folder / name / "last-state" / "train_state.json").read_text())["watch"]["validations"]

    assert np.array(watched("sharded")) == pytest.approx(np.array(watched("one")), rel=1e-5)


def test_sample_pictures_are_those_of_one_process(runs):
    pictures = []
    for name in ("sharded", "one"):
        (file,) = (runs.folder / name / "sample").glob("e*.png")
        pictures.append(np.asarray(Image.open(file), dtype=int))
    assert pictures[0].std() > 1
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


def test_a_sharded_run_goes_on_to_the_bit(runs):
    for file in ("last.safetensors", "last-ema.safetensors", "last-state/weights.safetensors"):
        assert (runs.folder / "resumed" / file).read_bytes() == (runs.folder / "sharded" / file).read_bytes()


def test_one_process_goes_on_with_a_sharded_run(runs):
    assert_same_file(runs.folder / "one_resumed" / "last.safetensors", runs.folder / "one" / "last.safetensors")
    assert_same_state(runs.folder / "one_resumed" / "last-state", runs.folder / "one" / "last-state")


def test_text_encoders_are_sharded_with_the_denoiser(runs):
    first, second = runs.accounts("encoders")
    assert first["losses"] == second["losses"] == pytest.approx(runs.one_encoders.loss_history, rel=1e-5)
    assert first["held"] + second["held"] == first["of"]
    assert second["held"] == pytest.approx(first["of"] / 2, rel=1e-3)  # of 77 rows one process has 39
    assert_same_file(first["saved"][-1], runs.one_encoders.saved_files[-1])
    names = load_file(first["saved"][-1])
    assert {f"text_encoders.{name}" for name in ("clip_l", "clip_g", "t5xxl")} <= {
        n.rsplit(".transformer")[0] for n in names
    }


def test_states_in_8_bits_are_put_together(runs):
    first, _ = runs.accounts("bits")
    assert first["losses"] == pytest.approx(runs.one_bits.loss_history, rel=1e-4)
    files = [runs.folder / name / "last-state" / "training.pt" for name in ("bits", "one_bits")]
    found, expected = (torch.load(file, weights_only=True)["optimizer"] for file in files)
    assert found["shapes"] == expected["shapes"]
    shapes = [[tuple(tensor.shape) for tensor in state["tensors"]] for state in (found, expected)]
    assert any(tensor.dtype == torch.uint8 for tensor in found["tensors"])
    assert shapes[0] == shapes[1]


def outline(value):
    """Shapes and types of tensors in a file or a state, and all else as it is."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: outline(item) for key, item in value.items()}
    return [outline(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_shards_in_bf16_and_8_bits_go_on_to_the_bit(runs):
    half, resumed = runs.folder / "half", runs.folder / "half_resumed"
    for file in ("last.safetensors", "last-state/weights.safetensors"):
        assert (resumed / file).read_bytes() == (half / file).read_bytes()
    files = [folder / "last-state" / "training.pt" for folder in (half, resumed)]
    before, after = (torch.load(file, weights_only=True)["optimizer"] for file in files)
    torch.testing.assert_close(after.pop("tensors"), before.pop("tensors"), rtol=0, atol=0)
    assert after == before


def test_shards_in_bf16_and_8_bits_are_saved_as_one_process_saves_them(runs):
    """Rounding draws other bits, so numbers differ by a little."""
    (first, second), one = runs.accounts("half"), runs.one_half
    assert first["losses"] == second["losses"] == pytest.approx(one.loss_history, rel=0.02)
    for file in ("last.safetensors", "last-state/weights.safetensors"):
        found, expected = (load_file(runs.folder / name / file) for name in ("half", "one_half"))
        assert outline(found) == outline(expected)
        assert torch.bfloat16 in {tensor.dtype for tensor in found.values()}
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=0.02, atol=5e-3)
    files = [runs.folder / name / "last-state" / "training.pt" for name in ("half", "one_half")]
    found, expected = (torch.load(file, weights_only=True)["optimizer"] for file in files)
    assert outline(found) == outline(expected)
    assert any(tensor.dtype == torch.uint8 for tensor in found["tensors"])
    assert moved(first["saved"][-1], runs.model) > 1e-3


def test_data_that_one_process_cannot_read_ends_both_after_a_save(runs):
    for account in runs.accounts("data"):
        assert account["error"] == "red_star.png: the disk is gone. Plug it in."
        assert account["step"] == 1
    assert (runs.folder / "data" / "at-step00000001.safetensors").exists()


def test_a_process_without_memory_lets_no_other_wait(runs):
    """It ends inside a pass in which the other one waits for it; the launcher ends that one."""
    assert runs.code != 0
    assert "rank 1: out of memory (CUDA out of memory" in runs.output
    assert not list(runs.folder.glob("jobs.memory.*"))
