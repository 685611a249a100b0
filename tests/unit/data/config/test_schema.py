"""Dataset files: resolution of values, checks, and messages."""

import json
import re
from pathlib import Path

import pytest

from library.data.config.keys import KEYS, TABLE_NAMES
from library.data.config.schema import load_dataset_config, parse_dataset_config
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files.metadata_json import read_entries
from library.data.problems import NUM_LISTED
from library.errors import DatasetError
from library.records import Size

DOCS = Path(__file__).parents[4] / "docs" / "dataset_config.md"

SMALL = """
[general]
resolution = 512

[[datasets]]
  [[datasets.subsets]]
  image_dir = "pictures"
"""


def load(tmp_path, text, defaults=None, name="data.toml", **arguments):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_dataset_config(path, defaults or {}, **arguments)


def error_of(tmp_path, text, defaults=None, name="data.toml"):
    with pytest.raises(DatasetError) as caught:
        load(tmp_path, text, defaults, name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    return message[len(str(tmp_path / name)) :]


def subset_file(line, where="subset"):
    """A small file with one more line in one of its tables."""
    lines = {"general": "", "dataset": "", "subset": ""} | {where: line}
    return (
        f"[general]\nresolution = 512\n{lines['general']}\n[[datasets]]\n{lines['dataset']}\n"
        f'[[datasets.subsets]]\nimage_dir = "pictures"\n{lines["subset"]}\n'
    )


def test_built_in_defaults(tmp_path):
    (spec,) = load(tmp_path, SMALL)
    (subset,) = spec.subsets
    assert spec.resolution == Size(512, 512)
    assert (spec.batch_size, spec.enable_bucket, spec.bucket_reso_steps) == (1, False, 64)
    assert (subset.image_dir, subset.num_repeats, subset.caption_extension) == (Path("pictures"), 1, ".caption")
    assert (subset.class_tokens, subset.captions.caption_separator, subset.flip_aug) == (None, ",", False)


def test_value_nearest_to_the_subset_wins(tmp_path):
    text = """
[general]
keep_tokens = 2
batch_size = 2
[[datasets]]
keep_tokens = 3
batch_size = 3
  [[datasets.subsets]]
  image_dir = "a"
  keep_tokens = 4
  [[datasets.subsets]]
  image_dir = "b"
[[datasets]]
  [[datasets.subsets]]
  image_dir = "a"
"""
    first, second = load(
        tmp_path, text, {"resolution": "640,832", "keep_tokens": 9, "num_repeats": 5, "flip_aug": None}
    )
    assert [subset.captions.keep_tokens for subset in first.subsets + second.subsets] == [4, 3, 2]
    assert [spec.batch_size for spec in (first, second)] == [3, 2]
    assert [subset.num_repeats for subset in first.subsets] == [5, 5]
    assert first.resolution == Size(640, 832)


def test_json_gives_the_same_as_toml(tmp_path):
    table = {"general": {"resolution": [512, 512]}, "datasets": [{"subsets": [{"image_dir": "pictures"}]}]}
    assert load(tmp_path, json.dumps(table), name="data.JSON") == load(tmp_path, SMALL)


@pytest.mark.parametrize(
    "folder", ["with space", "br[1]/a*b", "日本 語 é", "C:\\new\\data", "C:/new", "\\\\server\\share"]
)
def test_any_folder_name(tmp_path, folder):
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder}'"
    (spec,) = load(tmp_path, text, {"resolution": 64})
    assert spec.subsets[0].image_dir == Path(folder)


def test_home_folder_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (spec,) = load(tmp_path, SMALL.replace("pictures", "~/pictures"))
    assert spec.subsets[0].image_dir == tmp_path / "pictures"


def test_whole_numbers_are_numbers_and_extensions_get_their_dot(tmp_path):
    text = subset_file("caption_dropout_rate = 0\ntoken_warmup_step = 10\ncaption_extension = 'txt'")
    text = text.replace("[[datasets]]", "[[datasets]]\nvalidation_split = 0")
    subset = load(tmp_path, text)[0].subsets[0]
    assert subset.captions.caption_dropout_rate == 0.0
    assert subset.captions.token_warmup_step == 10.0
    assert subset.caption_extension == ".txt"


