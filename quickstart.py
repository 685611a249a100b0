#!/usr/bin/env python3
"""Set Easel up and run its main job, or its tests. Needs Python 3.10 or newer with pip, and nothing else.

python3 quickstart.py          set up; train a LoRA on the small base model in examples/, and show its effect
python3 quickstart.py test     set up with the test tools; then linter, type checker and tests
python3 quickstart.py setup    set up only
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements.txt"
OUTPUT = ROOT / "output" / "quickstart"
BASE = "examples/tiny_sd3/base/sd3_tiny.safetensors"
SHAPES = "output/quickstart/shapes"

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 6)
TORCH_RANGE = "torch>=2.6"
TORCH_PIN = "torch==2.13.0"  # the version this release was tested with

_OPTIMIZERS = [
    "lion-pytorch>=0.2",
    "dadaptation>=3.2",
    "prodigyopt>=1.1",
    "schedulefree>=1.4",
    "pytorch-optimizer>=3.8",
]
EXTRAS = {
    "xformers": ["xformers>=0.0.29"],
    "peft": ["peft>=0.14"],
    "lycoris": ["lycoris-lora>=3.1"],
    "tensorboard": ["tensorboard>=2.16"],
    "wandb": ["wandb>=0.19"],
    "optimizers": _OPTIMIZERS,
    "tagger": ["onnxruntime>=1.17"],
    # ruff and mypy are pinned: another version is another opinion
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.7",
        "hypothesis>=6.100",
        "ruff==0.17.5",
        "mypy==2.4.1",
        "peft>=0.14",
        "lycoris-lora>=3.1",
        "tensorboard>=2.16",
        "wandb>=0.19",
        "onnxruntime>=1.17",
        "onnx>=1.16",  # makes the models that the tests tag with
        *_OPTIMIZERS,
    ],
}


class QuickstartError(Exception):
    """Something the user can put right, said in one sentence."""


@dataclass(frozen=True)
class Environment:
    """A Python environment to install into.

    Attributes:
        python: Its interpreter.
        folder: Its root.
        label: How it is called in messages.
    """

    python: str
    folder: Path
    label: str


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    if sys.version_info < OLDEST_PYTHON:
        have = ".".join(map(str, sys.version_info[:3]))
        return _fail(f"Python 3.10 or newer is needed, this is {have} ({sys.executable}). Run it with a newer python3.")
    os.chdir(ROOT)
    args = _parse(argv)
    try:
        started = time.monotonic()
        environment = choose_environment(args)
        if set_up(environment, args):
            _print_duration("Set-up", started)
        if args.job == "run":
            train_example(environment)
        if args.job == "test":
            return run_tests(environment, args.pytest_args)
        return 0
    except QuickstartError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("job", nargs="?", default="run", choices=["run", "test", "setup"], help="default: run")
    parser.add_argument("--extras", default="", metavar="A,B", help=f"optional packages: {', '.join(EXTRAS)}")
    parser.add_argument("--clip_tokenizer", action="store_true", help="also make CLIP's tokenizer, from a package")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--venv", metavar="FOLDER", help="environment to make or use (default: .venv beside this file)")
    where.add_argument("--no-venv", action="store_true", help="install into the interpreter that runs this script")
    parser.add_argument("--torch", metavar="SPEC", help='which torch to install, for instance "torch==2.9.1"')
    parser.add_argument("--index-url", metavar="URL", help="package index to take torch from")
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.pytest_args = argv[end + 1 :]
    args.extras = [name.strip() for name in args.extras.split(",") if name.strip()]
    unknown = [name for name in args.extras if name not in EXTRAS]
    if unknown:
        parser.error(f"--extras {','.join(unknown)}: unknown. There are: {', '.join(EXTRAS)}.")
    if args.pytest_args and args.job != "test":
        parser.error("arguments after -- go to pytest and are for: quickstart.py test -- ...")
    if args.job == "test" and "test" not in args.extras:
        args.extras.append("test")
    return args


# ---------------------------------------------------------------- environment


def choose_environment(args: argparse.Namespace) -> Environment:
    """The environment to use: the one asked for, an active one with a suitable torch, else .venv (made if need be)."""
    here = Environment(sys.executable, Path(sys.prefix), f"this interpreter's environment, {sys.prefix}")
    torch = suitable_torch(_own_torch_version())
    is_environment = sys.prefix != sys.base_prefix or (Path(sys.prefix) / "conda-meta").is_dir()
    if args.no_venv:
        chosen = here
    elif args.venv is None and is_environment and torch:
        chosen = here
        print(f"The active environment has torch {torch}. (--venv FOLDER takes a separate one.)")
    else:
        folder = Path(args.venv).expanduser().absolute() if args.venv else ROOT / ".venv"
        if is_environment and not args.venv:
            print("The active environment has no torch. (--no-venv installs into it all the same.)")
        chosen = open_venv(folder, reuse_packages=bool(torch) and not is_environment)
    print(f"Environment: {chosen.label}", flush=True)
    return chosen


def _own_torch_version() -> str | None:
    from importlib import metadata  # Python 3.7, which is to read the message above, has none

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def suitable_torch(version: str | None) -> str | None:
    """The version if it is new enough, else None."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return version if match and (int(match[1]), int(match[2])) >= OLDEST_TORCH else None


