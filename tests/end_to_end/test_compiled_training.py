"""--torch_compile and the attention of packages: the same training, or one sentence before weights are read."""

import pytest
import torch

EAGER = ("--torch_compile", "--dynamo_backend=aot_eager")
GAIN = "compiled blocks: "


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


def test_a_compiled_lora_is_the_same_lora(training, dataset):
    plain = training.unet_only(dataset, "--max_train_steps=3")
    compiled = training.unet_only(dataset, "--max_train_steps=3", *EAGER)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-6)
    torch.testing.assert_close(compiled.weights, plain.weights, atol=1e-6, rtol=1e-5)
    print(compiled.log)
    assert sum(line.startswith(GAIN) for line in compiled.log) == 1
