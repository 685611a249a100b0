"""Trainings of the tiny model through the script on a GPU."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
CACHES = ("--cache_latents", "--cache_text_encoder_outputs")
DATASET = """\
[general]
resolution = 64
caption_extension = ".txt"
batch_size = 2

[[datasets]]
  [[datasets.subsets]]
  image_dir = 'PICTURES'
"""
# writes the losses, and the bytes on the GPU when the caches are filled
WITNESS = """
import json, sys
import torch
import sd3_train_network as script

class Witness(script.Sd3NetworkTrainer):
    def build_trainables(self):
        weights = [*self.denoiser.parameters(), *self.denoiser.buffers()]
        held = sum(tensor.numel() * tensor.element_size() for tensor in weights)
        torch._C._cuda_clearCublasWorkspaces()  # they are counted as allocated
        self.account = {"allocated": torch.cuda.memory_allocated(), "denoiser": held}
        super().build_trainables()

    def finish(self):
        super().finish()
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump({**self.account, "losses": self.loss_history, "device": self.device.type}, file)

script.Sd3NetworkTrainer = Witness
sys.exit(script.main(sys.argv[2:]))
"""


@pytest.fixture
def train(tmp_path, tiny_sd3):
    """train(*flags) runs the script and gives its account."""
    (tmp_path / "pictures").mkdir()
    for name in ("red_circle", "red_star"):
        for ending in (".png", ".txt"):
            shutil.copy(ROOT / "examples" / "pictures" / f"{name}{ending}", tmp_path / "pictures")
    (tmp_path / "data.toml").write_text(DATASET.replace("PICTURES", str(tmp_path / "pictures")), encoding="utf-8")
    (tmp_path / "witness.py").write_text(WITNESS, encoding="utf-8")

    def start(*flags):
        arguments = [
            *(f"--pretrained_model_name_or_path={tiny_sd3}", f"--dataset_config={tmp_path / 'data.toml'}"),
            *(f"--output_dir={tmp_path / 'out'}", "--network_module=networks.lora", "--network_dim=16", "--seed=5"),
            *("--learning_rate=1e-3", "--max_train_steps=3", "--network_train_unet_only", "--no_metadata"),
            *("--t5xxl_max_token_length=16", *flags),
        ]
        account = tmp_path / "account.json"
        done = subprocess.run(
            [sys.executable, str(tmp_path / "witness.py"), str(account), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode("utf-8", "replace")
        return json.loads(account.read_text(encoding="utf-8"))

    return start


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_cached_equals_live_with_adamw8bit(train, precision):
    pytest.importorskip("bitsandbytes")
    flags = ("--optimizer_type=AdamW8bit", f"--mixed_precision={precision}")
    cached, live = train(*flags, *CACHES), train(*flags)
    assert cached["device"] == live["device"] == "cuda"
    assert len(cached["losses"]) == 3 and all(math.isfinite(loss) for loss in cached["losses"])
    assert cached["losses"] == pytest.approx(live["losses"], rel=1e-2)


def test_memory_of_the_encoders_is_given_back_after_caching(train):
    cached = train("--mixed_precision=bf16", *CACHES)
    live = train("--mixed_precision=bf16")
    assert cached["allocated"] < cached["denoiser"] + 300_000
    assert live["allocated"] > live["denoiser"] + 500_000  # the encoders and the VAE are there


def test_full_fp16_trains_with_loss_scaling(train):
    losses = train("--mixed_precision=fp16", "--full_fp16", *CACHES)["losses"]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
