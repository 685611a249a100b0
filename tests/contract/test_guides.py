"""What the README and the guides say of options, arguments, defaults and codes is what the code says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import toml

from library.checkpoint.names import STATE, epoch_name, last_name, step_name
from library.checkpoint.state_folder import MANIFEST
from library.data.config.schema import parse_dataset_config
from library.data.plan.batches import StepCount
from library.errors import UserError
from library.families.sd.options import DreamBoothOptions, FineTuneOptions, SdNetworkOptions
from library.families.sd3.options import Sd3FullOptions, Sd3NetworkOptions
from library.families.sdxl.options import SdxlFullOptions, SdxlNetworkOptions
from library.families.unet.objective import NOISE, SCHEDULE_AND_WEIGHTS
from library.generation.prompt_lines import LINE_OPTIONS
from library.options.entry import INTERRUPTED
from library.options.groups.sampling import SAMPLERS
from library.options.spec import options_of
from library.training.sampling.prompts import load_prompts
from library.training.saving.claim import CLAIM
from library.training.saving.run_state import EMA, PROGRESS, TRAINING, WEIGHTS
from library.training.saving.saver import AVERAGE
from library.training.stepping.validation import validation_timesteps
from networks.sd3_args import Sd3NetworkArgs
from networks.unet_args import network_arg_parsers
from networks.unet_blocks import LAYOUTS
from quickstart import EXTRAS
from tools.make_options_doc import SCRIPTS
from tools.make_options_doc import TOOLS as TOOL_SCRIPTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = (ROOT / "docs" / "sd3_train_network.md").read_text(encoding="utf-8")
FULL_GUIDE = (ROOT / "docs" / "sd3_train.md").read_text(encoding="utf-8")
SD_GUIDE = (ROOT / "docs" / "train_network.md").read_text(encoding="utf-8")
SDXL_GUIDE = (ROOT / "docs" / "sdxl.md").read_text(encoding="utf-8")
SAVING = (ROOT / "docs" / "saving_and_resuming.md").read_text(encoding="utf-8")
OPTIONS = options_of(Sd3NetworkOptions)
FULL = options_of(Sd3FullOptions)
TOOLS = {flag[2:] for kind, _ in TOOL_SCRIPTS for option in options_of(kind).values() for flag in option.flags}
SCRIPT_OPTIONS = {name for options, _ in SCRIPTS for name in options_of(options)}

OTHER_PROGRAMS = {  # accelerate, torchrun, hf, lines of prompt files, and a typo that the guide shows
    *("--num_cpu_threads_per_process", "--num_processes", "--multi_gpu", "--quiet", "--nproc_per_node", "--local-dir"),
    *("--w", "--h", "--d", "--s", "--l", "--n", "--ss", "--cn", "--netwrok_dim"),
}


def section(title: str, page: str = GUIDE) -> str:
    """The text of a page below a heading, up to the next one of its level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"the page has no section {title}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row that begins with a word in backticks or a number."""
    lines = [line for line in text.splitlines() if re.match(r"\| (`|\d)", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_a_page_names_exists(page: Path):
    quickstart = flags((ROOT / "quickstart.py").read_text(encoding="utf-8"))
    benchmarks = flags("\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")))
    known = {f"--{name}" for name in SCRIPT_OPTIONS | TOOLS} | quickstart | {"--help"} | OTHER_PROGRAMS
    if page.name == "performance.md":
        known |= benchmarks
    if page.name == "gen_img.md":
        known |= set(LINE_OPTIONS)
    prose = re.sub(r"<!--.*?-->|`-- `|`--`", "", page.read_text(encoding="utf-8"))
    assert flags(prose) <= known


@pytest.mark.parametrize("script", [text["prog"] for _, text in TOOL_SCRIPTS])
def test_the_guide_that_a_script_names_tells_of_it(script: str):
    found = re.search(r"Guide: (docs/\w+\.md)\.", (ROOT / script).read_text(encoding="utf-8"))
    assert found and f"`{script}`" in (ROOT / found[1]).read_text(encoding="utf-8")


@pytest.mark.parametrize(("guide", "options"), [(GUIDE, OPTIONS), (FULL_GUIDE, FULL)], ids=["lora", "whole model"])
def test_a_guide_lists_what_is_not_available_yet_and_recommends_none_of_it(guide: str, options: dict[str, Any]):
    later = {f"--{name}" for name, option in options.items() if option.declared.later}
    listed = section("Not available yet", guide)
    assert flags(listed) == later
    assert not flags(guide.replace(listed, "")) & later


def test_the_guide_of_whole_models_names_every_option_that_only_they_have():
    older = {"skip_latents_validity_check", "use_safetensors"}  # names that other options have replaced
    assert {f"--{name}" for name in set(FULL) - set(OPTIONS) - older} <= flags(FULL_GUIDE)


def test_the_guides_of_u_nets_name_every_option_that_only_their_scripts_have():
    kinds = (SdNetworkOptions, FineTuneOptions, DreamBoothOptions, SdxlNetworkOptions, SdxlFullOptions)
    own = {name for kind in kinds for name in options_of(kind)} - set(OPTIONS) - set(FULL)
    older = {"diffusers_xformers"}  # a name that another option has replaced
    named = flags(SD_GUIDE + SDXL_GUIDE)
    assert {f"--{name}" for name in (own | {*NOISE, *SCHEDULE_AND_WEIGHTS}) - older} <= named
    later = {f"--{name}" for kind in kinds for name, option in options_of(kind).items() if option.declared.later}
    assert not named & later


def test_the_table_of_network_args_of_u_nets_is_complete():
    table = rows(section("What the adapters cover", SD_GUIDE))
    names = {name for row in table for name in re.findall(r"`([a-z_]+)`", row[0])}
    assert names >= set(network_arg_parsers(LAYOUTS["sdxl"]))


