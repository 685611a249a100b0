"""gen_img.py --from_png on tiny models: a picture's file draws it again, and what stands against that is told."""

import hashlib
import json
import shutil

import numpy
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from gen_img import main
from library.families.sd.family import SdFamily
from networks import lora
from tests import tiny_unets

SIDE = 64
ONE_LEVEL = 1  # of 255: sums of floats may be rounded to either side
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return tiny_unets.write_sd1(tmp_path_factory.mktemp("sd1")).path


@pytest.fixture(scope="module")
def lora_file(sd1, tmp_path_factory):
    """A LoRA of the U-Net with values that are seen."""
    family = SdFamily(pretrained=sd1)
    unet = family.load_denoiser(family.inspect(), torch.float32, CPU)
    network = lora.create_network(1.0, 4, 4.0, None, None, unet, generator=torch.manual_seed(1))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_up" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    network.save_weights(path, torch.float32, {"ss_output_name": "style"})
    return path


@pytest.fixture
def drawn(sd1, tmp_path):
    """Draws one picture; gives its file."""

    def run(*more, model=sd1):
        folder = tmp_path / "first"
        before = set(folder.glob("*"))
        asked = [f"--ckpt={model}", "--prompt=a cat --d 5", f"--outdir={folder}", f"--W={SIDE}", "--steps=2"]
        height = [] if any(str(one).startswith("--H") for one in more) else [f"--H={SIDE}"]
        assert main([*asked, *height, *map(str, more)]) == 0
        (path,) = set(folder.glob("*")) - before
        return path

    return run


@pytest.fixture
def again(tmp_path):
    """Draws a picture again; gives its levels."""

    def run(path, *more):
        folder = tmp_path / f"again{len(list(tmp_path.iterdir()))}"
        assert main([f"--from_png={path}", f"--outdir={folder}", *map(str, more)]) == 0
        (found,) = folder.iterdir()
        return levels(found)

    return run


@pytest.fixture
def refused(tmp_path, capsys):
    """Draws a picture again up to an error; gives its sentence."""

    def run(path, *more):
        capsys.readouterr()
        assert main([f"--from_png={path}", f"--outdir={tmp_path}/none", *map(str, more)]) == 2
        assert not (tmp_path / "none").exists()
        return capsys.readouterr().err

    return run


def levels(path):
    return numpy.array(Image.open(path)).astype(int)


def is_same(one, other):
    return one.shape == other.shape and abs(one - other).max() <= ONE_LEVEL


def with_record(path, **changes):
    """The picture with another record, beside it; `None` takes a part away."""
    with Image.open(path) as picture:
        record = {**json.loads(picture.text["easel"]), **changes}
        chunks = PngInfo()
        chunks.add_text("easel", json.dumps(record))
        picture.save(path.with_name("changed.png"), pnginfo=chunks)
    return path.with_name("changed.png")


# All that makes a picture is in its file


def test_pictures_in_strips_and_those_of_bf16_are_drawn_again(drawn, again):
    whole = levels(drawn("--H=128", "--bf16"))
    for extra in ("--vae_slices=4", "--no_half_vae"):
        path = drawn("--H=128", "--bf16", extra)
        assert (levels(path) != whole).any()
        assert is_same(again(path), levels(path))


def test_merged_networks_are_merged_again(drawn, again, lora_file):
    live = levels(drawn("--bf16", "--network_weights", lora_file))
    for way in ("--network_merge", "--network_pre_calc"):
        path = drawn("--bf16", "--network_weights", lora_file, way)
        assert not is_same(levels(path), live)
        assert is_same(again(path), levels(path))


def test_networks_with_and_without_arguments_are_drawn_again(drawn, again, lora_file):
    weights = ",".join(["0"] * 8 + ["1"] + ["0"] * 8)
    shared = ("--network_weights", lora_file, lora_file, "--network_mul", 0.5, 1)
    path = drawn(*shared, "--network_args", ";", f"lbw={weights}")
    assert not is_same(levels(path), levels(drawn(*shared)))
    assert is_same(again(path), levels(path))


