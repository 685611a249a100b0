"""TensorBoard and wandb get numbers, pictures and options; what they break at never ends a training."""

import importlib.util
import json
import logging
import re
import struct
import sys
from pathlib import Path

import pytest
from PIL import Image

from library.errors import EnvironmentFault, OptionError
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.groups import LoggingOptions
from library.options.spec import parse_options
from library.training.watching.trackers import Trackers, check_trackers, shown_options

KEY = "0123456789" * 4
NEEDED = (
    "--pretrained_model_name_or_path=/models/sd3.safetensors --dataset_config=d.toml --network_module=networks.lora"
)


def needs(package):
    is_there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not is_there, reason=f"{package} is not installed: quickstart.py --extras {package}")


@pytest.fixture
def warnings(caplog):
    """A function that gives our warnings so far."""
    caplog.set_level(logging.INFO, "easel")

    def told():
        ours = [record for record in caplog.records if record.name.startswith("easel")]
        return [record.message for record in ours if record.levelno >= logging.WARNING]

    return told


@pytest.fixture
def started(tmp_path):
    """Starts trackers that are finished after the test."""
    running = []

    def start(is_main=True, values=None, **options):
        running.append(
            Trackers.start(LoggingOptions(**options), values or {}, is_main=is_main, output_dir=tmp_path / "out")
        )
        return running[-1]

    yield start
    for trackers in running:
        trackers.finish()


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path, colour in zip(paths, ((255, 0, 0), (0, 0, 255)), strict=True):
        Image.new("RGB", (24, 16), colour).save(path)
    return paths


# TensorBoard


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    return file, EventAccumulator(str(file.parent), size_guidance={"images": 0}).Reload()


@needs("tensorboard")
def test_numbers_are_read_back_from_tensorboard(tmp_path, started):
    trackers = started(logging_dir=tmp_path / "logs", log_prefix="my_")
    assert trackers
    trackers.log({"loss/current": 0.5, "lr/unet": 1e-4}, 1)
    trackers.log({"loss/current": 0.25}, 2)
    trackers.finish()
    assert not trackers
    file, read = events(tmp_path / "logs")
    assert re.fullmatch(r"my_\d{14}", file.parent.parent.name) and file.parent.name == "network_train"
    assert [(event.step, event.value) for event in read.Scalars("loss/current")] == [(1, 0.5), (2, 0.25)]
    assert read.Scalars("lr/unet")[0].value == pytest.approx(1e-4)


@needs("tensorboard")
def test_pictures_are_read_back_from_tensorboard(tmp_path, started, pictures):
    import io

    trackers = started(logging_dir=tmp_path / "logs")
    trackers.log_pictures(pictures, ["a red one", "a blue one"], 7, numbers=[0, 2])
    trackers.finish()
    _, read = events(tmp_path / "logs")
    assert read.Tags()["images"] == ["sample_0", "sample_2"]
    (image,) = read.Images("sample_2")
    assert image.step == 7
    assert Image.open(io.BytesIO(image.encoded_image_string)).getpixel((3, 3))[:3] == (0, 0, 255)
    (text,) = read.Tensors("sample_2/prompt/text_summary")
    assert text.tensor_proto.string_val == [b"a blue one"]


@needs("tensorboard")
@pytest.mark.parametrize("is_told", [True, False])
def test_options_are_told_to_tensorboard_when_asked_for(tmp_path, started, is_told):
    values = {"seed": 42, "wandb_api_key": KEY, "output_dir": Path("secret_place")}
    started(logging_dir=tmp_path / "logs", log_config=is_told, values=values).finish()
    content = events(tmp_path / "logs")[0].read_bytes()
    assert (b"| seed | 42 |" in content) == is_told
    assert KEY.encode() not in content and b"secret_place" not in content


@needs("tensorboard")
def test_settings_of_tensorboard_come_from_the_file(tmp_path, started):
    config = tmp_path / "t.toml"
    config.write_text('[tensorboard]\nfilename_suffix = ".mine"\n')
    options = {"logging_dir": tmp_path / "logs", "log_tracker_config": config, "log_tracker_name": "my_project"}
    check_trackers(LoggingOptions(**options))
    started(**options).finish()
    file, _ = events(tmp_path / "logs")
    assert file.name.endswith(".mine") and file.parent.name == "my_project"


