"""Encode the pictures of a metadata file once, and note the size each is trained at. Guide: docs/prepare_pictures.md.

python finetune/prepare_buckets_latents.py pictures meta.json meta_lat.json model.safetensors --max_resolution=512,512
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.log import get_logger
from library.options.entry import run_script
from library.preparing.metadata.metadata_files import (
    Entries,
    check_output,
    read_metadata_file,
    refuse_loss,
    write_metadata_file,
)
from library.preparing.outcome import raise_faults
from library.training.bucket_run import SIZE_KEYS, BucketCacheRun, buckets_in_words, entries_with_sizes
from tools.bucket_options import BUCKET_LATENTS_SCRIPT, BucketLatentsOptions, caching_options, training_flags
from tools.model_family import choose_family

if TYPE_CHECKING:
    from library.families.base import ModelFamily

logger = get_logger(__name__)


class BucketLatentTool(BucketCacheRun):
    """Works for the family that the options or the model file name.

    Args:
        given: Options of the script.
        entries: Of its IN_JSON.
        out_json: What is written at the end, by the first process.
    """

    def __init__(self, given: BucketLatentsOptions, entries: Entries, out_json: Path) -> None:
        super().__init__(caching_options(given))
        self.given, self.entries, self.out_json = given, entries, out_json

    def make_family(self) -> ModelFamily:
        """See `choose_family`; from here on the options are those of the family."""
        family, self.options = choose_family(self.options)
        return family

    def plan_run(self) -> None:
        """As for every run of its kind; and what OUT_JSON holds already must not be lost."""
        super().plan_run()
        files = self.given.files
        if files.in_json is not None and os.path.realpath(files.in_json) != os.path.realpath(self.out_json):
            written = {name: dict.fromkeys(SIZE_KEYS) | values for name, values in self.new_entries().items()}
            refuse_loss(self.out_json, written, "put that into IN_JSON")

    def new_entries(self) -> Entries:
        """What is written."""
        is_full = self.given.files.full_path
        return dict(entries_with_sizes(self.entries.items(), self.fitted(), is_full_path=is_full))

    def write(self) -> None:
        """Write the metadata, and tell what a training has to be given."""
        entries, fitted = self.new_entries(), self.fitted()
        write_metadata_file(self.out_json, entries)
        sizes = buckets_in_words(fitted.values())
        logger.info("%s: %d entries, %d with train_resolution (%s)", self.out_json, len(entries), len(fitted), sizes)
        if not self.faults:
            without_captions = ["--missing_caption=allow", "--empty_caption=allow"] if self.needs_no_caption else []
            flags = [*training_flags(self.given, self.out_json), *without_captions]
            logger.info("train with these caches by: %s", shlex.join(flags))


def prepare(options: BucketLatentsOptions) -> None:
    """From options to caches and a metadata file.

    Raises:
        DatasetError: The data is wrong; or pictures could not be used, when all others are done.
        CheckpointError: A model file is wrong.
        OutputError: Files cannot be written.
    """
    in_json, out_json = options.files.in_json, options.files.out_json
    assert in_json is not None and out_json is not None  # both are needed options
    check_output(out_json)
    run = BucketLatentTool(options, read_metadata_file(in_json, "IN_JSON"), out_json)
    run.run()
    if run.accelerator.is_main_process:
        run.write()
    raise_faults(run.faults)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(BucketLatentsOptions, prepare, argv=argv, **BUCKET_LATENTS_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
