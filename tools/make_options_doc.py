"""Write docs/options.md and docs/tool_options.md from the declared options: `python -m tools.make_options_doc`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.families.sd.options import (
    DREAM_BOOTH_SCRIPT,
    FINE_TUNE_SCRIPT,
    SD_INVERSION_SCRIPT,
    SD_NETWORK_SCRIPT,
    DreamBoothOptions,
    FineTuneOptions,
    SdInversionOptions,
    SdNetworkOptions,
)
from library.families.sd3.options import (
    FULL_SCRIPT,
    INVERSION_SCRIPT,
    NETWORK_SCRIPT,
    Sd3FullOptions,
    Sd3InversionOptions,
    Sd3NetworkOptions,
)
from library.families.sdxl.options import (
    SDXL_FULL_SCRIPT,
    SDXL_INVERSION_SCRIPT,
    SDXL_LLLITE_SCRIPT,
    SDXL_NETWORK_SCRIPT,
    SdxlFullOptions,
    SdxlInversionOptions,
    SdxlLlliteOptions,
    SdxlNetworkOptions,
)
from library.generation.options.scripts import (
    GENERATION_SCRIPT,
    SD3_GENERATION_SCRIPT,
    SDXL_GENERATION_SCRIPT,
    GenerationOptions,
    Sd3GenerationOptions,
    SdxlGenerationOptions,
)
from library.loras.options.converting import CONVERT_LORA_SCRIPT, ConvertLoraOptions
from library.loras.options.extracting import EXTRACT_LORA_SCRIPT, ExtractLoraOptions
from library.loras.options.looking import CHECK_LORA_SCRIPT, CheckLoraOptions
from library.loras.options.merging import (
    MERGE_LORA_SCRIPT,
    SD3_MERGE_LORA_SCRIPT,
    SDXL_MERGE_LORA_SCRIPT,
    SVD_MERGE_LORA_SCRIPT,
    FamilyMergeLoraOptions,
    MergeLoraOptions,
    SvdMergeLoraOptions,
)
from library.loras.options.resizing import (
    CUT_DYLORA_SCRIPT,
    RESIZE_LORA_SCRIPT,
    CutDyloraOptions,
    ResizeLoraOptions,
)
from library.model_files.options.converting import CONVERTING_SCRIPT, ConvertingOptions
from library.model_files.options.merging import MERGING_SCRIPT, MergingOptions
from library.model_files.options.sd3_parts import SD3_PARTS_SCRIPT, Sd3PartsOptions
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
from tools.sweep_options import SWEEP_SCRIPT, SweepOptions

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "options.md"
TOOLS_PAGE = DOCS / "tool_options.md"
SCRIPTS: tuple[Script, ...] = (
    (Sd3NetworkOptions, NETWORK_SCRIPT),
    (Sd3FullOptions, FULL_SCRIPT),
    (Sd3InversionOptions, INVERSION_SCRIPT),
    (SdxlNetworkOptions, SDXL_NETWORK_SCRIPT),
    (SdxlFullOptions, SDXL_FULL_SCRIPT),
    (SdxlInversionOptions, SDXL_INVERSION_SCRIPT),
    (SdxlLlliteOptions, SDXL_LLLITE_SCRIPT),
    (SdNetworkOptions, SD_NETWORK_SCRIPT),
    (FineTuneOptions, FINE_TUNE_SCRIPT),
    (DreamBoothOptions, DREAM_BOOTH_SCRIPT),
    (SdInversionOptions, SD_INVERSION_SCRIPT),
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
    (SweepOptions, SWEEP_SCRIPT),
    (ConvertingOptions, CONVERTING_SCRIPT),
    (MergingOptions, MERGING_SCRIPT),
    (Sd3PartsOptions, SD3_PARTS_SCRIPT),
    (ConvertLoraOptions, CONVERT_LORA_SCRIPT),
    (MergeLoraOptions, MERGE_LORA_SCRIPT),
    (FamilyMergeLoraOptions, SDXL_MERGE_LORA_SCRIPT),
    (FamilyMergeLoraOptions, SD3_MERGE_LORA_SCRIPT),
    (SvdMergeLoraOptions, SVD_MERGE_LORA_SCRIPT),
    (ResizeLoraOptions, RESIZE_LORA_SCRIPT),
    (ExtractLoraOptions, EXTRACT_LORA_SCRIPT),
    (CutDyloraOptions, CUT_DYLORA_SCRIPT),
    (CheckLoraOptions, CHECK_LORA_SCRIPT),
    (GenerationOptions, GENERATION_SCRIPT),
    (SdxlGenerationOptions, SDXL_GENERATION_SCRIPT),
    (Sd3GenerationOptions, SD3_GENERATION_SCRIPT),
)
OF_TRAINING = (
    *(ConfigOptions, ConsoleOptions, FluxOptions),
    *(group for options, _ in SCRIPTS for group in group_classes(options).values()),
)
NAMES = {
    "SD3": ("sd3_train_network.py", "sd3_train.py", "sd3_train_textual_inversion.py"),
    "SDXL": (
        "sdxl_train_network.py",
        "sdxl_train.py",
        "sdxl_train_textual_inversion.py",
        "sdxl_train_control_net_lllite.py",
    ),
    "SD": ("train_network.py", "fine_tune.py", "train_db.py", "train_textual_inversion.py"),
    "networks": ("sd3_train_network.py", "sdxl_train_network.py", "train_network.py"),
    "textual inversion": (
        "sd3_train_textual_inversion.py",
        "sdxl_train_textual_inversion.py",
        "train_textual_inversion.py",
    ),
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