def test_byte_order_mark_is_skipped(tmp_path):
    assert load(tmp_path, "\ufeff" + SMALL) == load(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("where", "line", "message"),
    [
        (
            "general",
            "enable_bukcet = true",
            "line 3, [general]: unknown key 'enable_bukcet', the nearest is 'enable_bucket'",
        ),
        (
            "dataset",
            "train_batch_size = 2",
            "line 5, dataset 1: unknown key 'train_batch_size', the nearest is 'batch_size'",
        ),
        ("subset", "repeats = 2", "line 8, dataset 1, subset 1: unknown key 'repeats', the nearest is 'num_repeats'"),
        ("subset", "enable_bucket = true", "'enable_bucket' belongs in [general] or [[datasets]]"),
        ("general", "image_dir = 'x'", "'image_dir' belongs in [[datasets.subsets]]"),
        ("subset", "num_repeats = 0", "line 8, dataset 1, subset 1: num_repeats must be at least 1, got 0"),
        ("subset", "num_repeats = true", "num_repeats must be a whole number, got true"),
        ("subset", "num_repeats = 2.5", "num_repeats must be a whole number, got 2.5"),
        ("subset", "num_repeats = '2'", "num_repeats must be a whole number, got '2'; remove the quotes"),
        ("subset", "flip_aug = 1", "flip_aug must be true or false, got 1"),
        ("subset", "class_tokens = 3", "class_tokens must be a text in quotes, got 3"),
        ("subset", "caption_dropout_rate = 1.5", "caption_dropout_rate must be from 0 to 1, got 1.5"),
        ("subset", "caption_dropout_rate = nan", "caption_dropout_rate must be a number, got nan"),
        ("subset", "caption_separator = ''", "caption_separator must not be empty"),
        ("subset", "resize_interpolation = 'lancos'", "got 'lancos', the nearest is 'lanczos'"),
        ("dataset", "batch_size = -1", "batch_size must be at least 1, got -1"),
        ("dataset", "resolution = [512]", "resolution must be a whole number or [width, height], got [512]"),
        ("dataset", "resolution = '512'", "resolution must be a whole number or [width, height], got '512'"),
        ("dataset", "resolution = [512, 0]", "resolution must be at least 1"),
        ("dataset", "resolution = 500", "resolution 500x500 must be a multiple of 16"),
        ("dataset", "enable_bucket = true\nbucket_reso_steps = 8", "bucket_reso_steps must be a multiple of 16, got 8"),
        ("dataset", "enable_bucket = true\nmax_bucket_reso = 448", "max_bucket_reso 448 is below the long side"),
        ("dataset", "enable_bucket = true\nmin_bucket_reso = 576", "min_bucket_reso 576 is above the short side"),
        ("dataset", "enable_bucket = true\nresolution = 48", "resolution 48x48 has a side below bucket_reso_steps 64"),
        (
            "subset",
            "is_reg = true\nmetadata_file = 'm.json'",
            "line 8, dataset 1, subset 1: is_reg cannot be used with metadata_file; name a folder",
        ),
        (
            "subset",
            "conditioning_data_dir = 'm'",
            "line 8, dataset 1, subset 1: conditioning_data_dir needs --masked_loss: without it the masks would",
        ),
        ("subset", "alpha_mask = 1", "alpha_mask must be true or false, got 1"),
        ("general", "alpha_mask = true", "'alpha_mask' belongs in [[datasets.subsets]]"),
        ("dataset", "is_reg = true", "'is_reg' belongs in [[datasets.subsets]]"),
        ("dataset", "metadata_file = 'm.json'", "'metadata_file' belongs in [[datasets.subsets]]"),
        ("subset", "validation_seed = 1", "'validation_seed' belongs in [general] or [[datasets]]"),
        ("subset", "validation_split = 1.5", "validation_split must be from 0 to 1, got 1.5"),
        ("dataset", "validation_seed = 0.5", "validation_seed must be a whole number, got 0.5"),
        ("subset", "face_crop_aug_range = 1", "face_crop_aug_range must be two numbers [low, high], got 1"),
        ("subset", "face_crop_aug_range = [1]", "face_crop_aug_range must be two numbers [low, high], got [1]"),
        ("subset", "face_crop_aug_range = [2, 1]", "two numbers above 0, the lower one first, got [2, 1]"),
        ("subset", "face_crop_aug_range = [0, 1]", "two numbers above 0, the lower one first, got [0, 1]"),
        (
            "dataset",
            "enable_bucket = true\nface_crop_aug_range = [1, 2]",
            "dataset 1, subset 1: face_crop_aug_range cannot be used with enable_bucket",
        ),
        ("subset", "custom_attributes = 3", "custom_attributes must be a table, got 3"),
        (
            "subset",
            "custom_attributes = {diff_output_presevation = true}",
            "unknown key 'diff_output_presevation', the nearest is 'diff_output_preservation'",
        ),
        (
            "general",
            "custom_attributes = {weight = 1}",
            "line 3, [general]: custom_attributes has an unknown key 'weight', known is diff_output_preservation",
        ),
        (
            "subset",
            "[datasets.subsets.custom_attributes]\ndiff_output_preservation = 1",
            "line 8, dataset 1, subset 1: diff_output_preservation in custom_attributes must be true or false, got 1",
        ),
        ("subset", "background = 'grey'", 'background must be "white", "black" or "#rrggbb", got \'grey\''),
        ("subset", "background = [1, 2, 3]", "background must be a colour in quotes"),
        ("subset", "missing_caption = 'alow'", "must be one of error, allow, got 'alow', the nearest is 'allow'"),
        ("subset", "empty_caption = 'skip'", "must be one of error, allow, class_tokens, got 'skip'"),
        ("subset", "empty_caption = 'class_tokens'", 'subset 1: empty_caption = "class_tokens" needs class_tokens'),
        ("subset", "caption_encoding = 'latin9000'", "caption_encoding 'latin9000' is not known; a usual one is"),
        ("subset", "min_image_size = -1", "min_image_size must be at least 0, got -1"),
        ("subset", "max_aspect_ratio = 0.5", "max_aspect_ratio must be at least 1, got 0.5"),
        ("subset", "max_crop_fraction = 2", "max_crop_fraction must be from 0 to 1, got 2"),
        ("subset", "max_image_pixels = 0", "max_image_pixels must be at least 1, got 0"),
        ("subset", "on_bad_file = 'skip'", "unknown key 'on_bad_file'"),
        ("subset", "[[datasets.subsets]]\nimage_dir = './pictures'", "subsets 1 and 2 both have image_dir pictures"),
        ("subset", "[[datasets.subsets]]", "dataset 1, subset 2: no image_dir"),
        ("subset", "[[datasets]]", "dataset 2 has no [[datasets.subsets]]"),
        ("subset", "[[subsets]]", "'subsets' belongs in a dataset, written [[datasets.subsets]]"),
        ("subset", "[dataset]", "unknown key 'dataset', the nearest is 'datasets'"),
    ],
)
def test_messages(tmp_path, where, line, message):
    assert message in error_of(tmp_path, subset_file(line, where))