def test_sd3_is_drawn_again_with_its_encoders_and_without_a_warning(drawn, again, tiny_sd3_factory, capsys):
    model = tiny_sd3_factory(bundle=False)
    files = (f"--clip_l={model.clip_l}", f"--clip_g={model.clip_g}", f"--t5xxl={model.t5xxl}", f"--vae={model.vae}")
    path = drawn(*files, "--t5xxl_max_token_length=40", "--apply_t5_attn_mask", model=model.model)
    capsys.readouterr()
    assert is_same(again(path), levels(path))
    assert "warning" not in capsys.readouterr().err.lower()
    assert not is_same(levels(drawn(*files, model=model.model)), levels(path))


def test_a_name_that_a_line_has_asked_for_is_kept(drawn, tmp_path):
    path = drawn("--prompt=a cat --d 5 --f mine")
    for _ in range(2):
        assert main([f"--from_png={path}", f"--outdir={tmp_path}/again"]) == 0
    assert sorted(one.name for one in (tmp_path / "again").iterdir()) == ["mine.png", "mine_1.png"]


def test_a_picture_that_says_nothing_and_a_sheet_are_one_sentence(sd1, refused, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "mask.png")
    said = refused(tmp_path / "mask.png", f"--ckpt={sd1}")
    assert "does not say how it was made" in said and said.count("\n") == 1
    sizes = (f"--W={SIDE}", f"--H={SIDE}", "--steps=1", f"--outdir={tmp_path}/sheets")
    assert main([f"--ckpt={sd1}", "--prompt=a cat", "--xyz=seed=1,2", *sizes]) == 0
    (sheet,) = (tmp_path / "sheets").glob("sheet_*.png")
    said = refused(sheet)
    assert f"is a sheet of several pictures. Give one of them; {sheet.stem}.json" in said and said.count("\n") == 1


def test_one_picture_is_drawn_whatever_n_iter_says(drawn, again):
    path = drawn()
    assert is_same(again(path, "--n_iter=2"), levels(path))


def test_options_that_pictures_go_before_are_named(drawn, again, capsys):
    path = drawn()
    assert is_same(again(path, "--steps=3", "--scale=2"), levels(path))
    assert "the picture says what --steps, --scale says" in capsys.readouterr().err


# Files that have changed, or are gone


def test_a_network_that_has_changed_is_told(drawn, again, lora_file, tmp_path, capsys):
    own = shutil.copy(lora_file, tmp_path / "own.safetensors")
    path = drawn("--network_weights", own)
    assert is_same(again(path), levels(path))
    assert "have changed" not in capsys.readouterr().err
    save_file({name: tensor * 2 for name, tensor in load_file(own).items()}, own)
    again(path)
    assert capsys.readouterr().err.count(f"files have changed: {own}") == 1


def test_a_model_and_a_source_picture_that_have_changed_are_told(sd1, drawn, again, tmp_path, capsys):
    model = shutil.copytree(sd1.parent, tmp_path / "model") / sd1.name
    for level in (40, 200):
        Image.new("RGB", (SIDE, SIDE), (level, level, level)).save(tmp_path / "source.png")
        if level == 40:
            path = drawn(f"--image_path={tmp_path}/source.png", model=model)
    save_file(load_file(model), model, {"changed": "yes"})
    again(path)
    assert f"files have changed: {model}, {tmp_path}/source.png." in capsys.readouterr().err
    again(path, f"--ckpt={sd1}")
    assert f"files have changed: {tmp_path}/source.png." in capsys.readouterr().err


def test_a_file_that_is_gone_is_one_sentence_with_its_option(drawn, again, refused, sd1, tmp_path):
    for name in ("source", "mask"):
        Image.new("RGB", (SIDE, SIDE), "white").save(tmp_path / f"{name}.png")
    model = shutil.copytree(sd1.parent, tmp_path / "model") / sd1.name
    given = {"mask_path": tmp_path / "mask.png", "image_path": tmp_path / "source.png"}
    path = drawn(*(f"--{name}={file}" for name, file in given.items()), model=model)
    for name, file in (*given.items(), ("ckpt", model)):
        file.rename(f"{file}.away")
        assert f"{path}: {file}, which drew the picture, is not there. Name its place by --{name}." in refused(path)
    moved = (f"--{name}={file}.away" for name, file in given.items())
    assert is_same(again(path, f"--ckpt={sd1}", *moved), levels(path))


