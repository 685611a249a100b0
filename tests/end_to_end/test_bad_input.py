"""Bad input as users give it: an exit code, one error that names the file and the way out, no traceback.

The model of these runs has the header of a real one, and every number in it is NaN. Reading a weight would end with a
message about that, so each test also shows that its fault is found before.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import sd3_train_network
from library.log import LOGGER_NAME
from library.tensorfile import read_header

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "examples" / "pictures"
NAN_FOUND = "has NaN or infinite values"
DATASET = """\
[general]
caption_extension = ".txt"
enable_bucket = true

[[datasets]]
resolution = 64
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'PICTURES'
"""

UNCAPTIONED = ("enable_bucket = true", 'enable_bucket = true\nclass_tokens = "shape"')

Shapes = Mapping[str, tuple[int, ...]]
SDXL = {
    "model.diffusion_model.input_blocks.0.0.weight": (0, 4, 3, 3),
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (0, 2048),
    "first_stage_model.decoder.conv_in.weight": (0, 4, 3, 3),
}
SD1 = {
    "model.diffusion_model.input_blocks.0.0.weight": (0, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (0, 768),
}
FACTORS = {"lora_down.weight": (4, 0), "lora_up.weight": (0, 4)}
SD3_LORA = {
    f"lora_unet_joint_blocks_0_x_block_attn_{layer}.{factor}": FACTORS[factor]
    for layer in ("qkv", "proj")
    for factor in FACTORS
}
CLIP_LORA = {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.{factor}": FACTORS[factor] for factor in FACTORS}
SDXL_LORA = {f"lora_unet_input_blocks_4_1_proj_in.{factor}": FACTORS[factor] for factor in FACTORS}
SDXL_VAE = {"decoder.conv_in.weight": (0, 4, 3, 3), "encoder.conv_in.weight": (0, 3, 3, 3)}
CLIP_G = {"text_model.embeddings.token_embedding.weight": (0, 48), "text_projection.weight": (0, 48)}
T5 = {"encoder.block.0.layer.0.SelfAttention.q.weight": (0, 96)}
NO_RANKS = tuple(f"{half}_{layer}_dim=0" for half in ("context", "x") for layer in ("attn", "mlp", "mod"))
# what SD3_LORA was trained with
X_ATTENTION = ("--network_args", "train_block_indices=0", *(rank for rank in NO_RANKS if rank != "x_attn_dim=0"))


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a run.

    Attributes:
        code: The exit code.
        shown: Everything on stderr.
    """

    code: int
    shown: str

    @property
    def error(self) -> str:
        """The error with its list, if it has one. There is one, it comes last, and no traceback is around it."""
        found = re.findall(r"^error: .*$", self.shown, re.MULTILINE)
        assert len(found) == 1 and "Traceback" not in self.shown, self.shown
        return self.shown[self.shown.index(found[0]) :].rstrip()

    def has_read_weights(self) -> bool:
        """Whether the run got as far as the numbers of the model."""
        return NAN_FOUND in self.shown


