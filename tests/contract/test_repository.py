"""Facts about the repository as a newcomer gets it: files, requirements, the two commands."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_BYTES = 3_000_000
MAX_PICTURES_BYTES = 100_000

# Written so that this file does not contain them.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(work|root|tmp/venv|tmp/bash_jobs|opt/wheels)(/|\b)")
REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org", re.IGNORECASE)


@cache
def repository_files() -> tuple[Path, ...]:
    """Files that are or would be committed; without git, all but hidden folders, environments and outputs."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        paths = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name != "output"]
        paths = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
        paths += ROOT.iterdir()
    return tuple(path for path in paths if path.is_file())


@cache
def text_lines() -> tuple[tuple[str, int, str], ...]:
    contents = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in repository_files()}
    return tuple(
        (name, number, line)
        for name, content in contents.items()
        if b"\0" not in content  # text, as git sees it
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1)
    )


def requirement_names() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {match[0].lower() for line in lines if (match := re.match(r"[A-Za-z0-9_.-]+", line))}


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("pattern", "what"), [(MACHINE_PATHS, "a path of one machine"), (REGISTRIES, "the address of a package index")]
)
def test_no_file_names_a_machine_or_a_package_index(pattern: re.Pattern[str], what: str):
    problems = [
        f"{name}:{number}: {what}: {line.strip()[:80]}" for name, number, line in text_lines() if pattern.search(line)
    ]
    assert not problems, "\n" + "\n".join(problems)


def test_those_patterns_find_what_they_are_for():
    assert MACHINE_PATHS.search("see /" + "work/shared") and MACHINE_PATHS.search("'/" + "root/x'")
    assert not MACHINE_PATHS.search("docs/work/x") and not MACHINE_PATHS.search("../root/x")
    assert REGISTRIES.search("https://" + "pypi." + "org/project")


def test_files_are_small_but_for_the_models_that_ship():
    sizes = {path: path.stat().st_size for path in repository_files()}
    limits = {
        ROOT / "examples/tiny_sd3/base/sd3_tiny.safetensors": 12_000_000,
        ROOT / "examples/tiny_sdxl/base/sdxl_tiny.safetensors": 4_200_000,
    }
    assert not {path: size for path, size in sizes.items() if size > limits.get(path, MAX_FILE_BYTES)}


def test_requirements_leave_the_optional_and_the_harmful_out():
    names = requirement_names()
    assert {"torch", "accelerate", "safetensors", "transformers", "diffusers", "toml", "einops", "tqdm"} <= names
    assert not names & {"torchvision", "torchaudio", "xformers", "wandb", "peft", "lycoris-lora", "torchao"}


def test_bitsandbytes_is_not_asked_for_on_macos():
    (line,) = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("bitsandbytes")]
    assert 'sys_platform != "darwin"' in line


def test_ci_runs_the_test_command_of_the_readme():
    command = "python3 quickstart.py test"
    assert f"\n    {command}\n" in readme()
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith(f"exec {command}")
    if os.name != "nt":
        assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_links_of_the_readme_and_the_guides_lead_somewhere():
    problems = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                problems.append(f"{page.relative_to(ROOT)}: {target} does not exist")
    assert not problems, "\n" + "\n".join(problems)


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_every_example_picture_has_a_caption():
    folder = ROOT / "examples" / "pictures"
    pictures = [path for path in folder.iterdir() if path.suffix in {".png", ".jpg"}]
    assert len(pictures) == 12
    assert all(path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in pictures)
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_PICTURES_BYTES


def test_the_drawing_script_draws_the_committed_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import numpy as np
    from PIL import Image

    from examples import draw_pictures

    monkeypatch.setattr("sys.argv", ["draw_pictures", str(tmp_path)])
    draw_pictures.main()
    committed = sorted((ROOT / "examples" / "pictures").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in committed]
    for path in committed:
        if path.suffix == ".txt":
            assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
        else:
            ours, theirs = np.asarray(Image.open(tmp_path / path.name)), np.asarray(Image.open(path))
            assert ours.shape == theirs.shape
            assert np.abs(ours.astype(int) - theirs).mean() < 1  # another Pillow may round otherwise


def test_tests_reach_this_machine_and_no_other():
    with pytest.raises(RuntimeError, match="tests work offline"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match="tests work offline"):
        socket.getaddrinfo("example.org", 443)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