def masked_file(line=""):
    return subset_file(f"conditioning_data_dir = 'masks'\n{line}")


def test_masks_of_a_second_folder_come_with_masked_loss(tmp_path):
    (subset,) = load(tmp_path, masked_file("random_crop = true"), masked_loss=True)[0].subsets
    assert subset.conditioning_data_dir == Path("masks")
    assert subset.has_masks and subset.random_crop and not subset.alpha_mask


def test_two_sources_of_masks_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="conditioning_data_dir and alpha_mask both give masks; remove one of them"):
        load(tmp_path, masked_file("alpha_mask = true"), masked_loss=True)


def test_alpha_mask_of_the_command_line_gives_way_to_a_folder_of_masks(tmp_path, caplog):
    (subset,) = load(tmp_path, masked_file(), {"alpha_mask": True}, masked_loss=True)[0].subsets
    assert subset.has_masks and not subset.alpha_mask
    assert "dataset 1, subset 1: --alpha_mask has no effect beside conditioning_data_dir" in caplog.text


def test_alpha_mask_falls_back_to_the_command_line_and_needs_no_masked_loss(tmp_path):
    assert load(tmp_path, SMALL, {"alpha_mask": True})[0].subsets[0].alpha_mask
    assert not load(tmp_path, subset_file("alpha_mask = false"), {"alpha_mask": True})[0].subsets[0].alpha_mask
    assert load(tmp_path, subset_file("alpha_mask = true"))[0].subsets[0].has_masks