class Attempt:
    """Files and runs of one test."""

    def __init__(self, folder: Path, model: Path, run: Callable[[list[str]], Outcome]) -> None:
        self.folder, self.model, self._run = folder, model, run

    def file(self, name: str, content: bytes | str) -> Path:
        """A file in the test's folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def weights(self, name: str, shapes: Shapes) -> Path:
        """A safetensors file of fp16 tensors, all NaN."""
        table, end = {}, 0
        for tensor, shape in shapes.items():
            start, end = end, end + 2 * math.prod(shape)
            table[tensor] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
        header = json.dumps(table).encode()
        return self.file(name, struct.pack("<Q", len(header)) + header + b"\xff" * end)

    def network_weights(self, shapes: Shapes) -> str:
        """--network_weights with a file of these tensors."""
        return f"--network_weights={self.weights('lora.safetensors', shapes)}"

    def empty_folder(self) -> Path:
        """A folder without anything in it."""
        folder = self.folder / "empty"
        folder.mkdir()
        return folder

    def model_without(self, part: str) -> Path:
        """The model in a file of its own, without the tensors that have `part` in their names."""
        shapes = read_header(self.model).shapes()
        return self.weights("incomplete.safetensors", {name: shapes[name] for name in shapes if part not in name})

    def pictures(self, **files: bytes | str) -> Path:
        """A folder with a good picture and these files; _ in a name stands for its dot."""
        folder = self.folder / "pictures"
        folder.mkdir()
        for name in ("red_circle.png", "red_circle.txt"):
            shutil.copy(PICTURES / name, folder)
        for name, content in files.items():
            self.file(f"pictures/{name.replace('_', '.')}", content)
        return folder

    def dataset(self, *changes: tuple[str, str], pictures: Path = PICTURES) -> str:
        """--dataset_config with a good file, after replacing texts in it."""
        text = DATASET
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return f"--dataset_config={self.file('data.toml', text.replace('PICTURES', str(pictures)))}"

    def subset_with(self, *lines: str) -> str:
        """--dataset_config with a good file and further lines at its end."""
        return self.dataset(("image_dir", "\n".join((*lines, "image_dir"))))

    def arguments(self, *flags: str) -> list[str]:
        """A command line that is right but for `flags`, which go before their likes."""
        usual = [
            f"--pretrained_model_name_or_path={self.model}",
            f"--output_dir={self.folder / 'out'}",
            *("--network_module=networks.lora", "--max_train_steps=1", "--seed=1", "--max_data_loader_n_workers=0"),
        ]
        if not any(flag.startswith("--dataset_config") for flag in flags):
            usual.append(self.dataset())
        given = {flag.partition("=")[0] for flag in flags}
        return [flag for flag in usual if flag.partition("=")[0] not in given] + list(flags)

    def run(self, *flags: str) -> Outcome:
        """Run in this process."""
        return self._run(self.arguments(*flags))


@pytest.fixture(scope="module")
def nan_model(tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its tokenizers; every number is NaN."""
    folder = tmp_path_factory.mktemp("nan_model")
    for tokenizer in tiny_sd3.parent.glob("tokenizer*"):
        shutil.copytree(tokenizer, folder / tokenizer.name)
    content = tiny_sd3.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    path = folder / "sd3.safetensors"
    path.write_bytes(content[:start] + b"\xff" * (len(content) - start))
    return path