@needs("tensorboard")
def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, started, warnings):
    (tmp_path / "file").write_text("")
    trackers = started(logging_dir=tmp_path / "file")
    trackers.log({"loss/current": 1.0}, 1)
    assert not trackers
    (line,) = warnings()
    assert line.startswith("tensorboard is off from here on, training goes on: ")


@needs("tensorboard")
def test_a_tracker_that_breaks_is_one_warning_and_off(tmp_path, started, warnings, pictures):
    trackers = started(logging_dir=tmp_path / "logs")
    pictures[0].unlink()
    for step in (1, 2):
        trackers.log_pictures(pictures, ["", ""], step)
    trackers.log({"loss/current": 1.0}, 3)
    assert not trackers
    assert len(warnings()) == 1 and "a.png" in warnings()[0]


@needs("tensorboard")
def test_pictures_without_their_prompts_end_the_tracker_and_not_the_run(tmp_path, started, warnings, pictures):
    trackers = started(logging_dir=tmp_path / "logs")
    trackers.log_pictures(pictures, ["only one prompt"], 1)
    assert not trackers and len(warnings()) == 1


def test_other_processes_and_runs_without_trackers_write_nothing(tmp_path, started, pictures):
    for trackers in (started(is_main=False, logging_dir=tmp_path / "logs"), started()):
        trackers.log({"loss/current": 1.0}, 1)
        trackers.log_pictures(pictures, ["", ""], 1)
        trackers.finish()
        assert not trackers
    assert not (tmp_path / "logs").exists() and not (tmp_path / "out").exists()


# wandb