def test_a_subset_of_a_metadata_file_needs_no_folder(tmp_path):
    text = SMALL.replace("image_dir = ", "metadata_file = ")
    (subset,) = load(tmp_path, text)[0].subsets
    assert (subset.image_dir, subset.metadata_file) == (None, Path("pictures"))


def test_all_kinds_of_subsets_may_be_mixed(tmp_path):
    text = masked_file(
        "[[datasets.subsets]]\nimage_dir = 'b'\nis_reg = true\n[[datasets.subsets]]\nmetadata_file = 'm.jsonl'\n"
        "[[datasets.subsets]]\nimage_dir = 'pictures'\nmetadata_file = 'm.jsonl'\n"
        "[[datasets.subsets]]\nimage_dir = 'pictures'\nmetadata_file = 'n.jsonl'"
    )
    subsets = load(tmp_path, text, masked_loss=True)[0].subsets
    assert [subset.is_reg for subset in subsets] == [False, True, False, False, False]
    assert [subset.metadata_file is None for subset in subsets] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("is_reg = true\n[[datasets.subsets]]\nimage_dir = 'pictures'", "1 and 2 both have image_dir pictures"),
        (
            "metadata_file = 'm.json'\n[[datasets.subsets]]\nimage_dir = 'pictures'\nmetadata_file = './m.json'",
            "1 and 2 both have metadata_file m.json",
        ),
    ],
)
def test_a_source_may_occur_once_in_a_dataset(tmp_path, line, message):
    text = subset_file(line).replace("is_reg = true\nmeta", "meta")
    assert message in error_of(tmp_path, text)


def test_a_folder_may_occur_in_several_datasets(tmp_path):
    text = subset_file("[[datasets]]\nresolution = 1024\n[[datasets.subsets]]\nimage_dir = 'pictures'")
    assert [spec.resolution.width for spec in load(tmp_path, text)] == [512, 1024]


def test_values_of_the_new_keys(tmp_path):
    text = subset_file(
        "validation_split = 1\nface_crop_aug_range = [1, 2.5]\nbackground = '#0a0BfF'\ncolor_aug = true\n"
        "custom_attributes = {diff_output_preservation = true}\nrecursive = true\nmin_image_size = 64\n"
        "max_aspect_ratio = 3\nmax_crop_fraction = 0.5\nmax_image_pixels = 1000\ncaption_encoding = 'cp1252'\n"
        "missing_caption = 'allow'\nempty_caption = 'class_tokens'\nclass_tokens = 'cat'"
    ).replace("[[datasets]]", "[[datasets]]\nvalidation_seed = 7")
    (spec,) = load(tmp_path, text)
    (subset,) = spec.subsets
    assert (spec.validation_seed, subset.validation_split, subset.preserves_output) == (7, 1.0, True)
    assert subset.face_crop_aug_range == (1.0, 2.5) and subset.background == (10, 11, 255)
    assert subset.changes_pixels == ("color_aug", "face_crop_aug_range") and subset.recursive
    assert (subset.min_image_size, subset.max_aspect_ratio, subset.max_crop_fraction) == (64, 3.0, 0.5)
    assert (subset.max_image_pixels, subset.caption_encoding) == (1000, "cp1252")
    assert (subset.missing_caption, subset.empty_caption) == ("allow", "class_tokens")