def open_venv(folder: Path, *, reuse_packages: bool) -> Environment:
    """Make a virtual environment, or take the one that is there.

    Args:
        folder: Where it is.
        reuse_packages: Let a new one see the packages of the interpreter it is made from, torch above all.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    environment = Environment(str(python), folder, f"the virtual environment {folder}")
    if not python.exists():
        print(f"Making {folder}" + (" on top of the installed torch." if reuse_packages else "."), flush=True)
        command = [sys.executable, "-m", "venv", str(folder)] + ["--system-site-packages"] * reuse_packages
        if subprocess.run(command).returncode != 0:
            shutil.rmtree(folder, ignore_errors=True)
            raise QuickstartError(
                f"{folder} could not be made with `{shlex.join(command)}`. Install Python's venv module (on Debian and "
                "Ubuntu the package python3-venv), or activate an environment of your own and add --no-venv."
            )
    return environment


# ---------------------------------------------------------------- set-up


def set_up(environment: Environment, args: argparse.Namespace) -> bool:
    """Install what is missing. Returns False if nothing was: a second call takes no time."""
    stamp = environment.folder / ".easel-setup.json"
    base = requirements_hash(args.torch, args.index_url)
    done = read_stamp(stamp, base)
    is_complete = done is not None and all(done.get(name) == EXTRAS[name] for name in args.extras)
    if not is_complete:
        _check_pip(environment)
        install_torch(environment, args)
        install_packages(environment, args.extras)
        report_torch(environment)
        write_stamp(stamp, base, {**(done or {}), **{name: EXTRAS[name] for name in args.extras}})
    if args.clip_tokenizer:
        _job(environment, ["-m", "tools.make_clip_tokenizer"], "CLIP's tokenizer could not be made")
    return not is_complete or args.clip_tokenizer


def requirements_hash(torch: str | None, index_url: str | None) -> str:
    """Names everything that decides which basic packages an environment gets."""
    parts = [REQUIREMENTS.read_text(encoding="utf-8"), TORCH_PIN, str(torch), str(index_url)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp(path: Path, base: str) -> dict[str, list[str]] | None:
    """The extras that an environment has, or None if its basic packages are not those of `base`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["extras"]) if content["base"] == base else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_stamp(path: Path, base: str, extras: dict[str, list[str]]) -> None:
    """Note what an environment has, so that the next set-up takes no time."""
    try:
        path.write_text(json.dumps({"base": base, "extras": extras}), encoding="utf-8")
    except OSError as error:
        print(f"{path}: cannot be written ({error.strerror}); the next run will check the packages again.")


def _check_pip(environment: Environment) -> None:
    if _quietly([environment.python, "-m", "pip", "--version"]) is None:
        print("This environment has no pip; Python's own copy is put in.", flush=True)
        if _quietly([environment.python, "-m", "ensurepip"]) is None:
            raise QuickstartError(
                f"{environment.python} has no pip. Install pip for it, or remove {environment.folder} and try again."
            )


def install_torch(environment: Environment, args: argparse.Namespace) -> None:
    """Install torch alone and first: resolved with other packages it would come with CUDA, whatever the machine."""
    if not args.torch and suitable_torch(_version_in(environment, "torch")):
        return
    index = ["--index-url", args.index_url] if args.index_url else []
    candidates = torch_candidates(args.torch, has_gpu=has_nvidia_gpu(), platform=sys.platform)
    for candidate in candidates:
        print(f"Installing {candidate}", flush=True)
        output = _pip(environment, ["install", "--progress-bar=off", *index, candidate])
        if output is None:
            return
        if candidate == candidates[-1] or not is_version_missing(output):
            raise QuickstartError(explain_pip(output, candidate))
        if "+cpu" in candidate:
            print(
                "This package index has no CPU build of torch, so the usual build is taken, which on Linux brings "
                "gigabytes of CUDA libraries. (Ctrl-C stops; --index-url names another index, see docs/setup.md.)"
            )


