"""Who imports whom, and what the source files must not contain. The rules are those of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN_PACKAGES = {"library", "networks", "tools", "finetune", "examples", "benchmarks", "tests"}
HEAVY = {
    "torch",
    "transformers",
    "diffusers",
    "accelerate",
    "bitsandbytes",
    "peft",
    "lycoris",
    "xformers",
    "wandb",
    "cv2",
    "matplotlib",
    "tensorboard",
    "psutil",
    "safetensors.torch",
}
LIGHT = (  # what --help and every option or dataset error reach
    "library.errors",
    "library.log",
    "library.rng",
    "library.records",
    "library.tensorfile",
    "library.options",
    "library.preparing.options",
    "library.loras.options",
    "library.model_files.options",
    "library.generation.options",
    "library.data.config.schema",
    "library.data.config.sources",
    "library.data.files.scan",
    "library.data.plan.captions",
    "library.data.plan.buckets",
    "library.data.plan.crops",
    "library.data.plan.batches",
    "library.families.base",
)
STAND_ALONE = "quickstart"  # runs before anything is installed
SCRIPTS_OF_NETWORKS = {  # they lie where users look for them, beside what they call
    *("merge_lora", "sdxl_merge_lora", "sd3_merge_lora", "svd_merge_lora", "resize_lora", "extract_lora_from_models"),
    *("extract_lora_from_dylora", "check_lora_weights", "convert_lora"),
}
KNOW_FAMILIES = {"loras", "model_files"}  # what they do with files is to tell families apart
UNETS, AROUND_UNETS = "families/unet", {"families/sd", "families/sdxl"}  # these share what the first one has
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


class Import(NamedTuple):
    """One import statement."""

    module: str  # absolute dotted name; for `from a import b` it is a.b where that is a module, else a
    line: int
    is_at_start: bool  # runs when the file is imported
    is_for_types: bool  # below `if TYPE_CHECKING:`


def source_files() -> list[Path]:
    """Python files of the project proper: the rooms of the design and the scripts in the root."""
    rooms = ("library", "networks", "tools", "finetune")
    return sorted(ROOT.glob("*.py")) + [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def dotted(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {dotted(path): path for path in source_files()}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    package = dotted(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    return tuple(_walk(tree_of(path).body, package, is_at_start=True, is_for_types=False))


def _walk(body: Iterable[ast.AST], package: list[str], *, is_at_start: bool, is_for_types: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, is_at_start, is_for_types)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                is_module = whole in modules() or whole in HEAVY
                yield Import(whole if is_module else base, node.lineno, is_at_start, is_for_types)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _walk(node.body, package, is_at_start=is_at_start, is_for_types=True)
            yield from _walk(node.orelse, package, is_at_start=is_at_start, is_for_types=is_for_types)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(
                ast.iter_child_nodes(node),
                package,
                is_at_start=is_at_start and not is_function,
                is_for_types=is_for_types,
            )


def room_of(module: str) -> tuple[int, str]:
    """Layer and folder of one of our modules. Files that lie in library/ itself form the folder "library"."""
    first, *rest = module.split(".")
    if first == "networks":
        return (4, "scripts") if rest and rest[0] in SCRIPTS_OF_NETWORKS else (1, "networks")
    if first != "library":
        return 4, first if rest else "scripts"
    file = modules().get(f"library.{rest[0]}") if rest else None
    if not rest or (file is not None and file.name != "__init__.py"):
        return 0, "library"
    layers = {
        "options": 0,
        "data": 1,
        "diffusion": 1,
        "models": 1,
        "checkpoint": 1,
        "memory": 1,
        "families": 2,
        "loras": 3,
        "model_files": 3,
        "generation": 3,
        "training": 3,
        "preparing": 3,
    }
    assert rest[0] in layers, f"library/{rest[0]} has no layer; add it to docs/architecture.md and to this test"
    own_file = modules().get(module)
    is_family = rest[0] == "families" and (len(rest) > 2 or (own_file is not None and own_file.name == "__init__.py"))
    folder = f"families/{rest[1]}" if is_family and len(rest) > 1 else rest[0]
    return layers[rest[0]], folder


def why_not(importer: str, imported: str) -> str | None:
    """The rule that forbids an import between two of our modules, or None."""
    layer, folder = room_of(importer)
    other_layer, other_folder = room_of(imported)
    if other_layer == 4 and layer < 4:
        return "the library does not import scripts"
    if other_layer > layer:
        return f"layer {layer} does not import from layer {other_layer}, which is above it"
    if layer == other_layer == 0:
        return "library/*.py does not import from library/options" if folder == "library" != other_folder else None
    if layer == other_layer == 1 and folder != other_folder:
        return "folders of layer 1 do not import each other: pass in what is needed as an argument"
    if layer == other_layer == 2 and folder != other_folder and other_folder != "families":
        if other_folder == UNETS and folder in AROUND_UNETS:
            return None
        return "a family is not imported by its neighbours: what several need lies in library/families itself"
    if layer == 3 and folder not in KNOW_FAMILIES and other_folder.startswith("families/"):
        return "training/, preparing/ and generation/ import families/base.py, never a family"
    if layer == other_layer == 3 and folder != other_folder and (other_folder != "loras" or folder == "preparing"):
        return "folders of layer 3 do not import each other, but for loras/, which is below them"
    return None


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def report(problems: Iterable[str]) -> None:
    text = "\n".join(sorted(set(problems)))
    assert not text, f"\n{text}"


def test_imports_go_down_or_stay_in_the_folder():
    problems = []
    for path in source_files():
        importer = dotted(path)
        for found in imports_of(path):
            if found.module.split(".")[0] not in OWN_PACKAGES or importer == STAND_ALONE:
                continue
            if found.module.split(".")[0] in {"tests", "benchmarks", "examples"}:
                problems.append(f"{name(path)}:{found.line}: imports {found.module}, which is no part of the toolkit")
            elif (reason := why_not(importer, found.module)) is not None:
                problems.append(f"{name(path)}:{found.line}: imports {found.module}: {reason}")
    report(problems)


@pytest.mark.parametrize(
    ("importer", "imported", "is_allowed"),
    [
        ("library.data.cache", "library.tensorfile", True),
        ("library.data.cache", "library.data.config.schema", True),
        ("library.data.cache", "library.models.vae", False),
        ("library.models.mmdit", "networks.lora", False),
        ("networks.lora", "library.errors", True),
        ("library.diffusion.flow", "library.families.base", False),
        ("library.families.sd3.family", "library.models.mmdit", True),
        ("library.families.sd3.family", "library.families.base", True),
        ("library.families.sdxl.family", "library.families.sd3.family", False),
        ("library.families.base", "library.families.sd3.family", False),
        ("library.families.sdxl.family", "library.families.unet.family", True),
        ("library.families.unet.options", "library.families.sdxl.options", False),
        ("library.families.sd3.family", "library.families.unet.family", False),
        ("library.training.stepping.step", "library.families.base", True),
        ("library.training.stepping.step", "library.families.sd3.family", False),
        ("library.families.sd3.family", "library.training.stepping.step", False),
        ("library.options.groups", "library.errors", True),
        ("library.errors", "library.options.spec", False),
        ("library.training.trainer", "tools.make_options_doc", False),
        ("sd3_train_network", "library.families.sd3.family", True),
        ("networks.convert_lora", "library.loras.converting_run", True),
    ],
)
def test_the_rules_themselves(importer: str, imported: str, is_allowed: bool):
    assert (why_not(importer, imported) is None) == is_allowed


def is_light(module: str) -> bool:
    is_listed = any(module == light or module.startswith(f"{light}.") for light in LIGHT)
    is_family_options = module.startswith("library.families.") and module.endswith(".options")
    is_entry = "." not in module and module not in OWN_PACKAGES
    return is_listed or is_family_options or is_entry


def heavy_at_start(module: str, seen: set[str]) -> Iterator[tuple[str, int, str]]:
    """Heavy packages that importing a module imports, with the place, through all of our own modules on the way."""
    for part in (module, *_packages_around(module)):
        if part in seen or part not in modules():
            continue
        seen.add(part)
        path = modules()[part]
        for found in imports_of(path):
            if not found.is_at_start or found.is_for_types:
                continue
            if found.module.split(".")[0] in HEAVY or found.module in HEAVY:
                yield name(path), found.line, found.module
            elif found.module.split(".")[0] in OWN_PACKAGES:
                yield from heavy_at_start(found.module, seen)


def _packages_around(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def test_light_modules_import_nothing_heavy_at_their_start():
    problems = [
        f"{place}:{line}: imports {package} when it is imported, and importing {module} does that. "
        "Import it inside the function that needs it, so that --help and errors in options stay quick."
        for module in modules()
        if is_light(module)
        for place, line, package in heavy_at_start(module, set())
    ]
    report(problems)


def test_the_quickstart_needs_nothing_but_python():
    import sys

    problems = [
        f"quickstart.py:{found.line}: imports {found.module}; it runs before anything is installed"
        for found in imports_of(ROOT / "quickstart.py")
        if found.module.split(".")[0] not in sys.stdlib_module_names
    ]
    report(problems)


def test_files_are_named_after_what_they_hold():
    problems = [
        f"{name(path)}: name it after the one concept it holds"
        for path in source_files()
        if FORBIDDEN_NAMES & set(path.stem.split("_")) or FORBIDDEN_NAMES & set(path.parent.name.split("_"))
    ]
    report(problems)


def test_libraries_do_not_print():
    problems = [
        f"{name(path)}:{node.lineno}: print; use the logger of library/log.py"
        for path in source_files()
        if dotted(path).split(".")[0] in {"library", "networks"}
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    report(problems)


def test_public_functions_and_classes_say_what_they_give():
    problems = [
        f"{name(path)}:{node.lineno}: {node.name} has no docstring"
        for path in source_files()
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    report(problems)


def test_modules_say_what_they_are():
    problems = [
        f"{name(path)}: has no docstring"
        for path in source_files()
        if path.name != "__init__.py" and ast.get_docstring(tree_of(path)) is None
    ]
    report(problems)


def rooms() -> list[str]:
    """Folders of the library, and the one of networks."""
    paths = [*(ROOT / "library").iterdir(), ROOT / "networks"]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths if (path / "__init__.py").exists())


@pytest.mark.parametrize("room", rooms())
def test_the_map_names_every_file(room: str):
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    start = "  " * room.count("/") + room.rpartition("/")[2]
    listed = re.search(rf"^{start}/ (.*?)^(?=\S|  \S)", page, re.MULTILINE | re.DOTALL)
    assert listed
    files = {path.stem for path in (ROOT / room).rglob("*.py")} - {"__init__"}
    assert files - set(re.findall(r"\w+", listed[1])) == set()