def test_a_network_that_has_moved_keeps_its_strength_and_another_one_does_not(drawn, again, lora_file, tmp_path):
    own, moved, other = (tmp_path / f"{name}.safetensors" for name in ("own", "moved", "other"))
    shutil.copy(lora_file, own)
    save_file({name: tensor * 2 for name, tensor in load_file(own).items()}, other)
    path = drawn("--network_weights", own, "--network_mul", 0.3)
    own.rename(moved)
    assert is_same(again(path, "--network_weights", moved), levels(path))
    assert is_same(again(path, "--network_weights", other), levels(drawn("--network_weights", other)))


def test_a_network_has_the_hash_by_which_others_know_it(drawn, lora_file, tmp_path):
    save_file(load_file(lora_file), tmp_path / "bare.safetensors")
    content = (tmp_path / "bare.safetensors").read_bytes()
    hashed = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()[:12]
    text = Image.open(drawn("--network_weights", tmp_path / "bare.safetensors")).text["parameters"]
    assert f'Lora hashes: "bare: {hashed}"' in text


# Records of other tools, and broken ones


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": "x"}, 'steps is "x"'),
        ({"steps": 0}, "--steps"),
        ({"seed": "q"}, "seed is"),
        ({"seed": -1}, "--seed"),
        ({"prompt": None}, "prompt is null"),
        ({"clip_skip": "a"}, "clip_skip is"),
        ({"clip_skip": 0}, "--clip_skip"),
        ({"width": -5}, "--W"),
        ({"width": 8.5}, "width is"),
        ({"scale": float("nan")}, "scale is NaN"),
        ({"strength": 2}, "--strength"),
        ({"sampler": "best"}, "--sampler"),
        ({"precision": "int4"}, "int4"),
        ({"family": "sd9"}, "sd9"),
        ({"extras": [1]}, "extras is"),
        ({"extras": {"ds_depth_1": "x"}}, "--ds_depth_1"),
        ({"extras": {"outdir": "x"}}, "does not know: outdir"),
        ({"settings": {"vae_slices": 0}}, "--vae_slices"),
        ({"settings": {"allow_pickle": True}}, "does not know: allow_pickle"),
        ({"later": 1}, "later"),
        ({"networks": [{"path": "a", "name": "a", "hash": "", "multiplier": "x"}]}, "multiplier is"),
        ({"networks": [{"path": "a"}]}, "no record of a picture"),
        ({"sizes": {"original_width": 1}}, "no record of a picture"),
    ],
)
def test_records_that_cannot_be_are_one_sentence(refused, blank, changes, said):
    path = with_record(blank, **changes)
    told = refused(path)
    assert f"--from_png: {path}: " in told and said in told and "Traceback" not in told


@pytest.fixture(scope="module")
def blank(sd1, tmp_path_factory):
    """A picture drawn by the model."""
    folder = tmp_path_factory.mktemp("blank")
    sizes = [f"--W={SIDE}", f"--H={SIDE}", "--steps=1"]
    assert main([f"--ckpt={sd1}", "--prompt=a cat --d 5 --f blank", f"--outdir={folder}", *sizes]) == 0
    return folder / "blank.png"


def test_no_program_is_run_because_a_picture_names_it(blank, lora_file, refused, tmp_path):
    (tmp_path / "up.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    extras = {"highres_fix_scale": 0.5, "highres_fix_upscaler": str(tmp_path / "up.py")}
    assert "Give --highres_fix_upscaler too, if you trust it." in refused(with_record(blank, extras=extras))
    network = {"path": str(lora_file), "name": "a", "hash": "", "multiplier": 1.0, "module": "antigravity"}
    assert "the network module antigravity, a program" in refused(with_record(blank, networks=[network]))
    assert not (tmp_path / "ran").exists()


def test_what_is_not_taken_over_from_other_programs_is_named(sd1, again, tmp_path, capsys):
    text = (
        "a cat <lora:style:0.8>\nSteps: 2, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 64x64, Clip skip: 2"
    )
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=chunks)
    again(tmp_path / "theirs.png", f"--ckpt={sd1}")
    told = capsys.readouterr().err
    assert "Not taken over: <lora:style:0.8>, Clip skip: 2, Schedule type: Karras." in told
