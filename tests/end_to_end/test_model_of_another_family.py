"""What is said of a model of another family, before settings of data for that family are found wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from library.errors import CheckpointError, DatasetError, UserError
from tests import bad_models


@pytest.mark.parametrize(
    ("script", "file", "fault", "said"),
    [
        ("fine_tune", bad_models.SDXL, CheckpointError, "is an SDXL model, not a Stable Diffusion 1.x or 2.x model"),
        ("fine_tune", bad_models.NOTHING_KNOWN, DatasetError, "bucket_reso_steps must be a multiple of 64"),
        ("sdxl_train", bad_models.SD1, CheckpointError, "Train it with train_network.py"),
        ("train_textual_inversion", bad_models.SDXL, CheckpointError, "with sdxl_train_textual_inversion.py"),
        ("sdxl_train_control_net_lllite", bad_models.SD1, CheckpointError, "ControlNet-LLLite is for SDXL only.$"),
    ],
)
def test_it_is_told_first_if_it_is_known(training_of: Callable[..., Any], script, file, fault: type[UserError], said):
    train = training_of(script, "sd1")
    flags = ("--token_string=blarg",) if "inversion" in script else ()
    model = train.folder / "model.safetensors"
    model.write_bytes(bad_models.weights(file))
    dataset = train.dataset(train.pictures(), bucket_reso_steps=16)
    with pytest.raises(fault, match=said):
        train.run(dataset, "--max_train_steps=1", *flags, model=model)


def test_it_is_told_to_users_of_sd3_too(training):
    model = training.folder / "model.safetensors"
    model.write_bytes(bad_models.weights(bad_models.FLUX))
    with pytest.raises(CheckpointError, match="is a FLUX model, not an SD3 / SD3.5 model"):
        training.run(training.folder / "none.toml", "--max_train_steps=1", model=model)
