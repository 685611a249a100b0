"""Every command and Python example of the README and the guides runs as it is printed.

The blocks of a page run one after another in one folder that has the scripts of this repository, a tiny model under
the names that the pages use, and one picture. Comments above a block say more:

    <!-- not run: reason -->      the block is left out
    <!-- makes: a, b/*.png -->    files that are there afterwards and were not before
    <!-- exit code: 2 -->         what the command ends with, if it is not 0
    <!-- printed -->              the block is among what the command before it prints
    <!-- file: name -->           the block is the content of a file that commands below read
    <!-- in tests: --a=1 --b=2 --> values that options of the command have here, so that it takes seconds; in a Python
                                   example, of arguments: <!-- in tests: width=64 -->; in a file, of keys (a=1)
                                   and of options in its lines (--w=64)
    <!-- added in tests: --a=1 --> words that every command of the block has here too: behind it, or for its ...
    <!-- script -->                the block is a script of the shell, and runs as one

The first command of each script starts as it is printed, and so does what starts several processes or ends with an
error; on the pages of U-Nets only what ends with an error does, on those about preparing pictures and on pages that
have their files made by a module of tests/page_files (`make(folder, models)`) nothing. The others are run in this
process, which saves them the start of Python and torch; their launcher only reads what is meant for it. So does what
only plans here (`--dry_run`), be it for several processes. What is left out needs what no test may need: `LEFT_OUT`.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
GUIDE = ROOT / "docs" / "sd3_train_network.md"
UNET_PAGES = ("train_network.md", "sdxl.md")
PREPARING_PAGES = ("photos_to_lora.md", "captions_and_tags.md", "prepare_pictures.md")  # and their models
PAGES_WITH_FILES = tuple(f"{path.stem}.md" for path in sorted((ROOT / "tests" / "page_files").glob("*.py")))
HERE = (*UNET_PAGES, *PREPARING_PAGES, *PAGES_WITH_FILES)
PAGES = (GUIDE, ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {GUIDE}))
UNET_FILES = {
    "sd1": "v1-5-pruned-emaonly.safetensors",
    "sd2": "v2-1_768-ema-pruned.safetensors",
    "sdxl": "sd_xl_base_1.0.safetensors",
}
SCRIPTS = (*sorted(path.name for path in ROOT.glob("*.py")), "library", "networks", "tools", "finetune")
FOLDERS = ("benchmarks", "examples", "docs")  # nothing is written there
PROGRAMS = {  # run by this interpreter, whatever is on the PATH
    "accelerate": ("-m", "accelerate.commands.accelerate_cli"),
    "torchrun": ("-m", "torch.distributed.run"),
    "python": (),
    "python3": (),
}
NEVER_RUN = ("pip", "git", "docker", "conda", "uv", "source", "pre-commit")
LEFT_OUT = {  # what the reasons of `not run` begin with, and what the commands of such a block are
    "it installs packages": r"quickstart\.py( setup|$)|pip install",
    "it downloads": r"quickstart\.py setup|pip download|hf download",
    "it needs a GPU": r"benchmarks\.gpu_step|--load_in_4bit",
    "it needs a browser": r"test_preview_in_browser\.py",
    "it would run this test": r"quickstart\.py test",
}
SHELLS = ("sh", "bash", "shell", "console", "powershell")
SETTINGS = """
pretrained_model_name_or_path = "sd3.safetensors"
clip_l = "clip_l.safetensors"
clip_g = "clip_g.safetensors"
dataset_config = "my_sd3_dataset_config.toml"
output_dir = "out_of_loop"
network_module = "networks.lora"
network_train_unet_only = true
max_train_steps = 1
"""
DATASET = """
[general]
resolution = 64
caption_extension = ".txt"

[[datasets]]
  [[datasets.subsets]]
  image_dir = "pictures"
