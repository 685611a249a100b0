"""Pictures named by folders, by a metadata file, or by a dataset file."""

import json
import logging
from pathlib import Path

import pytest

from library.data.config.sources import DataPlaces, specs_from_options
from library.errors import DatasetError
from library.records import Size

SIZE = {"resolution": 64}


def make_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def folder_specs(root: Path, defaults=None, **arguments):
    reg = arguments.pop("reg", None)
    places = DataPlaces(train_data_dir=root, reg_data_dir=reg)
    return specs_from_options(places, SIZE | (defaults or {}), **arguments)


def error_of(places: DataPlaces, defaults=None) -> str:
    with pytest.raises(DatasetError) as caught:
        specs_from_options(places, SIZE if defaults is None else defaults)
    return str(caught.value)


def test_each_folder_is_a_subset_with_repeats_and_words_in_natural_order(tmp_path):
    make_folders(tmp_path, "20_sks dog", "3_a_b_c", "100_", "007_bond")
    source, (spec,) = folder_specs(tmp_path)
    assert source == str(tmp_path) and spec.resolution == Size(64, 64)
    found = [(subset.image_dir, subset.num_repeats, subset.class_tokens) for subset in spec.subsets]
    assert found == [
        (tmp_path / "3_a_b_c", 3, "a_b_c"),
        (tmp_path / "007_bond", 7, "bond"),
        (tmp_path / "20_sks dog", 20, "sks dog"),
        (tmp_path / "100_", 100, None),
    ]
    assert not any(subset.is_reg for subset in spec.subsets)


def test_folders_of_regularisation_pictures_come_after_the_others_in_the_same_dataset(tmp_path):
    train, reg = make_folders(tmp_path / "t", "2_sks dog"), make_folders(tmp_path / "r", "1_dog")
    _, (spec,) = folder_specs(train, {"validation_split": 0.5}, reg=reg)
    assert [(subset.class_tokens, subset.is_reg) for subset in spec.subsets] == [("sks dog", False), ("dog", True)]
    assert [subset.validation_split for subset in spec.subsets] == [0.5, 0.0]


def test_the_other_options_apply_to_all_of_them(tmp_path):
    make_folders(tmp_path, "2_cat", "1_dog")
    options = {"num_repeats": 9, "shuffle_caption": True, "alpha_mask": True, "batch_size": 3}
    _, (spec,) = folder_specs(tmp_path, options | {"caption_extension": "txt", "recursive": True})
    assert spec.batch_size == 3
    assert [subset.num_repeats for subset in spec.subsets] == [1, 2]
    for subset in spec.subsets:
        assert subset.captions.shuffle_caption and subset.has_masks and subset.recursive
        assert subset.caption_extension == ".txt"


def test_what_is_not_used_is_named_in_warnings(tmp_path, caplog):
    make_folders(tmp_path, "2_cat", "dogs", "7", "x_1", ".hidden")
    for name in ("b.PNG", "notes.txt", ".x.png"):
        (tmp_path / name).touch()
    _, (spec,) = folder_specs(tmp_path)
    assert len(spec.subsets) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    first, second = (record.getMessage() for record in caplog.records)
    assert "that are not called like 10_name are not used: 3 (7, dogs, x_1)" in first
    assert "are not used: 1 (b.PNG); put them into a folder like 10_name" in second


def test_a_folder_that_holds_the_pictures_itself_is_explained(tmp_path):
    make_folders(tmp_path, "dogs")
    (tmp_path / "a.JPG").touch()
    message = error_of(DataPlaces(train_data_dir=tmp_path))
    assert f"--train_data_dir {tmp_path} holds pictures itself (1: a.JPG); put them into a folder" in message
    assert "10_name" in message and "--dataset_config" in message


def test_folders_without_a_number_are_explained(tmp_path):
    message = error_of(DataPlaces(train_data_dir=make_folders(tmp_path, "cats", "7")))
    assert "has no folder called like 10_name, only 7, cats; rename it to 10_7" in message


def test_an_empty_folder_and_one_with_other_files_are_explained(tmp_path):
    make_folders(tmp_path, "a", "b")
    (tmp_path / "b" / "notes.txt").touch()
    assert "is empty; it needs folders of pictures like 10_name" in error_of(DataPlaces(train_data_dir=tmp_path / "a"))
    assert "has only files (notes.txt); it needs" in error_of(DataPlaces(train_data_dir=tmp_path / "b"))


