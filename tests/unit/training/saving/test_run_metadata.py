"""What a run says in its files: of itself, of half a million tags, and when it is continued."""

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from library.checkpoint.header_limit import HEADER_LIMIT
from library.checkpoint.tensor_stream import HASH_KEY
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import parse_options
from library.records import CropPlan, ImageRecord, Size
from library.training.planning import PlanSettings, plan_data
from library.training.saving.run_metadata import RunMetadata, write_network

TENSORS = {"lora_up": torch.ones(4, 2), "alpha": torch.tensor(1.0)}
SIZE = Size(64, 64)


@pytest.fixture
def plan(tmp_path):
    """Two pictures and one for regularisation."""
    specs = []
    for name, number in (("dogs", 2), ("any", 1)):
        (tmp_path / name).mkdir()
        for index in range(number):
            Image.new("RGB", SIZE, (index, 0, 0)).save(tmp_path / name / f"{name}{index}.png")
        is_reg = name == "any"
        specs.append(SubsetSpec(image_dir=tmp_path / name, class_tokens="A dog, red", num_repeats=3, is_reg=is_reg))
    dataset = DatasetSpec(resolution=SIZE, batch_size=2, enable_bucket=True, subsets=tuple(specs))
    settings = PlanSettings(max_epochs=2, accumulation=2)
    return plan_data("data.toml", [dataset], settings, index_dir=tmp_path / "index")


@pytest.fixture
def make(tiny_sd3, tmp_path, plan):
    """Call it with flags: the RunMetadata of such a run."""

    def make(*flags, plan=plan, **keys):
        needed = [f"--pretrained_model_name_or_path={tiny_sd3}", f"--output_dir={tmp_path / 'out'}"]
        needed += [f"--train_data_dir={tmp_path}", "--network_module=networks.lora_sd3"]
        options = parse_options(Sd3NetworkOptions, [*needed, *flags], **NETWORK_SCRIPT)
        family = Sd3Family.from_options(options)
        values = {**options.values(), "optimizer_type": options.optimizer.optimizer_name}
        return RunMetadata(values, family=family, files=family.inspect(), plan=plan, seed=7, network_args={}, **keys)

    return make


def header(metadata, **keys):
    return metadata.for_file(
        TENSORS, **{"step": 10, "epoch": 1, "architecture": "stable-diffusion-3-medium/lora", **keys}
    )


def with_records(plan, records):
    return replace(
        plan,
        records=tuple(records),
        crops=(CropPlan(SIZE, 0, 0, SIZE),) * len(records),
        num_training=len(records),
    )


def test_a_run_tells_counts_and_settings(make):
    said = header(make("--training_comment=mine", "--output_name=dog", "--training_shift=2.5", "--min_timestep=100"))
    expected = {
        "ss_training_comment": "mine",
        "ss_output_name": "dog",
        "ss_seed": "7",
        "ss_num_train_images": "6",
        "ss_num_reg_images": "6",
        "ss_num_validation_images": "0",
        "ss_num_epochs": "2",
        "ss_epoch": "1",
        "ss_steps": "10",
        "ss_lr_scheduler": "constant",
        "ss_learning_rate": "2e-06",
        "ss_training_shift": "2.5",
        "ss_min_timestep": "100",
        "ss_max_timestep": "None",
        "ss_base_model_version": "medium",
        "modelspec.timestep_range": "100,1000",
        "modelspec.resolution": "64x64",
        "modelspec.title": "dog",
    }
    assert {key: said.get(key) for key in expected} == expected
    assert "AdamW" in said["ss_optimizer"]
    assert float(said["ss_training_finished_at"]) >= float(said["ss_training_started_at"])


def test_without_a_dataset_file_there_is_a_key_for_each_option_of_the_data(make):
    said = header(make())
    assert (said["ss_batch_size_per_device"], said["ss_total_batch_size"]) == ("2", "4")
    assert said["ss_resolution"] == "(64, 64)"
    assert json.loads(said["ss_dataset_dirs"]) == {"dogs": {"n_repeats": 3, "img_count": 2}}
    assert json.loads(said["ss_reg_dataset_dirs"]) == {"any": {"n_repeats": 3, "img_count": 1}}
    assert json.loads(said["ss_tag_frequency"])["dogs"] == {"a dog": 2, "red": 2}


def test_a_rate_that_the_optimizer_ignores_is_none(make):
    said = header(make("--optimizer_type=Adafactor", "--unet_lr=1e-4", "--learning_rate=3e-4"))
    assert (said["ss_learning_rate"], said["ss_unet_lr"], said["ss_text_encoder_lr"]) == ("None",) * 3
    assert said["ss_lr_scheduler"] == "adafactor:0.0003"


def test_a_run_that_goes_on_keeps_its_session(make):
    first = make()
    kept = json.loads(json.dumps(first.session))
    second = make(session=kept)
    assert second.session == first.session
    keys = ("ss_session_id", "ss_training_started_at")
    assert [header(second)[key] for key in keys] == [header(first)[key] for key in keys]
    assert make().session["session_id"] != first.session["session_id"]