def test_counts_of_blocks_in_the_guides_are_those_of_the_code():
    sd, sdxl = LAYOUTS["sd1"], LAYOUTS["sdxl"]
    assert f"{sd.num_blocks} numbers (SDXL {sdxl.num_blocks})" in SD_GUIDE
    assert f"{sd.num_down} numbers (SDXL {sdxl.num_down})" in SD_GUIDE
    assert f"`--block_lr` | {sdxl.num_blocks} rates" in SDXL_GUIDE
    with_adapters = [block for block in range(sdxl.num_blocks) if sdxl.pattern(block)]
    assert set(range(sdxl.num_blocks)) - set(with_adapters) == {0, 1, 22} and "all but 0, 1 and 22" in SDXL_GUIDE


def test_the_guide_lists_every_sampler():
    assert {f"`{name}`" for name in SAMPLERS} <= set(re.findall(r"`[\w+]+`", section("Sample pictures", SD_GUIDE)))


def test_the_table_of_network_args_is_complete():
    names = [row[0].strip("`") for row in rows(section("A rank for each kind of layer"))]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(Sd3NetworkArgs))


def test_defaults_in_the_guide_are_those_of_the_options():
    words = {None: "not set", False: "off", "": "AdamW"}
    listed = {row[0].strip("`-"): row[1] for row in rows(section("Options that matter"))}
    assert len(listed) > 10
    for name, default in listed.items():
        value = OPTIONS[name].default
        if name == "network_dim":
            assert (value, default) == (None, "4")
        else:
            assert default == words.get(value, f"{value:g}" if isinstance(value, float) else str(value)), name


def test_exit_codes_in_the_guide_are_those_of_the_errors():
    codes = {int(row[0]) for row in rows(section("Errors and exit codes"))}
    used = {kind.exit_code for kind in UserError.__subclasses__()}
    assert codes == {0, 1, INTERRUPTED, *used}


def test_files_of_a_state_are_those_that_the_page_lists():
    listed = {name for row in rows(section("States", SAVING)) for name in re.findall(r"`([\w.]+)`", row[0])}
    assert listed == {WEIGHTS, EMA, TRAINING, PROGRESS, MANIFEST}


def test_names_of_saved_files_in_the_page_are_those_of_the_code():
    for name in ("my_lora", None):
        assert f"`{epoch_name(name, '.safetensors' if name else '', 2)}`" in SAVING
        assert f"`{step_name(name, '.safetensors' if name else '', 100)}`" in SAVING
        assert f"`{last_name(name, '.safetensors' if name else '')}`" in SAVING
    for name in (f"my_lora{STATE}", f"my_lora{AVERAGE}.safetensors", CLAIM):
        assert f"| `{name}` |" in SAVING


def test_numbers_in_the_prose_are_those_of_the_code():
    assert f"`--max_bad_steps` ({OPTIONS['max_bad_steps'].default})" in SAVING
    first, second, third, last = (f"{timestep:.0f}" for timestep in validation_timesteps(0, 1000))
    assert f"({first}, {second}, {third} and {last} where all are trained)" in section("Validation")


def test_extras_of_the_set_up_are_those_that_the_page_lists():
    page = (ROOT / "docs" / "setup.md").read_text(encoding="utf-8")
    assert {row[0].strip("`") for row in rows(section("Extras", page))} == set(EXTRAS)


def test_prompts_in_the_guide_are_read_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    found = re.search(r"<!-- prompts -->\n\n```text\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    path = tmp_path / "my_prompts.txt"
    path.write_text(found[1], encoding="utf-8")
    first, second = load_prompts(path)
    assert (first.width, first.height, first.seed, first.sample_steps, first.scale) == (1024, 1024, 42, 28, 4.5)
    assert (second.width, second.height, second.sample_steps, second.scale) == (832, 1216, 40, 5.0)
    assert second.negative_prompt == "blurry, text"
    assert not caplog.records


def test_step_arithmetic_in_the_pages_adds_up_in_the_words_of_a_run():
    lines = [line for page in PAGES for line in re.findall(r"(\d+ images? x .*)", page.read_text(encoding="utf-8"))]
    assert len(lines) >= 2
    for line in lines:
        images, repeats, samples, batches, size, accumulation, processes, steps, epochs, total = map(
            int, re.findall(r"\d+", line)
        )
        assert samples == images * repeats
        assert -(-samples // size) <= batches <= samples
        count = StepCount(
            images=images,
            repeats=repeats,
            samples=images * repeats,
            batch_sizes=(size,),
            accumulation=accumulation,
            num_processes=processes,
            batches_per_epoch=batches,
            batches_per_process=-(-batches // processes),
            steps_per_epoch=-(-batches // (processes * accumulation)),
            epochs=epochs,
            max_steps=steps * epochs,
        )
        assert (count.describe(), total) == (line, steps * epochs)


@pytest.mark.parametrize("page", ["README.md", "docs/train_network.md", "docs/sdxl.md"])
def test_the_dataset_file_of_a_page_is_right(page: str):
    found = re.search(r"```toml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    (spec,) = parse_dataset_config(toml.loads(found[1]), page, {})
    assert spec.enable_bucket and spec.subsets[0].num_repeats == 10


def test_links_to_a_heading_find_it():
    problems = []
    for page in PAGES:
        for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            target = page.parent / path if path else page
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in {slug(heading) for heading in headings}:
                problems.append(f"{page.name}: {path}#{anchor}")
    assert not problems, "\n" + "\n".join(problems)


def slug(heading: str) -> str:
    """The anchor that code hosts make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