"""


@dataclass(frozen=True)
class Block:
    """A block of code in a page.

    Attributes:
        place: "page:line", for messages.
        language: Of the fence; empty where there is none.
        notes: {what the comments above it say: the text after the colon}
    """

    place: str
    language: str
    text: str
    notes: dict[str, str]

    @property
    def is_command(self) -> bool:
        """Whether it is for the shell, be it said or not."""
        if self.language in ("", "text", *SHELLS):
            return self.language in SHELLS or _first_word(self.text) in (*PROGRAMS, *NEVER_RUN)
        return False

    @property
    def is_run(self) -> bool:
        """Whether it does something, and is not left out."""
        return (self.is_command or self.language == "python") and "not run" not in self.notes

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return int(self.notes.get("exit code", "0"))

    def commands(self) -> list[list[str]]:
        """The commands, each in its words."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def commands_in_tests(self) -> list[list[str]]:
        """The commands with the values that they have in tests."""
        values, added = self._values_in_tests(), shlex.split(self.notes.get("added in tests", ""))
        flags = {word.partition("=")[0] for words in self.commands() for word in words}
        assert values.keys() <= flags, f"{self.place}: {sorted(values.keys() - flags)} is not in the command"
        changed = [[values.get(word.partition("=")[0], word) for word in words] for words in self.commands()]
        return [_with_words(words, added) for words in changed]

    def script_in_tests(self) -> str:
        """The script with the values that options have in tests."""
        text = self.text
        for name, item in self._values_in_tests().items():
            text, number = re.subn(rf"{re.escape(name)}=\S+", item, text)
            assert number, f"{self.place}: {name} is not in the script"
        return text

    def python_in_tests(self) -> str:
        """The Python example with the values that arguments have in tests."""
        text = self.text
        for name, item in self._values_in_tests().items():
            text, number = re.subn(rf"\b{re.escape(name)}=[^,()]+", item, text)
            assert number, f"{self.place}: {name} is not in the example"
        return text

    def file_in_tests(self) -> str:
        """The content of a file with the values that keys, and options in its lines, have in tests."""
        text = self.text + "\n"
        for name, item in self._values_in_tests().items():
            value = item.partition("=")[2]
            key = (rf"(?m)^( *){name} = .*$", rf"\g<1>{item}")
            pattern, new = (rf"{name} \S+", f"{name} {value}") if name[0] == "-" else key
            text, number = re.subn(pattern, new, text)
            assert number, f"{self.place}: {name} is not in the file"
        return text

    def _values_in_tests(self) -> dict[str, str]:
        return {item.partition("=")[0]: item for item in self.notes.get("in tests", "").split()}


def _with_words(words: list[str], added: list[str]) -> list[str]:
    """A command with words for its `...`, or behind it."""
    place = words.index("...") if "..." in words else len(words)
    return [*words[:place], *added, *words[place + 1 :]]