def torch_candidates(asked: str | None, *, has_gpu: bool, platform: str) -> list[str]:
    """What to ask pip for, first choice first. Builds for the CPU alone carry "+cpu" in their version."""
    if asked:
        return [asked]
    if has_gpu:
        return [TORCH_RANGE]
    own_build = [] if platform == "darwin" else [TORCH_PIN + "+cpu"]
    return [*own_build, TORCH_PIN, TORCH_RANGE]


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and "GPU " in (_quietly([tool, "-L"]) or "")


def install_packages(environment: Environment, extras: list[str]) -> None:
    """Install requirements.txt and extras, torch staying as it is."""
    packages = [package for name in extras for package in EXTRAS[name]]
    print("Installing requirements.txt" + (f" and the extras {', '.join(extras)}" if extras else ""), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        constraint = Path(folder) / "constraints.txt"
        constraint.write_text(f"torch=={_version_in(environment, 'torch')}\n", encoding="utf-8")
        wanted = ["-r", str(REQUIREMENTS), *packages, "-c", str(constraint)]
        output = _pip(environment, ["install", "--progress-bar=off", *wanted])
    if output is not None:
        raise QuickstartError(explain_pip(output, "requirements.txt"))


def report_torch(environment: Environment) -> None:
    """Say which torch is there, and whether it sees the GPU that the machine has."""
    code = "import torch; print(torch.__version__, torch.cuda.is_available())"
    answer = _quietly([environment.python, "-c", code])
    if answer is None:
        raise QuickstartError(
            f"torch is installed in {environment.folder} but cannot be imported. Remove that folder and try again."
        )
    version, sees_gpu = answer.split()[-2:]
    print(f"torch {version}, " + ("with CUDA" if sees_gpu == "True" else "on the CPU"))
    if sees_gpu != "True" and has_nvidia_gpu():
        print(
            f"This machine has an NVIDIA GPU that torch {version} cannot use: it is a CPU build, or newer than the "
            'driver. Give --torch "torch==X" or --index-url, see docs/setup.md.'
        )


# ---------------------------------------------------------------- the main job


def train_example(environment: Environment) -> None:
    """Train a LoRA on the small base model and draw what it changes. The last two lines name the LoRA and the sheet."""
    if not (ROOT / BASE).exists():
        raise QuickstartError(f"{BASE} is missing. It belongs to the project: get the whole of it once more.")
    if not (ROOT / SHAPES).exists():
        _show_and_run(environment, shapes_command(), "the pictures could not be drawn")
    folder = _new_run_folder()
    lora, sheet = folder / "zorp.safetensors", folder / "zorp_before_after.png"
    started = time.monotonic()
    _show_and_run(environment, train_command(folder), "training did not finish")
    _print_duration("Training", started)
    started = time.monotonic()
    _show_and_run(environment, sheet_command(lora, sheet), "the sheet could not be drawn")
    _print_duration("Sheet", started)
    if not lora.exists() or not sheet.exists():
        raise QuickstartError(f"training ended without a LoRA or a sheet in {folder}. See the messages above.")
    print(f"LoRA: {lora}")
    print(f"Before and after: {sheet}")


def shapes_command() -> list[str]:
    """Arguments of the Python interpreter that draw pictures of what the model knows, which shall stay as it is."""
    return ["-m", "examples.tiny_sd3.pictures", SHAPES, "--count=256", "--seed=11"]


def train_command(output: Path) -> list[str]:
    """Arguments of the Python interpreter for the example training."""
    launch = ["--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    return [
        "-m",
        "accelerate.commands.launch",
        "--num_cpu_threads_per_process=1",
        *launch,
        "sd3_train_network.py",
        f"--pretrained_model_name_or_path={BASE}",
        "--dataset_config=examples/quickstart.toml",
        f"--output_dir={output}",
        "--output_name=zorp",
        "--save_model_as=safetensors",
        "--network_module=networks.lora_sd3",
        "--network_dim=16",
        "--network_alpha=16",
        "--network_train_unet_only",
        "--cache_latents",
        "--cache_text_encoder_outputs",
        "--t5xxl_max_token_length=20",
        "--learning_rate=2e-3",
        "--optimizer_type=AdamW",
        "--lr_scheduler=cosine",
        "--weighting_scheme=logit_normal",
        "--sdpa",
        "--max_train_steps=400",
        "--seed=1",
    ]


def sheet_command(lora: Path, sheet: Path) -> list[str]:
    """Arguments of the Python interpreter for the sheet that shows what the LoRA changes."""
    prompts = "--prompts=examples/zorp_prompts.txt"
    return ["-m", "examples.tiny_sd3.before_after", BASE, f"--lora={lora}", prompts, f"--output={sheet}"]


def _show_and_run(environment: Environment, command: list[str], failure: str) -> None:
    print("$ python " + shlex.join(command), flush=True)
    _job(environment, command, failure)


def _new_run_folder() -> Path:
    """The next free output/quickstart/run-N, so that no run touches what an earlier one made."""
    numbers = [path.name[len("run-") :] for path in OUTPUT.glob("run-*")]
    last = max((int(number) for number in numbers if number.isdigit()), default=0)
    folder = OUTPUT / f"run-{last + 1}"
    folder.mkdir(parents=True)
    return folder


def _job(environment: Environment, command: list[str], failure: str) -> None:
    code = subprocess.run([environment.python, *command]).returncode
    if code != 0:
        raise QuickstartError(f"{failure} (exit code {code}). The reason is in the messages above.")


# ---------------------------------------------------------------- tests


def run_tests(environment: Environment, pytest_args: list[str]) -> int:
    """Linter, type checker and tests. All three run; the tests last, so that their closing line stays in sight."""
    checks = {
        "ruff": ["ruff", "check", "."],
        "mypy": ["mypy"],
        "pytest": ["pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *pytest_args],
    }
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    codes = {}
    for name, command in checks.items():
        print(f"$ python -m {shlex.join(command)}", flush=True)
        codes[name] = subprocess.run([environment.python, "-m", *command], env=variables).returncode
    failed = [name for name, code in codes.items() if code]
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


# ---------------------------------------------------------------- child processes


_PIP_CHATTER = ("Requirement already satisfied", "Collecting", "Using cached", "Looking in")


def _pip(environment: Environment, arguments: list[str]) -> str | None:
    """Run pip with its output shown. Returns None, or the end of the output if it failed."""
    command = [environment.python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    lines: list[str] = []
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if not line.lstrip().startswith(_PIP_CHATTER):
                print(line.encode("ascii", "replace").decode(), end="", flush=True)
            lines.append(line)
    except KeyboardInterrupt:
        child.terminate()
        raise
    return None if child.wait() == 0 else "".join(lines[-200:])


def is_version_missing(output: str) -> bool:
    """Whether pip says that the index is there but has no such version."""
    return "No matching distribution found" in output and not _is_network_down(output)


def _is_network_down(output: str) -> bool:
    signs = ("NewConnectionError", "name resolution", "Max retries exceeded", "Read timed out", "ConnectTimeoutError")
    return any(sign in output for sign in signs)


def explain_pip(output: str, what: str) -> str:
    """One sentence on why pip failed and what to do."""
    if "No space left on device" in output:
        return f"{what} could not be installed: the disk is full. Free some gigabytes and run the same command again."
    if _is_network_down(output):
        return (
            f"{what} could not be installed: pip does not reach its package index. Check the network, or set a mirror "
            "or proxy in pip's configuration (pip config set global.index-url ...), and run the same command again."
        )
    if "externally-managed-environment" in output:
        return "This Python is managed by the operating system. Leave --no-venv out, or use an environment of your own."
    errors = [line.strip() for line in output.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1][len("ERROR:") :].strip() if errors else "the reason is above"
    return f"{what} could not be installed: {reason}"


def _version_in(environment: Environment, package: str) -> str | None:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return (_quietly([environment.python, "-c", code]) or "").strip() or None


def _quietly(command: list[str]) -> str | None:
    """Standard output of a command, or None if it failed."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _print_duration(phase: str, started: float) -> None:
    print(f"{phase}: {time.monotonic() - started:.0f} s", flush=True)


def _fail(message: str) -> int:
    print(f"quickstart: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
