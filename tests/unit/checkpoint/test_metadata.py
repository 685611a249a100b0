"""The header of a saved network: which keys, and how values are written."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from library.checkpoint.dataset_summary import describe_datasets, describe_only_dataset
from library.checkpoint.metadata import (
    MAX_THUMBNAIL_BYTES,
    FileHashes,
    build_metadata,
    describe_file,
    file_hashes,
    file_metadata,
    hash_in_background,
    modelspec,
    read_thumbnail,
    tensor_hashes,
)
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.plan.captions import CaptionRules
from library.records import CropPlan, ImageRecord, Size
from library.tensorfile import read_header, read_tensors, write_tensors

ROOT = Path(__file__).resolve().parents[3]
TENSORS = {"lora_up": torch.ones(4, 2), "alpha": torch.tensor(1.0)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EASEL_CACHE_DIR", str(tmp_path / "cache"))


# ss_*


def test_values_are_written_as_tools_expect_them():
    options = {
        "output_name": "my model",
        "unet_lr": None,
        "learning_rate": 1e-4,
        "text_encoder_lr": (1e-05, 2e-5),
        "gradient_checkpointing": True,
        "cache_latents": False,
        "max_grad_norm": 1.0,
        "debiased_estimation_loss": False,
        "not_recorded": 3,
    }
    assert build_metadata(options, {}) == {
        "ss_output_name": "my model",
        "ss_unet_lr": "None",
        "ss_learning_rate": "0.0001",
        "ss_text_encoder_lr": "[1e-05, 2e-05]",
        "ss_gradient_checkpointing": "True",
        "ss_cache_latents": "False",
        "ss_max_grad_norm": "1.0",
        "ss_debiased_estimation": "False",
    }


def test_what_the_course_of_a_run_depends_on_is_recorded():
    options = {
        "ema_decay": 0.999,
        "max_bad_steps": 10,
        "validate_every_n_steps": 50,
        "max_validation_steps": None,
        "min_timestep": 200,
        "max_timestep": None,
        "lr_scheduler_num_cycles": 2,
        "full_bf16": True,
        "masked_loss": False,
    }
    assert build_metadata(options, {}) == {
        "ss_ema_decay": "0.999",
        "ss_max_bad_steps": "10",
        "ss_validate_every_n_steps": "50",
        "ss_max_validation_steps": "None",
        "ss_min_timestep": "200",
        "ss_max_timestep": "None",
        "ss_lr_scheduler_num_cycles": "2",
        "ss_full_bf16": "True",
        "ss_masked_loss": "False",
    }


def test_secrets_are_no_metadata():
    secrets = {"huggingface_token": "hf_secret", "wandb_api_key": "secret", "huggingface_repo_id": "owner/name"}
    assert build_metadata(secrets, {}) == {}
    assert not [value for value in make_spec(**secrets).values() if "secret" in value]


def test_facts_win_over_options_and_keep_their_names():
    facts = {"seed": 7, "steps": 100, "apply_lg_attn_mask": True, "base_model_version": "5-medium"}
    assert build_metadata({"seed": None}, facts) == {
        "ss_seed": "7",
        "ss_steps": "100",
        "ss_apply_lg_attn_mask": "True",
        "ss_base_model_version": "5-medium",
    }


def test_network_args_are_json_and_only_there_if_given():
    assert "ss_network_args" not in build_metadata({"network_args": None}, {})
    assert "ss_network_args" not in build_metadata({}, {"network_args": {}})
    given = build_metadata({"network_args": ["a=1"]}, {"network_args": {"a": "1", "dropout": "0.1"}})
    assert json.loads(given["ss_network_args"]) == {"a": "1", "dropout": "0.1"}


def test_names_that_are_no_text_can_be_written(tmp_path):
    metadata = build_metadata({"output_name": "a\udcff猫"}, {})
    write_tensors(tmp_path / "a", TENSORS, metadata)
    assert read_header(tmp_path / "a").metadata == {"ss_output_name": "a?猫"}


# modelspec


def make_spec(**options):
    return modelspec(
        "stable-diffusion-3-5-medium/lora",
        options=options,
        resolution=Size(1024, 768),
        prediction_type="flow",
        saved_at=1_700_000_000.7,
    )


def test_modelspec_without_options():
    spec = make_spec()
    assert spec.pop("modelspec.date").startswith("2023-11-1")
    assert spec == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-3-5-medium/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "LoRA@1700000000",
        "modelspec.resolution": "1024x768",
        "modelspec.prediction_type": "flow",
    }


def test_modelspec_with_options():
    spec = make_spec(
        output_name="name",
        metadata_author="me",
        metadata_license="MIT",
        min_timestep=200,
        max_timestep=None,
        clip_skip=2,
    )
    assert spec["modelspec.title"] == "name"
    assert make_spec(output_name="name", metadata_title="title")["modelspec.title"] == "title"
    assert (spec["modelspec.author"], spec["modelspec.license"]) == ("me", "MIT")
    assert spec["modelspec.timestep_range"] == "200,1000"
    assert make_spec(max_timestep=300)["modelspec.timestep_range"] == "0,300"
    assert spec["modelspec.encoder_layer"] == "2"


def test_thumbnail_becomes_a_data_url(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    assert read_thumbnail(tmp_path / "a.png") == "data:image/png;base64,YWJj"
    assert read_thumbnail("data:x") == "data:x"
    assert read_thumbnail(None) is None
    assert make_spec(metadata_thumbnail="data:x")["modelspec.thumbnail"] == "data:x"


def test_a_thumbnail_of_no_use_is_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "large.png").write_bytes(bytes(MAX_THUMBNAIL_BYTES))
    assert read_thumbnail(tmp_path / "missing.png") is None
    assert read_thumbnail(tmp_path / "large.png") is None
    first, second = caplog.messages
    assert "missing.png cannot be read" in first
    assert "large.png takes 170 KiB of every file's header, 128 are allowed" in second


SCRIPT = """
import locale, sys
from library.checkpoint.metadata import modelspec
from library.records import Size
locale.setlocale(locale.LC_ALL, "")
print(modelspec("a", options={}, resolution=Size(1, 1), prediction_type="flow", saved_at=1.7e9)["modelspec.date"])
"""


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="TZ is not read by this system")
@pytest.mark.parametrize(("zone", "date"), [("Asia/Tokyo", "2023-11-15T07:13:20"), ("UTC", "2023-11-14T22:13:20")])
def test_the_date_is_local_time_without_zone_in_any_locale(zone, date):
    environment = {**os.environ, "TZ": zone, "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == date, done.stderr


# The whole file


def test_a_file_has_all_three_kinds_of_keys_and_its_hash_holds(tmp_path):
    metadata = file_metadata(TENSORS, {"ss_steps": "3"}, {"modelspec.title": "t"})
    write_tensors(tmp_path / "a", TENSORS, metadata)
    header = read_header(tmp_path / "a")
    assert set(header.metadata) == {"ss_steps", "modelspec.title", "sshs_model_hash", "sshs_legacy_hash"}
    assert header.metadata["sshs_model_hash"] == tensor_hashes(read_tensors(header), {})[0]
    changed = {**TENSORS, "alpha": torch.tensor(2.0)}
    assert tensor_hashes(changed, {})[0] != header.metadata["sshs_model_hash"]


def test_without_metadata_equal_weights_give_equal_bytes(tmp_path):
    for name, steps in (("a", "3"), ("b", "4")):
        metadata = file_metadata(TENSORS, {"ss_steps": steps}, {"modelspec.title": name}, no_metadata=True)
        write_tensors(tmp_path / name, TENSORS, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_header(tmp_path / "a").metadata == {}


# Files


def test_files_that_cannot_be_hashed_have_names_instead(tmp_path):
    assert file_hashes(tmp_path / "missing") == FileHashes("NOFILE", "NOFILE")
    assert file_hashes(tmp_path) == FileHashes("IsADirectory", "IsADirectory")


def test_hashing_in_the_background_gives_the_same(tmp_path):
    (tmp_path / "model").write_bytes(bytes(range(256)) * 5000)
    files = {"model": tmp_path / "model", "vae": tmp_path / "missing"}
    assert hash_in_background(files).result(30) == {name: file_hashes(path) for name, path in files.items()}
    facts = describe_file("sd_model", files["model"], file_hashes(files["model"]))
    assert list(build_metadata({}, facts)) == ["ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash"]
    assert facts["sd_model_name"] == "model"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_hashing_steps_back_for_the_training_beside_it(tmp_path):
    class Files(dict):
        """Notes how nice the thread is that looks at it."""

        def items(self):
            self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return super().items()

    before, files = os.getpriority(os.PRIO_PROCESS, 0), Files(model=tmp_path / "missing")
    hash_in_background(files).result(30)
    assert files.niceness > before == os.getpriority(os.PRIO_PROCESS, 0)


def test_an_edited_file_has_another_hash(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"1")
    first = file_hashes(path)
    path.write_bytes(b"22")
    assert file_hashes(path).sha256 != first.sha256


# Datasets


def make_data(tmp_path, captions, **dataset):
    """Two datasets over a folder "dogs" with 3 repeats; the second has another folder of that name as well."""
    (first, second) = (tmp_path / "x" / "dogs", tmp_path / "y" / "dogs")
    subset = SubsetSpec(image_dir=first, num_repeats=3, captions=CaptionRules(shuffle_caption=True), class_tokens="dog")
    other = SubsetSpec(image_dir=second, flip_aug=True)
    common = {"enable_bucket": True, **dataset}
    specs = [
        DatasetSpec(resolution=Size(64, 32), batch_size=2, subsets=(subset,), **common),
        DatasetSpec(resolution=Size(32, 32), subsets=(subset, other), **common),
    ]
    records, crops = [], []
    for place, (dataset_index, subset_index, repeats) in enumerate([(0, 0, 3), (1, 0, 3), (1, 1, 1)]):
        size = specs[dataset_index].resolution
        for index, caption in enumerate(captions):
            path = tmp_path / f"{index}.png"
            records.append(
                ImageRecord(path, f"{place}/{index}", caption, Size(64, 32), repeats, dataset_index, subset_index)
            )
            crops.append(CropPlan(size, 0, 0, size))
    return records, crops, [asdict(spec) for spec in specs]


def test_datasets_are_described(tmp_path):
    facts = describe_datasets(*make_data(tmp_path, ["A dog, Red", "red, a dog,, running"]))
    first, second = facts["datasets"]
    assert first["resolution"] == [64, 32]
    assert (first["batch_size_per_device"], first["num_train_images"], second["num_train_images"]) == (2, 6, 8)
    assert first["bucket_info"] == {
        "buckets": {"0": {"resolution": [64, 32], "count": 6}},
        "mean_img_ar_error": 0.0,
    }
    assert second["bucket_info"]["mean_img_ar_error"] == pytest.approx(1.0)
    assert first["tag_frequency"] == {"dogs": {"a dog": 2, "red": 2, "running": 1}}
    subset = first["subsets"][0]
    assert (subset["img_count"], subset["num_repeats"], subset["image_dir"]) == (2, 3, "dogs")
    assert (subset["shuffle_caption"], subset["flip_aug"], subset["class_tokens"]) == (True, False, "dog")
    assert facts["dataset_dirs"] == {
        "dogs": {"n_repeats": 3, "img_count": 2},
        "dogs (2)": {"n_repeats": 3, "img_count": 2},
        "dogs (3)": {"n_repeats": 1, "img_count": 2},
    }
    metadata = build_metadata({}, facts)
    assert set(metadata) == {"ss_datasets", "ss_tag_frequency", "ss_dataset_dirs"}
    assert json.loads(metadata["ss_tag_frequency"]) == {"dogs": {"a dog": 2, "red": 2, "running": 1}}


def test_regularisation_and_metadata_files_are_described(tmp_path):
    crop = CropPlan(Size(32, 32), 0, 0, Size(32, 32))
    subsets = (
        SubsetSpec(image_dir=tmp_path / "dogs", num_repeats=2),
        SubsetSpec(image_dir=tmp_path / "any", is_reg=True, class_tokens="dog"),
        SubsetSpec(image_dir=None, metadata_file=tmp_path / "tags.json"),
    )
    records = [
        ImageRecord(tmp_path / "a.png", "a", "a dog", Size(32, 32), 2, 0, 0),
        ImageRecord(tmp_path / "b.png", "b", "dog", Size(32, 32), 3, 0, 1, is_reg=True),
        ImageRecord(tmp_path / "c.png", "c", "cat", Size(32, 32), 1, 0, 2),
    ]
    facts = describe_datasets(records, [crop] * 3, [asdict(DatasetSpec(resolution=Size(32, 32), subsets=subsets))])
    (dataset,) = facts["datasets"]
    assert (dataset["num_train_images"], dataset["num_reg_images"], dataset["is_dreambooth"]) == (3, 3, False)
    assert [subset.get("is_reg") for subset in dataset["subsets"]] == [False, True, None]
    assert dataset["subsets"][2]["metadata_file"] == "tags.json"
    assert facts["dataset_dirs"] == {
        "dogs": {"n_repeats": 2, "img_count": 1},
        "tags.json": {"n_repeats": 1, "img_count": 1},
    }


def test_no_buckets_no_bucket_info(tmp_path):
    facts = describe_datasets(*make_data(tmp_path, ["a"], enable_bucket=False))
    assert facts["datasets"][0]["bucket_info"] is None


def test_tags_on_several_lines_are_counted_one_by_one(tmp_path):
    facts = describe_datasets(*make_data(tmp_path, ["a, b\nc, d"]))
    assert facts["tag_frequency"] == {"dogs": {"a": 1, "b": 1, "c": 1, "d": 1}}


def test_limits_of_buckets_are_none_without_buckets(tmp_path):
    for has_buckets, limits in ((True, (256, 1024)), (False, (None, None))):
        (described, _) = describe_datasets(*make_data(tmp_path, ["a"], enable_bucket=has_buckets))["datasets"]
        assert (described["min_bucket_reso"], described["max_bucket_reso"]) == limits


def test_the_only_dataset_has_a_key_for_each_option(tmp_path):
    subsets = (
        SubsetSpec(image_dir=tmp_path / "2_dogs", num_repeats=2, flip_aug=True, captions=CaptionRules(keep_tokens=1)),
        SubsetSpec(image_dir=tmp_path / "1_any", is_reg=True),
    )
    size = Size(32, 64)
    dataset = asdict(DatasetSpec(resolution=size, batch_size=3, enable_bucket=True, subsets=subsets))
    record = ImageRecord(tmp_path / "a.png", "a", "dog", size, 2, 0, 0)
    (described,) = describe_datasets([record], [CropPlan(size, 0, 0, size)], [dataset])["datasets"]
    facts = describe_only_dataset(described, dataset, batches_per_step=4)
    assert facts == {
        "batch_size_per_device": 3,
        "total_batch_size": 12,
        "resolution": "(32, 64)",
        "color_aug": False,
        "flip_aug": True,
        "random_crop": False,
        "shuffle_caption": False,
        "keep_tokens": 1,
        "enable_bucket": True,
        "bucket_no_upscale": False,
        "min_bucket_reso": 256,
        "max_bucket_reso": 1024,
        "reg_dataset_dirs": {"1_any": {"n_repeats": 1, "img_count": 0}},
        "bucket_info": {"buckets": {"0": {"resolution": [32, 64], "count": 2}}, "mean_img_ar_error": 0.0},
    }
    metadata = build_metadata({}, facts)
    assert metadata["ss_resolution"] == "(32, 64)"
    assert json.loads(metadata["ss_bucket_info"]) == facts["bucket_info"]
    assert json.loads(metadata["ss_reg_dataset_dirs"]) == facts["reg_dataset_dirs"]