def read_blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks, and indented ones that begin with a program."""
    lines = page.read_text(encoding="utf-8").splitlines()
    notes: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line, start = lines[number], number
        number += 1
        if comment := re.fullmatch(r"\s*<!-- ([a-z ]+?)(?:: *(.*?))? -->", line):
            notes[comment[1]] = comment[2] or ""
        elif fence := re.fullmatch(r"\s*(```+)\s*(\w*)", line):
            while lines[number].strip() != fence[1]:
                number += 1
            yield Block(f"{page.name}:{start + 1}", fence[2], _text(lines[start + 1 : number]), notes)
            notes, number = {}, number + 1
        elif line.startswith("    ") and _first_word(line) in (*PROGRAMS, *NEVER_RUN):
            while number < len(lines) and lines[number].startswith("    "):
                number += 1
            yield Block(f"{page.name}:{start + 1}", "", _text(lines[start:number]), notes)
            notes = {}
        elif line.strip():
            notes = {}


def _text(lines: list[str]) -> str:
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    return "\n".join(line[min(indents, default=0) :] for line in lines)


def _first_word(text: str) -> str:
    """The first word of a command, behind variables that are set for it."""
    return next((word for word in text.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)), "")


BLOCKS = {page: tuple(read_blocks(page)) for page in PAGES}
ALL_BLOCKS = [block for blocks in BLOCKS.values() for block in blocks]


def test_every_command_is_run_or_has_a_reason_not_to_be():
    problems = []
    for block in ALL_BLOCKS:
        if "not run" not in block.notes and "script" not in block.notes and block.is_command:
            unknown = {_first_word(" ".join(words)) for words in block.commands()} - set(PROGRAMS)
            problems += [f"{block.place}: {word} is no program that this test runs" for word in sorted(unknown)]
    assert not problems, "\n" + "\n".join(problems)


def test_only_what_needs_more_than_a_test_may_need_is_left_out():
    wrong = []
    for block in ALL_BLOCKS:
        if "not run" not in block.notes:
            continue
        kinds = [pattern for reason, pattern in LEFT_OUT.items() if block.notes["not run"].startswith(reason)]
        if not kinds or not all(re.search(kinds[0], " ".join(words)) for words in block.commands()):
            wrong.append(f"{block.place}: {block.notes['not run']}")
    assert not wrong, "\n".join(wrong)


def test_the_comments_are_those_that_this_file_explains():
    known = {"not run", "makes", "exit code", "printed", "file", "prompts", "in tests", "added in tests", "script"}
    unknown = [f"{block.place}: {set(block.notes) - known}" for block in ALL_BLOCKS if set(block.notes) - known]
    assert not unknown


def test_the_pages_have_what_this_test_is_for():
    run = [word for block in ALL_BLOCKS if block.is_run and block.is_command for word, *_ in block.commands()]
    assert {"accelerate", "torchrun", "python"} <= set(run)
    assert any(block.is_run and block.language == "python" for block in BLOCKS[GUIDE])
    assert any("quickstart.py" in block.text for block in BLOCKS[ROOT / "README.md"])


README = ROOT / "README.md"
GUIDES = {block.text for page in PAGES if page != README for block in BLOCKS[page] if block.is_run}
BLOCKS[README] = tuple(block for block in BLOCKS[README] if block.text not in GUIDES)  # which run there
PAGES_THAT_RUN = [page for page in PAGES if any(block.is_run for block in BLOCKS[page])]


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_one_after_another(
    page: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    if page.name in HERE:
        copy_unet_models(user_folder, request.getfixturevalue("tiny_unet_models"))
        if page.name in PREPARING_PAGES:
            add_photos_and_their_models(user_folder)
        if page.name in PAGES_WITH_FILES:
            importlib.import_module(f"tests.page_files.{page.stem}").make(
                user_folder, request.getfixturevalue("tiny_unet_models")
            )
    else:
        make_models(user_folder)
    monkeypatch.chdir(user_folder)
    printed = ""
    for block in BLOCKS[page]:
        if "file" in block.notes:
            (user_folder / block.notes["file"]).write_text(block.file_in_tests(), encoding="utf-8")
        if "printed" in block.notes:
            assert block.text in printed, f"{block.place}: the command above prints something else:\n{printed}"
        if not block.is_run:
            continue
        patterns = [pattern.strip() for pattern in block.notes.get("makes", "").split(",") if pattern.strip()]
        too_early = [pattern for pattern in patterns if list(user_folder.glob(pattern))]
        assert not too_early, f"{block.place}: {too_early} is there before"
        if block.language == "python":
            _run_python(block)
        elif "script" in block.notes:
            printed = _run_script(block)
        else:
            printed = "".join(
                _run_command(words, block)
                if _is_started(page, words, block)
                else run_here(words, block.place, monkeypatch, code=block.exit_code)
                for words in block.commands_in_tests()
            )
        missing = [pattern for pattern in patterns if not list(user_folder.glob(pattern))]
        assert not missing, f"{block.place}: {missing} is not made:\n{printed}"


def _script(words: list[str]) -> str:
    """The script of this repository that a command runs; empty if there is none."""
    return next((word for word in words if word.endswith(".py") and (ROOT / word).is_file()), "")


def _first_places() -> dict[str, str]:
    """{script: place of the first block that runs it, of all pages whose commands start as they are printed}"""
    places: dict[str, str] = {}
    for page in PAGES_THAT_RUN:
        for block in BLOCKS[page] if page.name not in HERE else ():
            for words in block.commands() if block.is_run and block.is_command else ():
                places.setdefault(_script(words), block.place)
    return places


FIRST_PLACES = _first_places()


def _is_started(page: Path, words: list[str], block: Block) -> bool:
    """Whether a command starts as it is printed."""
    if page.name in (*PREPARING_PAGES, *PAGES_WITH_FILES) or "--dry_run" in words:
        return False
    if "exit code" in block.notes:
        return True
    if page.name in UNET_PAGES:
        return False
    script, is_single = _script(words), words[0] in ("accelerate", "python", "python3")
    return not is_single or (script != "" and FIRST_PLACES[script] == block.place)


def _run_command(words: list[str], block: Block) -> str:
    """Run it without a GPU; returns what it prints. Launchers say 1 for every code of the script."""
    program = words.index(_first_word(" ".join(words)))
    variables = dict(word.split("=", 1) for word in words[:program])
    command = [sys.executable, *PROGRAMS[words[program]], *words[program + 1 :]]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PET_MASTER_PORT": str(_free_port()), **variables}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=300
    )
    assert done.returncode == block.exit_code, f"{block.place} ends with {done.returncode}:\n{done.stdout}"
    return done.stdout


def run_here(words: list[str], place: str, monkeypatch: pytest.MonkeyPatch, *, code: int = 0) -> str:
    """Call the script's main in this process, without a GPU; returns what it prints. A launcher reads its own part."""
    import torch
    from accelerate.commands.launch import launch_command_parser
    from accelerate.state import AcceleratorState
    from torch.distributed.run import get_args_parser

    from library.log import LOGGER_NAME

    for backend in (torch.cuda, torch.backends.mps, torch.xpu):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one run, outside tests
    script = _script(words) or words[words.index("-m") + 1]
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    arguments = words[words.index(script) + 1 :]
    if words[0] == "accelerate":
        launched = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
        assert (launched.training_script, launched.training_script_args) == (script, arguments), place
    elif words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        assert (given.training_script, given.training_script_args) == (script, arguments), place
    logger, text = logging.getLogger(LOGGER_NAME), io.StringIO()
    before = logger.handlers[:], logger.propagate, logger.level
    try:
        with redirect_stdout(text), redirect_stderr(text):
            ended = main(arguments) or 0
    finally:
        logger.handlers[:], logger.propagate = before[0], before[1]
        logger.setLevel(before[2])
        logging.disable(logging.NOTSET)
        torch.set_flush_denormal(False)  # commands that train a model from nothing switch it on
    printed = text.getvalue()
    assert ended == code, f"{place}: {' '.join(words)} ends with {ended}:\n{printed}"
    return printed