def records(folder):
    """The records of a local run. Its file is a log of LevelDB: blocks of 32 KiB with chunks of (crc, length, kind)."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process may still write
    (file,) = folder.glob("wandb/*run-*/run-*.wandb")
    data, place, found, whole = file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last chunk
            found.append(Record.FromString(whole))
            whole = b""
    return found


def history(folder):
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            pairs = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in pairs.items() if not name.startswith("_")})
    return rows


@pytest.fixture
def own_wandb(monkeypatch, tmp_path):
    """No key and no settings of the user, and a server that nobody can reach."""
    for name in ("HOME", "USERPROFILE", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["train.py", "--wandb_api_key", KEY])
    config = tmp_path / "w.toml"
    config.write_text('[wandb]\ntags = ["t"]\n[wandb.settings]\nconsole = "off"\ninit_timeout = 2\n')
    import wandb

    wandb.teardown()  # what it remembers of the environment
    yield {"log_with": "wandb", "log_tracker_config": config}
    wandb.teardown()


@needs("wandb")
def test_wandb_without_a_key_runs_offline_with_one_warning(tmp_path, own_wandb, started, warnings, pictures):
    check_trackers(LoggingOptions(**own_wandb))
    values = {"seed": 42, "wandb_api_key": KEY, "network_weights": Path("secret_place")}
    trackers = started(**own_wandb, wandb_run_name="my run", log_config=True, values=values)
    trackers.log({"loss/current": 0.5}, 5)
    trackers.log({"loss/current": 0.25}, 3)  # a run that went back
    trackers.log_pictures(pictures[:1], ["a red one"], 5)
    trackers.finish()
    (line,) = warnings()
    assert line.startswith("wandb runs offline (") and "`wandb sync` uploads them later" in line
    first, second, third = history(tmp_path / "out")
    assert first == {"loss/current": 0.5, "step": 5} and second == {"loss/current": 0.25, "step": 3}
    assert (third["sample_0/caption"], third["sample_0/width"], third["step"]) == ("a red one", 24, 5)
    (run,) = [record.run for record in records(tmp_path / "out") if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, list(run.tags)) == ("network_train", "my run", ["t"])
    assert {item.key: item.value_json for item in run.config.update}["seed"] == "42"


@needs("wandb")
def test_wandb_out_of_reach_runs_offline_and_keeps_the_key_to_itself(tmp_path, own_wandb, started, warnings):
    options = {**own_wandb, "logging_dir": tmp_path / "logs", "log_tracker_name": "my_project"}
    trackers = started(**options, wandb_api_key=KEY, log_config=True, values={"wandb_api_key": KEY})
    trackers.log({"loss/current": 0.5}, 1)
    trackers.finish()
    (line,) = warnings()
    assert line.startswith("wandb runs offline (") and KEY not in line
    written = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert not (tmp_path / "home" / ".netrc").exists()


@needs("wandb")
def test_a_mode_that_the_user_chose_is_no_warning(tmp_path, own_wandb, started, warnings, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = started(**own_wandb)
    trackers.log({"loss/current": 0.5}, 1)
    trackers.finish()
    assert history(tmp_path / "out") == [{"loss/current": 0.5, "step": 1}]
    assert warnings() == []


@needs("wandb")
@needs("tensorboard")
def test_all_is_both(tmp_path, own_wandb, started, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = started(**{**own_wandb, "log_with": "all"}, logging_dir=tmp_path / "logs")
    trackers.log({"loss/current": 0.5}, 1)
    trackers.finish()
    assert history(tmp_path / "logs") == [{"loss/current": 0.5, "step": 1}]
    assert list((tmp_path / "logs").glob("[0-9]*/network_train/events.out.*"))


# Checks at the start


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
@pytest.mark.parametrize("is_folder_there", [False, True])
def test_a_missing_package_is_told_before_anything_is_loaded(tmp_path, monkeypatch, package, is_folder_there):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, package, raising=False)
    if is_folder_there:  # wandb makes one where it runs
        (tmp_path / package).mkdir()
    importlib.invalidate_caches()
    with pytest.raises(EnvironmentFault, match=f"--log_with {package}: the Python package {package} is not installed"):
        check_trackers(LoggingOptions(log_with=package, logging_dir=tmp_path))


def test_nothing_is_needed_without_trackers():
    check_trackers(LoggingOptions())


@needs("tensorboard")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tensorbord]\na = 1", "unknown key tensorbord. Did you mean tensorboard?"),
        ("tensorboard = 1", "tensorboard is no table"),
        ("[tensorboard]\nflush_sec = 1", r"\[tensorboard\]: unknown key flush_sec. Did you mean flush_secs?"),
        ("[tensorboard", "Expected ']'"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_file_of_settings_is_told(tmp_path, text, message):
    path = tmp_path / "t.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError, match=message) as caught:
        check_trackers(LoggingOptions(logging_dir=tmp_path, log_tracker_config=path))
    assert f"--log_tracker_config: {path}" in str(caught.value)


@needs("wandb")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[wandb]\nprojct = 'a'", "unknown key projct. Did you mean project?"),
        ("[wandb.settings]\ninit_timeout = 'soon'", r"\[wandb.settings\]: wandb does not accept them"),
        ("[wandb]\nsettings = 3", r"\[wandb.settings\]: wandb does not accept them"),
    ],
)
def test_wrong_settings_of_wandb_are_told(tmp_path, text, message):
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=message):
        check_trackers(LoggingOptions(log_with="wandb", log_tracker_config=path))


def test_options_are_shown_without_keys_and_paths():
    command = f"{NEEDED} --output_dir=out --wandb_api_key={KEY} --huggingface_token={KEY} --network_dim=8"
    command += " --log_with=wandb --metadata_thumbnail=C:\\me\\a.png --seed=7 --network_args train_norm=True rank=4"
    shown = shown_options(parse_options(Sd3NetworkOptions, command.split(" "), **NETWORK_SCRIPT).values())
    assert (shown["network_dim"], shown["seed"], shown["network_args"]) == (8, 7, "train_norm=True, rank=4")
    assert not [name for name, value in shown.items() if KEY in str(value) or "/" in str(value) or "\\" in str(value)]
    assert not {"output_dir", "dataset_config", "metadata_thumbnail", "clip_l"} & set(shown)
    assert {type(value) for value in shown.values()} <= {bool, int, float, str}


def test_a_logging_dir_that_is_a_file_is_refused(tmp_path):
    place = tmp_path / "logs"
    place.touch()
    with pytest.raises(OptionError, match="logs is a file"):
        check_trackers(LoggingOptions(logging_dir=place))
