"""Convert a LoRA for SD3 or SD3.5 between the layout of ComfyUI and Forge ("kohya") and that of diffusers.

python tools/convert_sd3_lora.py my_lora.safetensors my_lora_diffusers.safetensors --to diffusers
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.errors import CheckpointError, OptionError, UserError
from library.tensorfile import TensorHeader, read_header, read_tensors, write_tensors


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="convert_sd3_lora.py",
        description="Convert a LoRA for SD3 or SD3.5 between the layouts of ComfyUI/Forge (kohya) and diffusers.",
        epilog="example: python tools/convert_sd3_lora.py my_lora.safetensors for_diffusers.safetensors --to diffusers",
    )
    parser.add_argument("source", type=Path, help="The LoRA, a .safetensors file of either layout.")
    parser.add_argument("target", type=Path, help="The file to write.")
    parser.add_argument("--to", required=True, choices=("diffusers", "kohya"), help="Layout of the file to write.")
    parser.add_argument(
        "--fold_alpha",
        action="store_true",
        help="Write no alpha tensors: the strength goes into the weights, for tools that refuse a file with alpha "
        "(A1111 with SD3). The diffusers layout is always written so.",
    )
    return parser


def convert(source: Path, target: Path, *, to: str, fold: bool = False) -> str:
    """Convert a file.

    Args:
        source: The LoRA.
        target: The file to write; metadata is kept, hashes of the old content are not.
        to: "diffusers" or "kohya".
        fold: Write no alpha tensors.

    Returns:
        What was done, in one line.

    Raises:
        UserError: The file cannot be read or written, or is no LoRA for SD3.
    """
    from library.families.lora_layout import fold_alpha
    from library.families.sd3.lora_format import Conversion, diffusers_to_kohya, is_kohya, kohya_to_diffusers

    header = read_header(source, "LoRA file")
    if target.suffix != ".safetensors":
        raise OptionError(f"{target}: the file to write must end in .safetensors.")
    kohya = is_kohya(header.tensors)
    if to == "diffusers" and not kohya:
        raise CheckpointError(f"{source} is not of the kohya layout: it has no lora_unet_ or lora_te tensors.")
    if to == "kohya" and kohya and not fold:
        raise CheckpointError(f"{source} has the kohya layout already. Give --fold_alpha to take its alpha away.")
    tensors = read_tensors(header)
    if to == "diffusers":
        result = kohya_to_diffusers(tensors)
    else:
        result = Conversion(tensors) if kohya else diffusers_to_kohya(tensors, header.metadata)
    content = fold_alpha(result.tensors) if fold and to == "kohya" else result.tensors
    write_tensors(target, content, _kept_metadata(header))
    dropped = f", {len(result.dropped)} T5 modules left out (diffusers cannot load them)" if result.dropped else ""
    return f"{target}: {len(content)} tensors written{dropped}"


def _kept_metadata(header: TensorHeader) -> dict[str, str]:
    """Metadata without what is untrue of the new content: its hashes and the alpha that was noted."""
    stale = ("sshs_", "lora_adapter_metadata", "modelspec.hash_sha256")
    return {key: value for key, value in header.metadata.items() if not key.startswith(stale)}


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        if arguments.target.exists() and arguments.target.samefile(arguments.source):
            raise OptionError(f"{arguments.source} is source and target at once. Give another name for the target.")
        print(convert(arguments.source, arguments.target, to=arguments.to, fold=arguments.fold_alpha))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