def test_built_in_defaults_are_those_of_the_specs(tmp_path):
    (spec,) = load(tmp_path, SMALL)
    assert spec.subsets == (SubsetSpec(image_dir=Path("pictures")),)
    assert spec == DatasetSpec(resolution=Size(512, 512), subsets=spec.subsets)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"face_crop_aug_range": "2,1"}, "--face_crop_aug_range must be two numbers above 0, the lower one first"),
        ({"face_crop_aug_range": "big"}, "--face_crop_aug_range must be two numbers low,high, got 'big'"),
        ({"background": "blue"}, '--background must be "white", "black" or "#rrggbb", got \'blue\''),
        ({"caption_encoding": "utf9"}, "--caption_encoding 'utf9' is not known"),
        ({"face_crop_aug_range": "1,2", "enable_bucket": True}, "face_crop_aug_range cannot be used with enable_buck"),
    ],
)
def test_new_values_of_the_command_line_are_checked(tmp_path, values, message):
    assert message in error_of(tmp_path, SMALL, values)


def test_numbers_of_the_command_line_may_be_text(tmp_path):
    (spec,) = load(tmp_path, SMALL, {"face_crop_aug_range": "1,2.5", "validation_split": 0.5, "background": "black"})
    assert spec.subsets[0].face_crop_aug_range == (1.0, 2.5)
    assert (spec.subsets[0].validation_split, spec.subsets[0].background) == (0.5, (0, 0, 0))


def test_regularisation_pictures_are_never_kept_for_validation(tmp_path, caplog):
    assert load(tmp_path, subset_file("is_reg = true"), {"validation_split": 0.5})[0].subsets[0].validation_split == 0
    assert not caplog.text
    assert load(tmp_path, subset_file("is_reg = true\nvalidation_split = 0.5"))[0].subsets[0].validation_split == 0
    assert "validation_split has no effect: regularisation pictures are never kept for it" in caplog.text


def test_a_warning_about_a_key_is_given_once(tmp_path, caplog):
    load(tmp_path, subset_file("cache_info = true\n[[datasets.subsets]]\nimage_dir = 'b'\ncache_info = true"))
    assert caplog.text.count("cache_info has no effect: sizes are always remembered, and checked") == 1


@pytest.mark.parametrize(
    ("where", "line", "defaults", "told"),
    [
        ("dataset", "batch_size = 2", {"resolution": Size(64, 64), "batch_size": 8}, "--resolution, --batch_size have"),
        ("subset", "flip_aug = false", {"flip_aug": True}, "--flip_aug has"),
        ("dataset", "num_repeats = 2", {"num_repeats": 1}, "--num_repeats has"),
        ("dataset", "[[datasets.subsets]]\nimage_dir = 'b'\nflip_aug = false", {"flip_aug": True}, None),
        ("subset", "[[datasets]]\nbatch_size = 4\n[[datasets.subsets]]\nimage_dir = 'b'", {"batch_size": 2}, None),
        ("general", "caption_extension = '.txt'", {"caption_extension": "txt", "resolution": Size(512, 512)}, None),
    ],
)
def test_options_that_the_file_overrides_everywhere_are_one_warning(tmp_path, caplog, where, line, defaults, told):
    given = {key: f"--{key}" for key in defaults}
    load(tmp_path, subset_file(line, where), defaults, given=given)
    lines = [f"{tmp_path / 'data.toml'}: {told} no effect: the file gives values of its own, which go before options"]
    assert [record.getMessage() for record in caplog.records] == (lines if told else [])


def test_what_the_user_did_not_give_is_not_told(tmp_path, caplog):
    load(tmp_path, SMALL, {"resolution": Size(1024, 1024)})
    assert not caplog.text


def test_masked_loss_without_masks_is_warned_about(tmp_path, caplog):
    load(tmp_path, subset_file("alpha_mask = true"), masked_loss=True)
    assert not caplog.text
    load(tmp_path, SMALL, masked_loss=True)
    assert "--masked_loss has no effect: no subset has conditioning_data_dir or alpha_mask" in caplog.text


