"""What a sweep file says, and what is wrong in one."""

from pathlib import Path

import pytest

from library.errors import DatasetError, OptionError
from library.training.sweeping.sweep_file import folder_name, read_sweep
from library.training.sweeping.variation_files import files_of

SCRIPTS = ("sd3_train_network.py", "train_network.py")
HEAD = '[sweep]\nscript = "train_network.py"\n[options]\nlearning_rate = 1e-3\n'


def read(folder: Path, text: str):
    path = folder / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return read_sweep(path, SCRIPTS)


def test_variations_come_in_their_order_and_the_grid_after_them(tmp_path: Path):
    text = HEAD + '[[variation]]\nname = "one"\nseed = 3\n[grid]\nnetwork_dim = [4, 8]\nlearning_rate = [1e-4, 1e-3]\n'
    sweep = read(tmp_path, text)
    assert sweep.script == "train_network.py" and sweep.options == {"learning_rate": 1e-3}
    assert [variation.values for variation in sweep.variations] == [
        {"seed": 3},
        *({"network_dim": dim, "learning_rate": rate} for dim in (4, 8) for rate in (1e-4, 1e-3)),
    ]
    assert [variation.name for variation in sweep.variations][:2] == ["one", "network_dim=4 learning_rate=0.0001"]


def test_a_settings_file_comes_first_and_its_tables_mean_nothing(tmp_path: Path):
    (tmp_path / "base.toml").write_text("seed = 1\n[any]\nnetwork_dim = 4\nlearning_rate = 0.5\n", encoding="utf-8")
    text = f'[sweep]\nscript = "train_network.py"\nconfig_file = "{(tmp_path / "base").as_posix()}"\n'
    sweep = read(tmp_path, text + '[options]\nlearning_rate = 0.1\n[[variation]]\nname = "a"\n')
    assert sweep.options == {"seed": 1, "network_dim": 4, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is none"),
        (HEAD, "There is no variation"),
        ('[sweep]\nscript = "sdxl_train.py"\n[[variation]]\nseed = 1\n', "got 'sdxl_train.py'"),
        (HEAD + "[gird]\nseed = [1]\n[[variation]]\nseed = 1\n", "unknown table [gird]. Did you mean grid?"),
        (HEAD.replace("script", "scirpt") + "[[variation]]\nseed = 1\n", "unknown key scirpt. Did you mean script?"),
        (HEAD + "[grid]\nseed = 3\n", "[grid] seed must be a list"),
        (HEAD + "[grid]\nseed = []\n", "[grid] seed must be a list"),
        (HEAD + f"[grid]\nseed = {list(range(201))}\n", "makes 201 variations"),
        (HEAD + '[[variation]]\nname = "a"\nseed = 1\n[[variation]]\nname = "A"\nseed = 2\n', "called 'A'"),
        (
            HEAD + '[[variation]]\nname = "a"\nseed = 1\n[[variation]]\nname = "b"\nseed = 1\n',
            "'b' and 'a' are the same",
        ),
        (HEAD + '[[variation]]\nname = "?"\n', "no letter or digit"),
        (HEAD + "[variation]\nseed = 1\n", "each below [[variation]]"),
        (HEAD + '[[variation]]\nname = "cache"\nseed = 1\n', "cannot be called 'cache'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str):
    with pytest.raises(OptionError) as error:
        read(tmp_path, text)
    assert told in str(error.value)


def test_all_of_it_is_told_at_once(tmp_path: Path):
    with pytest.raises(OptionError) as error:
        read(tmp_path, '[sweep]\nscript = "x.py"\n[gird]\n[grid]\nseed = 1\n')
    assert all(word in str(error.value) for word in ("'x.py'", "[gird]", "[grid] seed"))


@pytest.mark.parametrize(
    ("name", "folder"),
    [("rank 4", "rank_4"), ("a/b\\c", "a_b_c"), ("..", ""), ("lr=1e-4", "lr=1e-4"), ("größe", "größe")],
)
def test_names_become_names_of_folders(name: str, folder: str):
    assert folder_name(name) == folder


def test_each_variation_gets_its_own_output_one_seed_and_caches_that_all_share(tmp_path: Path):
    text = HEAD + 'cache_latents = true\n[[variation]]\nname = "rank 4"\nnetwork_dim = 4\n'
    (files,) = files_of(read(tmp_path, text), Path("out"))
    assert files.options_path == Path("out/rank_4/options.toml")
    lines = files.options.splitlines()
    assert {"network_dim = 4", "learning_rate = 0.001", 'output_dir = "out/rank_4"', 'resume = "auto"'} <= set(lines)
    assert {"seed = 0", "validation_seed = 0", "cache_latents_to_disk = true", 'cache_dir = "out/cache"'} <= set(lines)


@pytest.mark.parametrize(
    ("options", "own", "told"),
    [
        ('output_dir = "x"\n', "", "output_dir is set by the sweep"),
        ("", 'resume = "auto"\n', "'a': resume is set by the sweep"),
        ("", "validation_seed = 4\n", "validation_seed has to be the same for all"),
        ("dry_run = true\n", "", "dry_run is set by the sweep"),
    ],
)
def test_what_the_sweep_decides_is_not_taken_from_the_file(tmp_path: Path, options: str, own: str, told: str):
    sweep = read(tmp_path, HEAD + options + '[[variation]]\nname = "a"\n' + own)
    with pytest.raises(OptionError) as error:
        files_of(sweep, tmp_path / "out")
    assert told in str(error.value)


def with_dataset(folder: Path, subset: str):
    dataset = folder / "data.toml"
    dataset.write_text(
        '[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "photos/dog"\nnum_repeats = 2\n'
        '[[datasets.subsets]]\nimage_dir = "photos/cat"\n',
        encoding="utf-8",
    )
    text = HEAD + f'dataset_config = "{dataset.as_posix()}"\n[[variation]]\nname = "a"\n[variation.subsets]\n{subset}\n'
    return files_of(read(folder, text), folder / "out")[0]


def test_a_variation_changes_keys_of_a_subset_in_a_dataset_file_of_its_own(tmp_path: Path):
    from library.options.toml_file import parse_toml

    files = with_dataset(tmp_path, "dog = { num_repeats = 5, flip_aug = true }")
    assert (
        files.dataset is not None
        and f'dataset_config = "{(files.folder / "dataset.toml").as_posix()}"' in files.options
    )
    subsets = parse_toml(files.dataset, "x", OptionError)["datasets"][0]["subsets"]
    assert subsets == [
        {"image_dir": "photos/dog", "num_repeats": 5, "flip_aug": True},
        {"image_dir": "photos/cat"},
    ]
    assert files.variation.differences() == {"dog: num_repeats": "5", "dog: flip_aug": "True"}


def test_a_subset_that_is_not_there_is_told_with_those_that_are(tmp_path: Path):
    with pytest.raises(DatasetError) as error:
        with_dataset(tmp_path, "bird = { num_repeats = 5 }")
    assert "photos/dog, photos/cat" in str(error.value)


def test_results_of_another_sweep_stay_as_they_are(tmp_path: Path):
    (files,) = files_of(read(tmp_path, HEAD + '[[variation]]\nname = "a"\nseed = 1\n'), tmp_path / "out")
    files.write(files.folder)
    (other,) = files_of(read(tmp_path, HEAD + '[[variation]]\nname = "a"\nseed = 2\n'), tmp_path / "out")
    other.refuse_others()  # nothing has been trained: it may have been a typo
    (files.folder / "a_numbers.json").write_text("{}")
    files.refuse_others()
    with pytest.raises(OptionError, match="another --output_dir"):
        other.refuse_others()
    assert files.options_path.read_text(encoding="utf-8") == files.options


def test_long_names_of_a_grid_are_numbered(tmp_path: Path):
    values = [[f"conv_dim={'4' * 60}", "a=1"], [f"conv_dim={'4' * 60}", "a=2"]]
    sweep = read(tmp_path, HEAD + f"[grid]\nnetwork_args = {values}\n".replace("'", '"'))
    names = [variation.name for variation in sweep.variations]
    assert [name[-2:] for name in names] == [" 1", " 2"] and len(set(names)) == 2
