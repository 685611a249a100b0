"""How a header is kept small: what goes first, what stays, and what is said about it."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from library.checkpoint.header_limit import HEADER_LIMIT, fit_header, room_for_metadata, written_bytes
from library.tensorfile import write_tensors


def make_metadata(tags=(), *, folders=1, buckets=1, **others):
    """Metadata of one dataset; its tags are in the first folder, the n-th tag is n times as rare as the first."""
    frequency = {"folder 0": {tag: 1_000_000 // number for number, tag in enumerate(tags, start=1)}}
    subsets = [{"image_dir": f"folder {number}", "img_count": folders - number} for number in range(folders)]
    dirs = {one["image_dir"]: {"n_repeats": 1, "img_count": one["img_count"]} for one in subsets}
    info = {str(number): {"resolution": [64, 64 * number], "count": buckets - number} for number in range(buckets)}
    dataset = {
        "num_train_images": 5,
        "tag_frequency": frequency,
        "bucket_info": {"buckets": info},
        "subsets": subsets,
    }
    lists = {"ss_tag_frequency": frequency, "ss_dataset_dirs": dirs, "ss_datasets": [dataset]}
    return {**{key: json.dumps(value) for key, value in lists.items()}, "ss_steps": "7", **others}


def header_bytes(path):
    return int.from_bytes(path.read_bytes()[:8], "little")


def test_what_is_small_stays_as_it_is():
    metadata = make_metadata(["a", "b"])
    fitted = fit_header(metadata)
    assert (fitted.metadata, fitted.cut, fitted.complete) == (metadata, {}, {})


def test_the_rarest_tags_go_first_and_it_is_said():
    tags = [f"tag {number}" for number in range(5000)]
    metadata = make_metadata(tags, folders=3)
    fitted = fit_header(metadata, 40_000)
    kept = list(json.loads(fitted.metadata["ss_tag_frequency"])["folder 0"])
    assert kept == tags[: len(kept)]
    assert 200 < len(kept) < 5000
    assert fitted.metadata["ss_tag_frequency_cut"] == f"kept {len(kept)} of 5000 tags"
    (dataset,) = json.loads(fitted.metadata["ss_datasets"])
    in_dataset = list(dataset["tag_frequency"]["folder 0"])
    assert fitted.metadata["ss_datasets_cut"] == f"kept {len(in_dataset)} of 5000 tags"
    assert in_dataset == tags[: len(in_dataset)]
    assert (len(dataset["subsets"]), fitted.metadata["ss_steps"]) == (3, "7")
    assert fitted.metadata["ss_dataset_dirs"] == metadata["ss_dataset_dirs"]
    assert fitted.complete == {key: metadata[key] for key in ("ss_tag_frequency", "ss_datasets")}


def test_folders_go_next_those_with_few_pictures_first_and_some_tags_stay():
    tags = [f"tag {number}" for number in range(5000)]
    fitted = fit_header(make_metadata(tags, folders=4000), 60_000)
    assert len(json.loads(fitted.metadata["ss_tag_frequency"])["folder 0"]) > 200
    folders = list(json.loads(fitted.metadata["ss_dataset_dirs"]))
    assert folders == [f"folder {number}" for number in range(len(folders))]
    assert 50 < len(folders) < 4000
    assert fitted.metadata["ss_dataset_dirs_cut"] == f"kept {len(folders)} of 4000 folders"
    assert "of 4000 folders" in fitted.metadata["ss_datasets_cut"]
    (dataset,) = json.loads(fitted.metadata["ss_datasets"])
    in_dataset = [one["image_dir"] for one in dataset["subsets"]]
    assert in_dataset == [f"folder {number}" for number in range(len(in_dataset))]


def test_buckets_go_when_tags_and_folders_are_few():
    fitted = fit_header(make_metadata(["a"], buckets=3000), 60_000)
    (dataset,) = json.loads(fitted.metadata["ss_datasets"])
    buckets = dataset["bucket_info"]["buckets"]
    assert list(buckets) == [str(number) for number in range(len(buckets))]
    assert 100 < len(buckets) < 3000
    assert dataset["tag_frequency"] == {"folder 0": {"a": 1_000_000}}


def test_a_thumbnail_goes_before_texts_are_shortened():
    others = {"modelspec.thumbnail": "data:" + "x" * 50_000, "ss_training_comment": "long " * 2000}
    fitted = fit_header(make_metadata(**others), 40_000)
    assert "modelspec.thumbnail" not in fitted.metadata
    assert fitted.metadata["ss_thumbnail_cut"] == "left out"
    assert fitted.metadata["ss_training_comment"] == others["ss_training_comment"]


def test_the_longest_text_is_shortened():
    others = {"ss_training_comment": "\N{CAT FACE} " * 50_000, "modelspec.description": "short"}
    fitted = fit_header(make_metadata(**others), 40_000)
    kept = fitted.metadata["ss_training_comment"]
    assert others["ss_training_comment"].startswith(kept)
    assert 5000 < len(kept) < 20_000
    assert fitted.metadata["ss_training_comment_cut"] == f"kept {len(kept)} of 100000 characters"
    assert fitted.metadata["modelspec.description"] == "short"


def test_where_nothing_else_helps_a_value_is_left_out():
    fitted = fit_header({"ss_network_args": json.dumps({"x": "y" * 100_000}), "ss_steps": "7"}, 20_000)
    assert fitted.metadata == {"ss_steps": "7", "ss_network_args_cut": "left out"}


@settings(max_examples=40)
@given(
    st.lists(st.text(max_size=40), unique=True, max_size=300),
    st.integers(1, 300),
    st.integers(0, 300),
    st.integers(10_000, 40_000),
    st.text(max_size=200),
)
def test_any_header_is_below_the_limit_and_still_json(tags, folders, buckets, limit, comment):
    metadata = make_metadata(tags, folders=folders, buckets=buckets, ss_training_comment=comment * 50)
    fitted = fit_header(metadata, limit)
    assert written_bytes(fitted.metadata) <= limit
    for key in ("ss_tag_frequency", "ss_datasets", "ss_dataset_dirs"):
        if key in fitted.metadata:
            json.loads(fitted.metadata[key])


@pytest.mark.parametrize("num_tensors", [1, 2000])
def test_the_written_header_is_below_the_limit(tmp_path, num_tensors):
    tensors = {f"lora_unet_joint_blocks_{number}_weight": torch.zeros(1, 2) for number in range(num_tensors)}
    tags = [f'tag "{number}" \\ \N{CAT FACE}' for number in range(30_000)]
    fitted = fit_header(make_metadata(tags), room_for_metadata(tensors))
    write_tensors(tmp_path / "a.safetensors", tensors, fitted.metadata)
    assert HEADER_LIMIT * 0.9 < header_bytes(tmp_path / "a.safetensors") <= HEADER_LIMIT
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == fitted.metadata


def test_a_header_once_shortened_fits_the_next_time():
    first = fit_header(make_metadata([f"tag {number}" for number in range(5000)]), 40_000).metadata
    later = {**first, "ss_steps": "1000000", "sshs_model_hash": "0" * 64}
    assert fit_header(later, 40_000).metadata == later