@pytest.fixture
def attempt(tmp_path: Path, nan_model: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Attempt]:
    """Bad input for runs in this process."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.handlers[:], logger.propagate, logger.level

    def run(arguments: list[str]) -> Outcome:
        code = sd3_train_network.main(arguments)
        return Outcome(code, capsys.readouterr().err)

    yield Attempt(tmp_path, nan_model, run)
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey PNG with these compressed pixels, right or wrong."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


GOOD_PNG = (PICTURES / "red_circle.png").read_bytes()
GOOD_JPEG = (PICTURES / "white_star.jpg").read_bytes()
BROKEN_INSIDE = png(64, 64, b"no deflate stream")
HUGE = png(20000, 10000, zlib.compress(b"\0"))

Case = tuple[Callable[[Attempt], "str | Sequence[str]"], tuple[str, ...]]


def model(path: Path) -> str:
    return f"--pretrained_model_name_or_path={path}"


MODEL_FILES: dict[str, Case] = {
    "missing": (lambda a: model(a.folder / "no/sd3.safetensors"), ("sd3.safetensors does not exist", "nearest folder")),
    "hub_name": (lambda a: model(Path("someone/sd3")), ("someone/sd3 does not exist", "not downloaded", "give a file")),
    "empty_text": (lambda a: "--pretrained_model_name_or_path=", ("--pretrained_model_name_or_path is needed",)),
    "folder": (lambda a: model(PICTURES), (str(PICTURES), "Give")),
    "sdxl": (lambda a: model(a.weights("xl.safetensors", SDXL)), ("an SDXL model", "sdxl_train_network.py")),
    "sd1": (lambda a: model(a.weights("sd1.safetensors", SD1)), ("Stable Diffusion 1.x", "with train_network.py")),
    "lora": (lambda a: model(a.weights("lora.safetensors", SD3_LORA)), ("is a LoRA", "--network_weights")),
    "vae": (lambda a: model(a.weights("vae.safetensors", SDXL_VAE)), ("is a VAE alone", "--vae")),
    "truncated": (
        lambda a: model(a.file("cut.safetensors", a.model.read_bytes()[:-1000])),
        ("cut.safetensors is truncated", "Download or copy the file again"),
    ),
    "truncated_header": (
        lambda a: model(a.file("cut.safetensors", a.model.read_bytes()[:400])),
        ("cut.safetensors is truncated: 400", "again"),
    ),
    "html": (
        lambda a: model(a.file("page.safetensors", "<!DOCTYPE html><html><body>Please log in</body></html>")),
        ("page.safetensors is a web page", "login"),
    ),
    "empty": (lambda a: model(a.file("empty.safetensors", "")), ("empty.safetensors is empty", "Download")),
    "git_lfs": (
        lambda a: model(a.file("p.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")),
        ("git-lfs pointer", "git lfs pull"),
    ),
    "pickle": (lambda a: model(a.file("old.ckpt", b"PK\x03\x04" + bytes(99))), ("is a pickle", "Convert it")),
    "without_vae": (lambda a: model(a.model_without("first_stage_model.")), ("has no VAE inside", "--vae")),
    "without_clip": (
        lambda a: model(a.model_without("clip_")),
        ("no CLIP-L text encoder, no CLIP-G text encoder", "--clip_l and --clip_g"),
    ),
    "half_an_mmdit": (
        lambda a: model(a.model_without("joint_blocks.1.x_block.mlp")),
        ("incomplete.safetensors", "4 missing", "joint_blocks.1.x_block.mlp.fc1.weight", "again"),
    ),
    "sdxl_vae": (
        lambda a: f"--vae={a.weights('sdxl_vae.safetensors', SDXL_VAE)}",
        ("--vae: ", "sdxl_vae.safetensors has the VAE of SDXL", "Give an SD3 VAE"),
    ),
    "vae_of_a_whole_sdxl": (lambda a: f"--vae={a.weights('xl.safetensors', SDXL)}", ("has the VAE of SDXL,", "Give")),
    "clip_g_as_clip_l": (
        lambda a: f"--clip_l={a.weights('clip_g.safetensors', CLIP_G)}",
        ("clip_g.safetensors has a CLIP of width 48", "Give the right file as --clip_l"),
    ),
    "t5_as_clip_l": (
        lambda a: f"--clip_l={a.weights('t5.safetensors', T5)}",
        ("t5.safetensors has no CLIP-L text encoder", "T5", "Give"),
    ),
    "several": (
        lambda a: [f"--vae={a.folder / 'v.st'}", f"--clip_l={a.folder / 'l.st'}", f"--t5xxl={a.file('t.st', '')}"],
        ("--vae: ", "v.st does not exist", "--clip_l: ", "l.st does not exist", "--t5xxl: ", "t.st is empty"),
    ),
    "no_tokenizers": (
        lambda a: model(a.file("alone/sd3.safetensors", a.model.read_bytes())),
        ("No tokenizer for clip_l, clip_g, t5xxl", "beside", "make_clip_tokenizer", "T5's is", "--tokenizer_dir"),
    ),
    "tokenizer_dir_without_any": (lambda a: f"--tokenizer_dir={PICTURES}", (f"--tokenizer_dir: neither {PICTURES}",)),
}

DATA: dict[str, Case] = {
    "no_dataset_file": (lambda a: f"--dataset_config={a.folder / 'd.toml'}", ("d.toml", "does not exist")),
    "folder_as_dataset_file": (lambda a: f"--dataset_config={PICTURES}", ("is a folder", "image_dir")),
    "no_folder": (
        lambda a: a.dataset(pictures=a.folder / "a" / "b"),
        ("data.toml: image_dir ", "does not exist; the nearest folder that does is"),
    ),
    "empty_folder": (
        lambda a: a.dataset(pictures=a.empty_folder()),
        ("empty has no images, it is empty; put pictures into it",),
    ),
    "no_pictures": (
        lambda a: a.dataset(pictures=a.file("texts/a.txt", "x").parent),
        ("texts has no images; its files are 1 .txt",),
    ),
    "pictures_one_level_down": (
        lambda a: a.dataset(pictures=a.file("top/sub/a.png", GOOD_PNG).parent.parent),
        ("top has no images, only folders (sub)", "subset of its own"),
    ),
    "bad_pictures": (
        lambda a: a.dataset(
            UNCAPTIONED,
            pictures=a.pictures(
                zero_png="",
                page_jpg="<html>404</html>",
                cut_png=GOOD_PNG[:-30],
                cut_jpg=GOOD_JPEG[:-300],
                noise_png=bytes(range(200)),
            ),
        ),
        (
            *("data.toml: 5 problems in the data:", "zero.png is empty (0 bytes)", "page.jpg is not an image"),
            *("cut.png is cut off", "cut.jpg is cut off", "noise.png is damaged", "replace or remove it"),
        ),
    ),
    "broken_and_broken_behind_the_header": (
        lambda a: a.dataset(UNCAPTIONED, pictures=a.pictures(a_png=GOOD_PNG[:-30], b_png=BROKEN_INSIDE)),
        ("2 problems in the data:", "a.png is cut off", "b.png cannot be decoded"),
    ),
    "broken_behind_the_header": (
        lambda a: a.dataset(UNCAPTIONED, pictures=a.pictures(a_png=BROKEN_INSIDE, b_png=BROKEN_INSIDE)),
        ("2 problems in the data:", "a.png cannot be decoded", "b.png cannot be decoded", "remove the picture"),
    ),
    "broken_behind_the_header_with_cache": (
        lambda a: [a.dataset(UNCAPTIONED, pictures=a.pictures(a_png=BROKEN_INSIDE)), "--cache_latents"],
        ("data.toml: ", "a.png cannot be decoded", "remove the picture"),
    ),
    "huge_picture": (
        lambda a: [a.dataset(UNCAPTIONED, pictures=a.pictures(huge_png=HUGE)), "--max_image_pixels=100000000"],
        ("huge.png", "20000x10000", "max_image_pixels"),
    ),
    "no_captions": (
        lambda a: a.dataset(pictures=a.pictures(a_png=GOOD_PNG, b_png=GOOD_PNG)),
        ("2 problems", "a.png has no caption file a.txt", "b.png has no caption", 'missing_caption = "allow"'),
    ),
    "picture_larger_than_the_model_can_place": (
        lambda a: a.dataset(
            ("resolution = 64", "resolution = 512"), ("max_bucket_reso = 128", "max_bucket_reso = 512")
        ),
        ("data.toml: ", "goes up to 384 a side", "Lower resolution"),
    ),
    "empty_captions": (
        lambda a: a.dataset(pictures=a.pictures(a_png=GOOD_PNG, a_txt="", b_png=GOOD_PNG, b_txt="\n \n")),
        ("2 problems", "a.txt has no text", "b.txt has no text", "write a caption"),
    ),
    "captions_not_utf8": (
        lambda a: a.dataset(pictures=a.pictures(a_png=GOOD_PNG, a_txt=b"caf\xe9", b_png=GOOD_PNG, b_txt=b"\xe4")),
        ("a.txt is not UTF-8 (byte 0xe9 at 3)", "b.txt is not UTF-8", "save it again as UTF-8", "caption_encoding"),
    ),
    "captions_of_another_extension": (
        lambda a: a.dataset(('".txt"', '".caption"')),
        ("has no .caption files but .txt files", 'set caption_extension = ".txt"'),
    ),
    "pictures_that_share_a_caption": (
        lambda a: a.dataset(pictures=a.pictures(a_png=GOOD_PNG, a_jpg=GOOD_JPEG, a_txt="x")),
        ("a.jpg shares the caption file a.txt with a.png", "a.png shares", "rename one"),
    ),
    "toml_typos": (
        lambda a: a.dataset(
            ("enable_bucket =", "enable_bukcet ="), ("batch_size", "batchsize"), ("image_dir", "imagedir")
        ),
        (
            "line 3, [general]: unknown key 'enable_bukcet', the nearest is 'enable_bucket'",
            "'batch_size'",
            "'image_dir'",
        ),
    ),
    "toml_table_name": (
        lambda a: a.dataset(("[[datasets]]", "[[dataset]]")),
        ("'dataset', the nearest is 'datasets'",),
    ),
    "toml_wrong_type": (
        lambda a: a.dataset(("batch_size = 2", 'batch_size = "2"')),
        ("line 10", "batch_size must be a whole number, got '2'; remove the quotes"),
    ),
    "batch_size_0": (
        lambda a: a.dataset(("batch_size = 2", "batch_size = 0")),
        ("data.toml: line 10, dataset 1: batch_size must be at least 1, got 0",),
    ),
    "windows_path": (
        lambda a: a.dataset(("'PICTURES'", r'"C:\Users\me\pictures"')),
        ("data.toml: line 13", "backslash", "use '...' or /"),
    ),
    "windows_path_of_valid_escapes": (
        lambda a: a.dataset(("'PICTURES'", r'"C:\train\new"')),
        (r"image_dir holds a control character", "single quotes"),
    ),
    "empty_image_dir": (lambda a: a.dataset(("PICTURES", "")), ("line 13", "image_dir must not be empty")),
    "key_twice": (
        lambda a: a.subset_with("num_repeats = 1", "num_repeats = 2"),
        ("data.toml: ", "twice", "Remove one"),
    ),
    "not_toml": (lambda a: a.dataset(("[general]", "[general")), ("data.toml: line 1",)),
    "not_utf8": (
        lambda a: f"--dataset_config={a.file('u.toml', DATASET.encode('utf-16'))}",
        ("u.toml: not a UTF-8 file", "Save it again as UTF-8"),
    ),
    "forms_that_exclude_each_other": (
        lambda a: a.subset_with("is_reg = true", "metadata_file = 'm.json'", "conditioning_data_dir = 'm'"),
        ("4 faults", "is_reg cannot be used with metadata_file", "conditioning_data_dir needs --masked_loss"),
    ),
    "shuffled_captions_with_cache": (
        lambda a: [
            "--cache_text_encoder_outputs",
            "--network_train_unet_only",
            a.subset_with("shuffle_caption = true"),
        ],
        ("--cache_text_encoder_outputs cannot be used with shuffle_caption in", "data.toml"),
    ),
    "random_crop_with_cache": (
        lambda a: ["--cache_latents", a.subset_with("random_crop = true")],
        ("--cache_latents cannot be used with random_crop in", "data.toml"),
    ),
}

OPTIONS: dict[str, Case] = {
    "flags": (
        lambda a: ["--lerning_rate=1", "--cache_latent"],
        ("--lerning_rate is not an option", "mean --learning_rate?", "mean --cache_latents?"),
    ),
    "types": (
        lambda a: ["--network_dim=four", "--learning_rate=fast"],
        ("--network_dim needs a whole number, got 'four'", "--learning_rate needs a number, got 'fast'"),
    ),
    "batch_size_0": (lambda a: "--train_batch_size=0", ("--train_batch_size must be at least 1, got 0",)),
    "seed": (lambda a: "--seed=-1", ("--seed must be between 0 and 4294967295, got -1",)),
    "choice": (lambda a: "--mixed_precision=bf61", ("--mixed_precision needs one of no, fp16, bf16, got 'bf61'",)),
    "pasted_together": (
        lambda a: model(Path("sd3.safetensors--save_precision=fp16")),
        ("a space is missing", "--pretrained_model_name_or_path=sd3.safetensors and --save_precision=fp16"),
    ),
    "config_file_missing": (lambda a: f"--config_file={a.folder / 'c'}", ("c.toml does not exist",)),
    "config_file_key": (
        lambda a: f"--config_file={a.file('c.toml', 'learning_rat = 1e-3')}",
        ("c.toml, line 1: unknown key learning_rat", "mean learning_rate?"),
    ),
    "config_file_type": (
        lambda a: f"--config_file={a.file('c.toml', 'network_dim = true')}",
        ("c.toml, line 1: network_dim needs a whole number, got true",),
    ),
    "of_a_later_version": (
        lambda a: ["--dataset_class=a.B", "--xformers", "--resume=state"],
        ("--dataset_class: not available yet", "--xformers: not available yet", "--resume: not available yet"),
    ),
    "optimizer": (lambda a: "--optimizer_type=AdamW9bit", ("unknown optimizer", "Did you mean AdamW8bit?")),
    "optimizer_args": (
        lambda a: ["--optimizer_args", "weight_decai=0.1"],
        ("AdamW has no argument weight_decai", "mean weight_decay?"),
    ),
    "optimizer_args_value": (lambda a: ["--optimizer_args", "betas=3"], ("AdamW does not accept betas=3",)),
    "optimizer_args_form": (
        lambda a: ["--optimizer_args", "betas"],
        ("--optimizer_args takes", "key=value, got 'betas'"),
    ),
    "scheduler": (lambda a: "--lr_scheduler=cosin", ("--lr_scheduler cosin: unknown", "mean cosine?")),
    "prompts_missing": (
        lambda a: ["--sample_at_first", f"--sample_prompts={a.folder / 'p.txt'}"],
        ("--sample_prompts: ", "p.txt does not exist"),
    ),
    "prompts_empty": (lambda a: ["--sample_at_first", f"--sample_prompts={a.file('p.txt', '')}"], ("has no prompts",)),
    "prompts_kind": (
        lambda a: ["--sample_at_first", f"--sample_prompts={a.file('p.md', 'a cat')}"],
        ("p.md ends in '.md'", ".txt"),
    ),
    "prompts_larger_than_the_model_can_place": (
        lambda a: ["--sample_at_first", f"--sample_prompts={a.file('p.txt', 'a cat --w 1024 --h 1024')}"],
        ("--sample_prompts: prompt 1 asks for 1024x1024", "goes up to 384"),
    ),
    "nothing_trains": (lambda a: ["--network_train_unet_only", "--unet_lr=0"], ("leave nothing to train", "above 0")),
}

NETWORK: dict[str, Case] = {
    "unknown": (
        lambda a: ["--network_args", "x_attn_dimm=2", "wrong=1"],
        ("x_attn_dimm is not an argument of this network (did you mean x_attn_dim?)", "wrong is not an argument"),
    ),
    "form": (lambda a: ["--network_args", "x_attn_dim"], ("--network_args takes", "key=value, got 'x_attn_dim'")),
    "blocks": (
        lambda a: ["--network_args", "train_block_indices=1,2,6-8"],
        ("train_block_indices=1,2,6-8: this model has no block 2; its blocks are 0 to 1",),
    ),
    "embedders": (lambda a: ["--network_args", "emb_dims=[2,3,4]"], ("emb_dims=[2,3,4]: must be six ranks",)),
    "no_ranks": (
        lambda a: ["--network_train_unet_only", "--network_args", *NO_RANKS],
        ("leave 0 modules to train", "0 to 1"),
    ),
    "no_blocks": (
        lambda a: ["--network_train_unet_only", "--network_args", "train_block_indices=none"],
        ("leave 0 modules to train", "Valid block indices are 0 to 1"),
    ),
    "values": (
        lambda a: ["--network_args", "x_attn_dim=big", "split_qkv=maybe"],
        ("x_attn_dim=big: must be a rank", "split_qkv=maybe: must be True or False"),
    ),
    "t5_trained_and_cached": (
        lambda a: ["--cache_text_encoder_outputs", "--network_args", "train_t5xxl=True"],
        ("train_t5xxl=True cannot be used with --cache_text_encoder_outputs",),
    ),
    "module": (lambda a: "--network_module=networks.lorra", ("networks.lorra: cannot", "Did you mean networks.lora?")),
    "module_of_something_else": (lambda a: "--network_module=json", ("json: this module makes no networks",)),
    "weights_missing": (
        lambda a: f"--network_weights={a.folder / 'l.safetensors'}",
        ("--network_weights: ", "l.safetensors does not exist"),
    ),
    "weights_of_another_model": (
        lambda a: a.network_weights(SDXL_LORA),
        ("lora.safetensors is a LoRA for SDXL, the model is SD3", "Give a LoRA"),
    ),
    "weights_of_another_model_with_their_ranks": (
        lambda a: ["--dim_from_weights", a.network_weights(SDXL_LORA)],
        ("lora.safetensors is a LoRA for SDXL",),
    ),
    "weights_of_another_rank": (
        lambda a: [*X_ATTENTION, "--network_train_unet_only", "--network_dim=8", a.network_weights(SD3_LORA)],
        (
            *("lora.safetensors does not fit in 2 modules", "lora_unet_joint_blocks_0_x_block_attn_qkv"),
            *("has rank 4 in the file and 8 here", "--dim_from_weights"),
        ),
    ),
    "weights_without_text_encoders": (
        lambda a: [*X_ATTENTION, "--network_dim=4", a.network_weights(SD3_LORA)],
        ("lora.safetensors has no modules for text encoders", "Add --network_train_unet_only"),
    ),
    "weights_with_text_encoders": (
        lambda a: [*X_ATTENTION, "--network_train_unet_only", a.network_weights({**SD3_LORA, **CLIP_LORA})],
        ("lora.safetensors has modules for text encoders", "--network_train_unet_only leaves out"),
    ),
    "weights_of_another_choice": (
        lambda a: ["--network_train_unet_only", a.network_weights(SD3_LORA)],
        ("lora.safetensors is a LoRA for SD3", "modules of the network are not in it", "same --network_args"),
    ),
    "weights_are_a_model": (lambda a: f"--network_weights={a.model}", ("is a whole checkpoint", "Give a LoRA")),
    "base_weights_of_another_model": (
        lambda a: ["--base_weights", str(a.weights("xl.safetensors", SDXL_LORA))],
        ("--base_weights ", "xl.safetensors is a LoRA for SDXL"),
    ),
}


def check(attempt: Attempt, case: Case) -> None:
    make_flags, words = case
    flags = make_flags(attempt)
    outcome = attempt.run(*([flags] if isinstance(flags, str) else flags))
    assert outcome.code == 2, outcome.shown
    assert not outcome.has_read_weights()
    for word in words:
        assert word in outcome.error


@pytest.mark.parametrize("case", MODEL_FILES.values(), ids=MODEL_FILES)
def test_model_file(case, attempt):
    check(attempt, case)


@pytest.mark.parametrize("case", DATA.values(), ids=DATA)
def test_data(case, attempt):
    check(attempt, case)


@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
def test_option(case, attempt):
    check(attempt, case)


@pytest.mark.parametrize("case", NETWORK.values(), ids=NETWORK)
def test_network(case, attempt):
    check(attempt, case)


def test_a_model_with_nan_weights_is_named(attempt):
    """The other tests rest on this: with nothing else wrong, the weights are what ends the run."""
    outcome = attempt.run()
    assert (outcome.code, outcome.has_read_weights()) == (2, True)
    assert str(attempt.model) in outcome.error


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_dir_that_cannot_be_written_gives_5(place, attempt):
    attempt.file("file", "")
    outcome = attempt.run(f"--output_dir={attempt.folder / place}")
    assert outcome.code == 5 and not outcome.has_read_weights()
    assert f"--output_dir: {attempt.folder / place} cannot be written" in outcome.error
    assert "Choose another folder" in outcome.error


def test_a_launch_that_got_fewer_processes_gives_3(attempt, monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    outcome = attempt.run()
    assert outcome.code == 3
    assert "asks for several processes" in outcome.error and "torchrun" in outcome.error


def test_options_without_meaning_for_sd3_are_one_warning(attempt):
    outcome = attempt.run("--v2", "--clip_skip=2", "--min_snr_gamma=5", model(attempt.folder / "none"))
    (warning,) = re.findall("^WARNING.*", outcome.shown, re.MULTILINE)
    assert all(flag in warning for flag in ("--v2", "--clip_skip", "--min_snr_gamma"))


def test_blocks_to_swap_above_the_number_of_blocks_means_all(attempt):
    outcome = attempt.run("--blocks_to_swap=32", "--optimizer_type=none")
    told = [line for line in outcome.shown.splitlines() if "--blocks_to_swap" in line]
    assert "the model has 2 blocks, so all of them are meant" in told[0]
    assert not outcome.has_read_weights()


def test_empty_texts_are_not_given(attempt):
    flags = [f"--{name}=" for name in ("vae", "clip_l", "clip_g", "t5xxl", "network_weights", "sample_prompts")]
    assert attempt.run(*flags).has_read_weights()


def test_pictures_without_caption_and_class_tokens_are_counted(attempt):
    dataset = attempt.dataset(pictures=attempt.pictures(a_png=GOOD_PNG))
    outcome = attempt.run(dataset, "--missing_caption=allow")
    assert outcome.has_read_weights()
    assert "an empty caption: 1 (a.png)" in outcome.shown


def test_debug_shows_where_an_error_comes_from(attempt):
    outcome = attempt.run("--debug", model(attempt.folder / "none.safetensors"))
    assert outcome.code == 2
    assert "Traceback" in outcome.shown and "inspect_files" in outcome.shown
    assert outcome.shown.splitlines()[-1].startswith("error: --pretrained_model_name_or_path: ")


# Processes of their own


def start(arguments: list[str], *command: str, **options: object) -> Outcome:
    done = subprocess.run(
        [sys.executable, *(command or ("sd3_train_network.py",)), *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
        **options,  # type: ignore[call-overload]
    )
    return Outcome(done.returncode, done.stderr)


WITHOUT_TORCH = """
import sys
import sd3_train_network
code = sd3_train_network.main()
heavy = {"torch", "numpy", "transformers", "diffusers", "accelerate", "safetensors"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else code)
"""


@pytest.mark.parametrize(
    "case", [DATA["toml_typos"], DATA["no_folder"], MODEL_FILES["sdxl"], MODEL_FILES["truncated"]]
)
def test_faults_of_data_and_models_are_told_before_torch_is_loaded(case, attempt):
    make_flags, words = case
    outcome = start(attempt.arguments(str(make_flags(attempt))), "-c", WITHOUT_TORCH)
    assert outcome.code == 2, outcome.shown
    assert all(word in outcome.error for word in words)


def test_the_script_ends_with_the_exit_code(attempt):
    attempt.file("file", "")
    assert start(attempt.arguments(f"--output_dir={attempt.folder / 'file'}")).code == 5
    assert start(attempt.arguments("--lerning_rate=1")).code == 2


def keep_to_permissions() -> None:
    """Take from root what lets it write into any folder, as the tests of others run as root."""
    drop_bounding_capability, dac_override = 24, 1
    ctypes.CDLL(None).prctl(drop_bounding_capability, dac_override, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="folders are made read-only in another way")
@pytest.mark.parametrize(
    "flags", [["--cache_latents_to_disk"], ["--cache_text_encoder_outputs_to_disk", "--network_train_unet_only"]]
)
def test_disk_caches_of_a_read_only_folder_give_5_before_weights_are_read(flags, attempt):
    folder = attempt.pictures()
    folder.chmod(0o555)
    arguments = attempt.arguments(attempt.dataset(pictures=folder), *flags)
    outcome = start(arguments, preexec_fn=keep_to_permissions)
    folder.chmod(0o755)
    assert outcome.code == 5 and not outcome.has_read_weights(), outcome.shown
    assert str(folder) in outcome.error and "cache files cannot be written there" in outcome.error
    assert "--cache_dir" in outcome.error
    assert "_to_disk" in outcome.error
    assert sorted(os.listdir(folder)) == ["red_circle.png", "red_circle.txt"]