def test_turned_off_forms_are_those_of_no_form(tmp_path, caplog):
    text = subset_file(
        "is_reg = false\nalpha_mask = false\ncustom_attributes = {}\ncolor_aug = false\ncache_info = false"
    )
    assert load(tmp_path, text) == load(tmp_path, SMALL)
    assert not caplog.text


def test_all_faults_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    text = (
        "[general]\nresolution = 'big'\nshufle_caption = 1\n[[datasets]]\nbatch_size = 0\n"
        "[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = -1"
    )
    message = error_of(tmp_path, text)
    assert message.startswith(": 4 faults in the dataset file:\n")
    assert [line[:9] for line in message.splitlines()[1:]] == ["  line 2,", "  line 3,", "  line 5,", "  line 8,"]


def test_long_lists_are_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    text = subset_file("\n".join(f"unknown{number} = 1" for number in range(NUM_LISTED + 10)))
    lines = error_of(tmp_path, text).splitlines()
    assert len(lines) == NUM_LISTED + 2
    assert lines[-1].strip() == "... and 10 more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has no [[datasets]]"),
        ("[datasets]\n", "needs [[datasets]], with two brackets"),
        ("general = 3\n[[datasets]]\n", "[general] must be a table"),
        ("[[datasets]]\nresolution=64\nsubsets = []", "dataset 1 has no [[datasets.subsets]]"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'", "no resolution; set it here"),
        ("[general]\nresolution = \nbatch_size = 1", ": line 2: "),
        ("[general]\nresolution = 1\nresolution = 2\n", ": line 3: "),
    ],
)
def test_incomplete_and_malformed_files(tmp_path, text, message):
    assert message in error_of(tmp_path, text)


def test_windows_paths_in_double_quotes(tmp_path):
    invalid = error_of(tmp_path, SMALL.replace('"pictures"', '"C:\\Users\\new"'))
    assert invalid.startswith(": line 7: ")
    assert "use '...' or / in paths" in invalid
    valid_but_wrong = error_of(tmp_path, SMALL.replace('"pictures"', '"C:\\new\\test"'))
    assert "control character" in valid_but_wrong
    assert "single quotes" in valid_but_wrong
    assert "use / in paths" in error_of(tmp_path, '{"datasets": "C:\\Users"}', name="data.json")


def test_files_that_cannot_be_read(tmp_path):
    for name, reason in [("none.toml", "does not exist"), ("data.yaml", "ends in .toml or .json")]:
        with pytest.raises(DatasetError, match=reason):
            load_dataset_config(tmp_path / name, {})
    (tmp_path / "latin.toml").write_bytes("# é".encode("latin-1"))
    with pytest.raises(DatasetError, match="not a UTF-8 file"):
        load_dataset_config(tmp_path / "latin.toml", {})
    assert ": line 1, column 2: not valid JSON" in error_of(tmp_path, "{]", name="data.json")
    assert ": line 1, column 1: not valid JSON" in error_of(tmp_path, "", name="data.json")
    message = error_of(tmp_path, '{"general": {"resolution": 256,}}', name="data.json")
    assert message == ": line 1, column 31: not valid JSON (trailing comma behind the last item)."
    assert "the top level must be an object" in error_of(tmp_path, "[]", name="data.json")
    assert "resolution must be a whole number or [width, height], got null" in error_of(
        tmp_path, '{"datasets": [{"resolution": null, "subsets": [{"image_dir": "a"}]}]}', name="data.json"
    )