def test_a_run_without_metadata_has_a_session_too(make):
    silent = make("--no_metadata", session={"session_id": 5, "training_started_at": 1.5})
    assert header(silent) == {}
    assert silent.session == {"session_id": 5, "training_started_at": 1.5}


def test_a_file_that_is_saved_before_the_hash_is_known_waits_for_it(make, caplog):
    metadata = make()
    known, metadata._hashes = metadata._hashes.result(30), Future()
    with ThreadPoolExecutor(1) as pool, caplog.at_level("INFO"):
        saved = pool.submit(header, metadata)
        while "saving waits for the hash of the model file" not in caplog.text:
            assert not saved.done()
            time.sleep(0.01)
        metadata._hashes.set_result(known)
        assert saved.result(30)["ss_new_sd_model_hash"] == known["model"].sha256


def test_a_whole_model_tells_the_same_but_for_hashes_that_are_known_when_it_is_written(make):
    metadata = make()
    of_model = metadata.for_model(step=10, epoch=1, architecture="stable-diffusion-3-medium", is_average=True)
    of_network = header(metadata, is_average=True)
    assert of_model.keys() ^ of_network.keys() == {"sshs_model_hash", "sshs_legacy_hash", HASH_KEY}
    assert of_model["modelspec.architecture"] == "stable-diffusion-3-medium" and of_model["ss_ema_weights"] == "True"
    assert of_model["modelspec.title"].startswith("Checkpoint@")
    assert make("--no_metadata").for_model(step=10, epoch=1, architecture="stable-diffusion-3-medium") == {}


def test_the_thumbnail_is_read_once_at_the_start(make, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    metadata = make(f"--metadata_thumbnail={tmp_path / 'small.png'}")
    (tmp_path / "small.png").unlink()
    assert header(metadata)["modelspec.thumbnail"].startswith("data:image/png;base64,")


def test_half_a_million_tags_make_a_readable_header(make, plan, tmp_path, caplog):
    rare = [", ".join(f"tag {number}" for number in range(start, start + 50)) for start in range(0, 500_000, 50)]
    captions = [f"common, often {number // 2}, {tags}" for number, tags in enumerate(rare)]
    path = tmp_path / "dogs" / "dogs0.png"
    records = [ImageRecord(path, f"dogs/{number}", text, SIZE, 1, 0, 0) for number, text in enumerate(captions)]
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metadata = make("--output_name=dog", plan=with_records(plan, records))
    files = []
    for step in (10, 20):
        files.append(tmp_path / f"dog-step{step}.safetensors")
        write_network(files[-1], TENSORS, header(metadata, step=step))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB

    for step, file in zip((10, 20), files, strict=True):
        assert int.from_bytes(file.read_bytes()[:8], "little") <= HEADER_LIMIT
        with safe_open(file, "pt") as opened:
            said = opened.metadata()
        tags = json.loads(said["ss_tag_frequency"])["dogs"]
        assert next(iter(tags.items())) == ("common", 10_000)
        assert {f"often {number}" for number in range(5000)} <= set(tags)
        assert said["ss_tag_frequency_cut"] == f"kept {len(tags)} of 505001 tags"
        assert said["ss_steps"] == str(step)
    complete = json.loads((tmp_path / "out" / "dog_dataset.json").read_text(encoding="utf-8"))
    assert len(complete["ss_tag_frequency"]["dogs"]) == 505_001
    assert len([line for line in caplog.messages if "too long for a file's header" in line]) == 1


def test_thousands_of_folders_and_a_huge_comment_too(make, plan, tmp_path):
    folders = [tmp_path / f"{number}_a folder with a rather long name" for number in range(5000)]
    spec = replace(plan.specs[0], subsets=tuple(SubsetSpec(image_dir=folder) for folder in folders))
    records = [
        ImageRecord(folder / "a.png", folder.name, f"tag {number}", SIZE, 1, 0, number)
        for number, folder in enumerate(folders)
    ]
    metadata = make(f"--training_comment={'long ' * 20_000}", plan=replace(with_records(plan, records), specs=(spec,)))
    write_network(tmp_path / "a.safetensors", TENSORS, header(metadata))
    assert int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") <= HEADER_LIMIT
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        said = opened.metadata()
    assert "of 5000 folders" in said["ss_datasets_cut"]
    assert said["ss_training_comment"] == "long " * 20_000
    complete = json.loads((tmp_path / "out" / "last_dataset.json").read_text(encoding="utf-8"))
    assert len(complete["ss_datasets"][0]["subsets"]) == 5000


def test_nothing_cut_no_file_beside(make, tmp_path):
    header(make())
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_costs_no_file(make, plan, tmp_path, caplog):
    (tmp_path / "out").write_text("a file where the folder should be")
    comment = f"--training_comment={'long ' * 300_000}"
    said = header(make(comment))
    assert "characters" in said["ss_training_comment_cut"]
    assert [line for line in caplog.messages if "last_dataset.json" in line]
