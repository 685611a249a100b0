"""Write docs/options.md and docs/tool_options.md from the declared options: `python -m tools.make_options_doc`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.families.sd.options import (
    DREAM_BOOTH_SCRIPT,
    FINE_TUNE_SCRIPT,
    SD_NETWORK_SCRIPT,
    DreamBoothOptions,
    FineTuneOptions,
    SdNetworkOptions,
)
from library.families.sd3.options import FULL_SCRIPT, NETWORK_SCRIPT, Sd3FullOptions, Sd3NetworkOptions
from library.families.sdxl.options import (
    SDXL_FULL_SCRIPT,
    SDXL_NETWORK_SCRIPT,
    SdxlFullOptions,
    SdxlNetworkOptions,
)
from library.options.groups import ConsoleOptions
from library.options.groups.scripts import NetworkScriptOptions
from library.options.groups.tools import FluxOptions
from library.options.page import Script, options_page, tools_page
from library.options.spec import ConfigOptions, group_classes
from library.preparing.options.captioning import (
    CAPTIONING_SCRIPT,
    GIT_CAPTIONING_SCRIPT,
    CaptioningOptions,
    GitCaptioningOptions,
)
from library.preparing.options.file_metadata import SHOW_METADATA_SCRIPT, ShowMetadataOptions
from library.preparing.options.metadata import (
    CLEAN_SCRIPT,
    MERGE_CAPTIONS_SCRIPT,
    MERGE_TAGS_SCRIPT,
    CleanOptions,
    MergeCaptionsOptions,
    MergeTagsOptions,
)
from library.preparing.options.resizing import RESIZING_SCRIPT, ResizingOptions
from library.preparing.options.tagging import TAGGING_SCRIPT, TaggingOptions
from tools.bucket_options import BUCKET_LATENTS_SCRIPT, BucketLatentsOptions
from tools.cache_options import LATENT_CACHING_SCRIPT, TEXT_CACHING_SCRIPT, LatentCachingOptions, TextCachingOptions
from tools.check_options import CHECK_SCRIPT, CheckOptions
from tools.preview_options import PREVIEW_SCRIPT, PreviewToolOptions

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "options.md"
TOOLS_PAGE = DOCS / "tool_options.md"
SCRIPTS: tuple[Script, ...] = (
    (Sd3NetworkOptions, NETWORK_SCRIPT),
    (Sd3FullOptions, FULL_SCRIPT),
    (SdxlNetworkOptions, SDXL_NETWORK_SCRIPT),
    (SdxlFullOptions, SDXL_FULL_SCRIPT),
    (SdNetworkOptions, SD_NETWORK_SCRIPT),
    (FineTuneOptions, FINE_TUNE_SCRIPT),
    (DreamBoothOptions, DREAM_BOOTH_SCRIPT),
)
TOOLS: tuple[Script, ...] = (
    (ResizingOptions, RESIZING_SCRIPT),
    (CaptioningOptions, CAPTIONING_SCRIPT),
    (GitCaptioningOptions, GIT_CAPTIONING_SCRIPT),
    (TaggingOptions, TAGGING_SCRIPT),
    (MergeCaptionsOptions, MERGE_CAPTIONS_SCRIPT),
    (MergeTagsOptions, MERGE_TAGS_SCRIPT),
    (CleanOptions, CLEAN_SCRIPT),
    (CheckOptions, CHECK_SCRIPT),
    (PreviewToolOptions, PREVIEW_SCRIPT),
    (LatentCachingOptions, LATENT_CACHING_SCRIPT),
    (TextCachingOptions, TEXT_CACHING_SCRIPT),
    (BucketLatentsOptions, BUCKET_LATENTS_SCRIPT),
    (ShowMetadataOptions, SHOW_METADATA_SCRIPT),
)
OF_TRAINING = (
    *(ConfigOptions, ConsoleOptions, FluxOptions),
    *(group for options, _ in SCRIPTS for group in group_classes(options).values()),
)
NAMES = {
    "SD3": ("sd3_train_network.py", "sd3_train.py"),
    "SDXL": ("sdxl_train_network.py", "sdxl_train.py"),
    "SD": ("train_network.py", "fine_tune.py", "train_db.py"),
    "networks": ("sd3_train_network.py", "sdxl_train_network.py", "train_network.py"),
    "whole models": ("sd3_train.py", "sdxl_train.py", "fine_tune.py", "train_db.py"),
}


def current_page() -> str:
    """The page as it should be."""
    return options_page(SCRIPTS, NAMES)


def current_tools_page() -> str:
    """The page of the tools as it should be."""
    return tools_page(TOOLS, OF_TRAINING, NetworkScriptOptions)


if __name__ == "__main__":
    PAGE.write_text(current_page(), encoding="utf-8", newline="\n")
    TOOLS_PAGE.write_text(current_tools_page(), encoding="utf-8", newline="\n")