def json_file(dataset):
    return f'{{"datasets": [{{{dataset}, "resolution": 64, "subsets": [{{"image_dir": "a"}}]}}]}}'


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ('"batch_size": 1, "batch_size": 4', ': "batch_size" stands in one object twice; remove one.'),
        ('"flip_aug": ' + "[" * 200_000 + "]" * 200_000, "not valid JSON (Brackets nested too deeply)."),
        (f'"batch_size": {"9" * 5000}', ": line 1, column 30: not valid JSON (Number too long)."),
        (r'"class_tokens": "a \ud800 b"', "class_tokens holds half a character ('a \\ud800 b'); write the whole one"),
    ],
    ids=["twice", "deep", "long", "half"],
)
def test_json_that_toml_could_not_hold(tmp_path, dataset, message):
    assert message in error_of(tmp_path, json_file(dataset), name="data.json")


def test_all_keys_that_are_given_twice_in_json_are_listed(tmp_path):
    twice = '"batch_size": 1, "batch_size": 2, "flip_aug": true, "flip_aug": false, "flip_aug": true'
    lines = error_of(tmp_path, json_file(twice), name="data.json").splitlines()
    assert lines[0] == ": 2 faults in the dataset file:"
    assert [line.split()[0] for line in lines[1:]] == ['"batch_size"', '"flip_aug"']


def test_command_line_values_are_checked_too(tmp_path):
    assert "--resolution must be a number of pixels or width,height, got 'big'" in error_of(
        tmp_path, SMALL, {"resolution": "big"}
    )
    assert "--batch_size must be at least 1, got 0" in error_of(tmp_path, SMALL, {"batch_size": 0})
    with pytest.raises(ValueError, match="train_batch_size"):
        load(tmp_path, SMALL, {"train_batch_size": 1})


@pytest.mark.parametrize("fault", ["num_repeats = -1", 'empty_caption = "class_tokens"'])
def test_missing_folders_are_told_along_with_other_faults(tmp_path, fault):
    (tmp_path / "clean").mkdir()
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'claen'}'\n{fault}"
    message = error_of(tmp_path, text, {"resolution": 64})
    assert ": 2 faults in the dataset file:" in message
    hint = f"the nearest folder that does is {tmp_path / 'clean'}"
    assert f"dataset 1, subset 1: image_dir {tmp_path / 'claen'} does not exist; {hint}" in message


def test_missing_folders_alone_are_left_to_the_scan(tmp_path):
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'claen'}'"
    assert load(tmp_path, text, {"resolution": 64})


def test_narrow_bucket_limits_are_one_warning(tmp_path, caplog):
    load(tmp_path, subset_file("enable_bucket = true\nresolution = 1024", "dataset"))
    (record,) = caplog.records
    assert "dataset 1: max_bucket_reso 1024 keeps pictures that are not square below the area" in record.getMessage()


def test_bucket_limits_are_rounded_outward(tmp_path, caplog):
    text = subset_file("enable_bucket = true\nmin_bucket_reso = 250\nmax_bucket_reso = 1000", "dataset")
    (spec,) = load(tmp_path, text)
    assert (spec.min_bucket_reso, spec.max_bucket_reso) == (192, 1024)
    assert "bucket sides go from 192 to 1024" in caplog.text


@pytest.mark.parametrize(
    ("line", "where", "warning"),
    [
        ("network_multiplier = 0.5", "dataset", "network_multiplier has no effect: no script uses it"),
        ("cache_info = true", "general", "cache_info has no effect: sizes are always remembered"),
        (
            "metadata_file = 'm.json'\nrecursive = true",
            "subset",
            "dataset 1, subset 1: recursive has no effect beside metadata_file",
        ),
        ("keep_tokens_separator = '|||'", "subset", "keep_tokens_separator has no effect without shuffle_caption"),
        (
            "enable_bucket = true\nresolution = 500",
            "dataset",
            "resolution 500x500 is not a multiple of bucket_reso_steps",
        ),
    ],
)
def test_warnings(tmp_path, caplog, line, where, warning):
    load(tmp_path, subset_file(line, where))
    assert warning in caplog.text


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("bucket_no_upscale = true", "enable_bucket"),
        ("max_bucket_reso = 2048", "enable_bucket"),
        ("keep_tokens = 2", "shuffle_caption, caption_tag_dropout_rate or token_warmup_step"),
        ("keep_tokens_separator = '|'", "shuffle_caption, caption_tag_dropout_rate or token_warmup_step"),
        ("token_warmup_min = 3", "token_warmup_step"),
    ],
)
def test_keys_that_need_another_are_warned_about_once(tmp_path, caplog, line, needed):
    text = subset_file(line, "general") + "[[datasets.subsets]]\nimage_dir = 'b'\n[[datasets]]\n"
    load(tmp_path, text + "[[datasets.subsets]]\nimage_dir = 'c'")
    assert caplog.text.count(f"{line.split()[0]} has no effect without {needed}") == 1
    caplog.clear()
    name, value = line.split(" = ")
    load(tmp_path, SMALL, {name: value.strip("'") if name.endswith("separator") else json.loads(value)})
    assert f"data.toml: {name} has no effect without {needed}" in caplog.text