def _run_script(block: Block) -> str:
    """Run a script of the shell, in which this interpreter is python; returns what it prints."""
    start = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n'
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["sh", "-c", start + block.script_in_tests()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == block.exit_code, f"{block.place} ends with {done.returncode}:\n{done.stdout}"
    return done.stdout


def _run_python(block: Block) -> None:
    """Run it in this process, which has imported diffusers already."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block.python_in_tests(), block.place, "exec"), names)
    if "load_lora_weights" in block.text:  # which takes files it cannot use without a word
        assert names["pipe"].get_active_adapters(), f"{block.place}: no adapter is active"


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """What a user of the guide has: the scripts, small pictures, and dataset files for one of them."""
    for name in SCRIPTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    for name in FOLDERS:
        (tmp_path / name).symlink_to(ROOT / name)
    for folder in (tmp_path / "pictures", tmp_path / "data" / "20_sks dog", tmp_path / "reg" / "1_dog"):
        folder.mkdir(parents=True)
        for name in ("red_star.png", "red_star.txt"):
            shutil.copy(ROOT / "examples" / "pictures" / name, folder)
    for family in ("sd3", "sdxl", "sd"):
        (tmp_path / f"my_{family}_dataset_config.toml").write_text(DATASET, encoding="utf-8")
    (tmp_path / "my_settings.toml").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "my_prompts.txt").write_text("a red star --w 64 --h 64 --d 1 --s 2 --n blurry\n", encoding="utf-8")
    return tmp_path


def copy_unet_models(folder: Path, models: Mapping[str, Path]) -> None:
    """The tiny models under the names of published files, and their tokenizers."""
    for kind, name in UNET_FILES.items():
        shutil.copy(models[kind], folder / name)
    for tokenizer in models["sdxl"].parent.glob("tokenizer*"):
        shutil.copytree(tokenizer, folder / tokenizer.name)


def add_photos_and_their_models(folder: Path) -> None:
    """Photos without captions, and what captions, tags and draws them, under names of the hub: folders go first."""
    from tests.tiny_captioners import build_blip, build_florence, build_git
    from tests.tiny_taggers import make_tagger
    from tests.tiny_unets import write_sdxl_folder

    (folder / "photos").mkdir()
    for number, photo in enumerate(sorted((ROOT / "examples" / "pictures").glob("*.jpg")), 1001):
        for place in ("photos", "pictures"):
            shutil.copy(photo, folder / place / f"IMG_{number}.jpg")
    for build, name in (
        (build_blip, "Salesforce/blip-image-captioning-large"),
        (build_florence, "florence-community/Florence-2-large"),
        (build_git, "microsoft/git-large-textcaps"),
    ):
        (folder / name).mkdir(parents=True)
        build(folder / name)
    (folder / "models").mkdir()
    (folder / "models" / "blip").symlink_to(folder / "Salesforce" / "blip-image-captioning-large")
    (folder / "models" / "wd14").symlink_to(folder / "SmilingWolf" / "wd-v1-4-convnext-tagger-v2")
    make_tagger(folder / "SmilingWolf" / "wd-v1-4-convnext-tagger-v2")
    write_sdxl_folder(folder / "stabilityai" / "stable-diffusion-xl-base-1.0")


def make_models(folder: Path) -> None:
    """Tiny models under the names of the guide, with the parts that the published files have."""
    from examples.tiny_sd3.make import CONTEXT_WIDTH, POOLED_WIDTH, POSITIONS, build_tiny_sd3
    from library.models.mmdit import MMDiT, MMDiTConfig
    from library.tensorfile import read_header, read_tensors, write_tensors

    tiny = build_tiny_sd3(folder, bundle=False)
    assert tiny.t5xxl and tiny.vae
    tiny.t5xxl.rename(folder / "t5xxl_fp16.safetensors")
    vae = {f"first_stage_model.{name}": tensor for name, tensor in read_tensors(read_header(tiny.vae)).items()}
    tiny.vae.unlink()
    write_tensors(tiny.model, {**read_tensors(read_header(tiny.model)), **vae})
    config = MMDiTConfig(  # narrow, with as many blocks as the guide's train_block_indices need
        depth=9,
        num_heads=1,
        context_dim=CONTEXT_WIDTH,
        pooled_dim=POOLED_WIDTH,
        position_side=POSITIONS,
        qk_norm=True,
        dual_attention=(0, 1, 2),
    )
    mmdit = {f"model.diffusion_model.{name}": tensor for name, tensor in MMDiT(config).state_dict().items()}
    write_tensors(folder / "sd3.5_medium.safetensors", {**mmdit, **vae})
    make_diffusers_folder(folder, folder / "stable-diffusion-3-medium-diffusers")


def make_diffusers_folder(folder: Path, target: Path) -> None:
    """The tiny SD3-medium as diffusers has it."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTokenizer, T5TokenizerFast

    from library.families.sd3.checkpoint import inspect_files, read_part
    from library.families.sd3.key_map import mmdit_to_diffusers
    from library.models.text_encoders import load_clip, load_t5
    from library.models.vae import load_vae

    encoders = {"clip_l": folder / "clip_l.safetensors", "clip_g": folder / "clip_g.safetensors"}
    files = inspect_files(folder / "sd3.safetensors", t5xxl=folder / "t5xxl_fp16.safetensors", **encoders)
    config = files.config
    transformer = SD3Transformer2DModel(
        sample_size=8,
        num_layers=config.depth,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        joint_attention_dim=config.context_dim,
        caption_projection_dim=config.hidden,
        pooled_projection_dim=config.pooled_dim,
        pos_embed_max_size=config.position_side,
    )
    transformer.load_state_dict(mmdit_to_diffusers(read_part(files.denoiser)))
    parts = {kind: read_part(getattr(files, kind), dtype=torch.float32) for kind in (*encoders, "t5xxl", "vae")}
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=load_vae(parts["vae"]),
        text_encoder=load_clip(parts["clip_l"], kind="clip_l"),
        text_encoder_2=load_clip(parts["clip_g"], kind="clip_g"),
        text_encoder_3=load_t5(parts["t5xxl"]),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        tokenizer_3=T5TokenizerFast.from_pretrained(folder / "tokenizer_3"),
    ).save_pretrained(target)
