"""A state of an earlier version says the same of the same run."""

from __future__ import annotations

import copy

import pytest
from PIL import Image

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.families.sdxl.options import SDXL_LLLITE_SCRIPT, SdxlLlliteOptions
from library.options.spec import parse_options
from library.records import Size
from library.training.planning import PlanSettings, plan_data
from library.training.saving.run_identity import differences, identity_mark, run_identity


@pytest.fixture
def identity_of(tmp_path):
    for name in ("pictures", "beside"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "1.png")
    (tmp_path / "model.safetensors").touch()
    files = (f"--pretrained_model_name_or_path={tmp_path / 'model.safetensors'}", "--dataset_config=d.toml")
    options = parse_options(SdxlLlliteOptions, [*files, "--output_dir=out"], **SDXL_LLLITE_SCRIPT)

    def run(**keys):
        folders = {"image_dir": tmp_path / "pictures", "conditioning_data_dir": tmp_path / "beside"}
        spec = DatasetSpec(resolution=Size(64, 64), subsets=(SubsetSpec(**folders, class_tokens="x", **keys),))
        plan = plan_data("d.toml", [spec], PlanSettings(max_epochs=1), index_dir=tmp_path / "index")
        return run_identity(options, plan, seed=1)

    return run


def test_keys_that_are_younger_than_a_state_do_not_keep_a_run_from_going_on(identity_of):
    now = identity_of()
    (old_subset,) = now["datasets"][0]["subsets"]
    assert "is_conditioned" not in old_subset and "num_repeats" in old_subset
    told = copy.deepcopy(now)
    told["datasets"][0]["subsets"][0]["is_conditioned"] = False
    assert differences(told, now) == []


def test_masks_are_not_conditioning_pictures(identity_of):
    masked, conditioned = identity_of(), identity_of(is_conditioned=True)
    assert differences(masked, conditioned) == ["dataset 1, subset 1 is_conditioned: True, was not set"]
    assert identity_mark(masked) != identity_mark(conditioned)