def test_keys_at_their_defaults_need_nothing(tmp_path, caplog):
    load(tmp_path, subset_file("keep_tokens = 0\nbucket_no_upscale = false\nmax_bucket_reso = 1024", "dataset"))
    load(tmp_path, SMALL, {"keep_tokens": 0, "token_warmup_min": 1, "keep_tokens_separator": ""})
    assert not caplog.text


def test_keys_that_act_somewhere_are_warned_about_where_they_are_given_in_vain(tmp_path, caplog):
    other = "[[datasets.subsets]]\nimage_dir = 'b'\n"
    load(tmp_path, subset_file("keep_tokens = 1", "general") + f"shuffle_caption = true\n{other}")
    assert not caplog.text
    load(tmp_path, subset_file("keep_tokens = 1\nshuffle_caption = true") + f"{other}keep_tokens = 1")
    assert "dataset 1, subset 2: keep_tokens has no effect without shuffle_caption" in caplog.text
    assert "subset 1: keep_tokens" not in caplog.text


def test_bucket_settings_do_not_matter_without_buckets(tmp_path):
    (spec,) = load(tmp_path, subset_file("bucket_reso_steps = 8\nmax_bucket_reso = 64", "dataset"))
    assert not spec.enable_bucket
    (spec,) = load(tmp_path, SMALL.replace("512", "24"), bucket_multiple=8)
    assert spec.resolution == Size(24, 24)


def test_parsing_needs_no_file():
    table = {"datasets": [{"resolution": 64, "subsets": [{"image_dir": "a"}]}]}
    assert parse_dataset_config(table, "source", {})[0].resolution == Size(64, 64)


def test_guide_names_every_key_with_its_default_and_levels():
    text = DOCS.read_text(encoding="utf-8")
    for name, key in KEYS.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert row, f"{name} is missing"
        where = row.split("|")[4].strip()
        assert where == {3: "G D S", 2: "G D", 1: "S"}[len(key.levels)], name
        words = {"True": "true", "False": "false", "None": "none", "": "empty"}
        default = words.get(str(key.default), str(key.default))
        assert row.split("|")[3].strip().strip("`") == default, name
    assert set(TABLE_NAMES.values()) == set(re.findall(r"`(\[+[\w.]+\]+)`", text)) & set(TABLE_NAMES.values())


EXAMPLES = re.findall(r"```(toml|jsonl?)\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_guide_has_an_example_of_every_form():
    text = "\n".join(example for _, example in EXAMPLES)
    forms = ("is_reg", "metadata_file", "conditioning_data_dir", "alpha_mask", "validation_split", "recursive")
    for key in (*forms, "diff_output_preservation", "min_image_size", "missing_caption", "class_tokens"):
        assert re.search(rf"\b{key} = ", text), key


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_the_guide_are_valid(tmp_path, caplog, kind, text):
    if kind == "toml" or '"datasets"' in text:
        is_masked = "conditioning_data_dir" in text
        assert load(tmp_path, text, {"resolution": "1024"}, f"data.{kind}", masked_loss=is_masked)
        assert not caplog.text
        return
    file = tmp_path / f"pictures.{kind}"
    file.write_text(text, encoding="utf-8")
    entries, problems = read_entries(file)
    assert entries and not problems