def test_missing_folders_and_all_other_faults_are_listed_at_once(tmp_path):
    train = make_folders(tmp_path / "t", "0_cat", "00_dog", "1_ok")
    message = error_of(DataPlaces(train_data_dir=train, reg_data_dir=tmp_path / "none" / "reg"), {"num_repeats": 0})
    assert message.startswith(f"{train}: 5 problems in the data:")
    assert "--num_repeats must be at least 1, got 0" in message
    assert "no resolution; give --resolution, the size of the model: 512, 768 or 1024" in message
    assert f"{train / '0_cat'}: the number of repeats in its name must be at least 1" in message
    assert f"{train / '00_dog'}: the number" in message
    hint = f"the nearest folder that exists is {tmp_path}"
    assert f"--reg_data_dir {tmp_path / 'none' / 'reg'} does not exist; {hint}" in message


@pytest.mark.parametrize(
    ("sizes", "advice"),
    [
        ([[448, 576], [512, 512], [64, 64]], "train_resolution up to 512x512"),
        ([[1216, 832]], "such as --resolution=1024,1024 --enable_bucket"),
        ([[65, 64]], "such as --resolution=128,128 --enable_bucket"),
        ([None, [8], ["a", "b"]], "no resolution; give --resolution, the size of the model"),
    ],
)
def test_without_a_resolution_a_metadata_file_tells_what_its_caches_are_for(tmp_path, sizes, advice):
    file = tmp_path / "lat.json"
    file.write_text(json.dumps({f"{index}.png": {"train_resolution": size} for index, size in enumerate(sizes)}))
    assert advice in error_of(DataPlaces(in_json=file), {})


def test_without_a_resolution_a_metadata_file_need_not_be_there(tmp_path):
    assert "give --resolution, the size of the model" in error_of(DataPlaces(in_json=tmp_path / "none.json"), {})


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "x.zip").touch()
    assert "is a file; name a folder" in error_of(DataPlaces(train_data_dir=tmp_path / "x.zip"))


def test_values_that_do_not_go_together_are_refused_as_in_a_dataset_file(tmp_path):
    make_folders(tmp_path, "1_cat")
    message = error_of(DataPlaces(train_data_dir=tmp_path), {"resolution": 500})
    assert message == f"{tmp_path}: the pictures: resolution 500x500 must be a multiple of 16 on both sides."


def test_home_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make_folders(tmp_path, "t/1_cat")
    _, (spec,) = folder_specs(Path("~/t"))
    assert spec.subsets[0].image_dir == tmp_path / "t" / "1_cat"


def test_a_metadata_file_is_one_subset(tmp_path):
    places = DataPlaces(in_json=Path("meta.json"), train_data_dir=tmp_path)
    source, (spec,) = specs_from_options(places, SIZE | {"num_repeats": 4})
    (subset,) = spec.subsets
    assert source == "meta.json"
    assert (subset.metadata_file, subset.image_dir, subset.num_repeats) == (Path("meta.json"), tmp_path, 4)
    _, (spec,) = specs_from_options(DataPlaces(in_json=Path("meta.json")), SIZE)
    assert spec.subsets[0].image_dir is None


def test_a_metadata_file_may_have_regularisation_folders_beside_it(tmp_path):
    make_folders(tmp_path, "1_dog")
    _, (spec,) = specs_from_options(DataPlaces(in_json=Path("meta.json"), reg_data_dir=tmp_path), SIZE)
    assert [subset.is_reg for subset in spec.subsets] == [False, True]


def test_where_the_names_of_a_metadata_file_start_must_be_a_folder(tmp_path):
    message = error_of(DataPlaces(in_json=Path("meta.json"), train_data_dir=tmp_path / "none"))
    assert f"--train_data_dir {tmp_path / 'none'} is not a folder; the nearest folder that exists is" in message


def test_a_dataset_file_goes_before_everything(tmp_path):
    file = tmp_path / "data.toml"
    file.write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nconditioning_data_dir = 'm'\n")
    places = DataPlaces(dataset_config=file, in_json=tmp_path / "none", train_data_dir=tmp_path / "none")
    source, (spec,) = specs_from_options(places, SIZE, masked_loss=True)
    assert source == str(file) and spec.subsets[0].image_dir == Path("a")
    assert "conditioning_data_dir needs --masked_loss" in error_of(places)


def test_masked_loss_needs_masks(tmp_path, caplog):
    make_folders(tmp_path, "1_cat")
    folder_specs(tmp_path, masked_loss=True)
    assert "--masked_loss has no effect" in caplog.text


def test_no_place_at_all_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="one of dataset_config, in_json and train_data_dir"):
        specs_from_options(DataPlaces(), SIZE)
