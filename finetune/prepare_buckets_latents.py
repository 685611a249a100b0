"""Encode the pictures of a metadata file once, and note the size each is trained at. Guide: docs/prepare_pictures.md.

python finetune/prepare_buckets_latents.py pictures meta.json meta_lat.json model.safetensors --max_resolution=512,512
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.checkpoint.weights import open_weights
from library.data.problems import counted
from library.errors import CheckpointError, OptionError
from library.families.hub_model import is_hub_name
from library.log import get_logger
from library.options.entry import run_script
from library.preparing.metadata.metadata_files import Entries
from library.preparing.metadata.rewriting import Rewriting
from library.preparing.outcome import raise_faults
from library.training.bucket_run import BucketCacheRun, buckets_in_words, entries_with_sizes
from tools.bucket_options import (
    BUCKET_LATENTS_SCRIPT,
    BucketLatentsOptions,
    BucketModelOptions,
    caching_options,
    training_flags,
)
from tools.model_family import choose_family

if TYPE_CHECKING:
    from library.families.base import ModelFamily

logger = get_logger(__name__)


class BucketLatentTool(BucketCacheRun):
    """Works for the family that the options or the model file name.

    Args:
        given: Options of the script.
        rewriting: From its IN_JSON to its OUT_JSON, which the first process writes at the end.
    """

    def __init__(self, given: BucketLatentsOptions, rewriting: Rewriting) -> None:
        super().__init__(caching_options(given))
        self.given, self.rewriting, self.entries = given, rewriting, rewriting.read()

    def make_family(self) -> ModelFamily:
        """See `choose_family`; from here on the options are those of the family."""
        family, self.options = choose_family(self.options)
        return family

    def plan_run(self) -> None:
        """As for every run of its kind; and what OUT_JSON holds already must not be lost."""
        super().plan_run()
        self.rewriting.refuse_loss(self.new_entries())

    def new_entries(self) -> Entries:
        """What is written."""
        is_full = self.given.files.full_path
        return dict(entries_with_sizes(self.entries.items(), self.fitted(), is_full_path=is_full))

    def write(self) -> None:
        """Write the metadata, and tell what a training has to be given."""
        is_changed = self._read_again()
        entries = self.new_entries()
        fitted = {name: one for name, one in self.fitted().items() if name in self.entries}
        self.rewriting.write(entries)
        out_json, sizes = self.given.files.out_json, buckets_in_words(fitted.values())
        told = counted(len(entries), "entry", "entries")
        logger.info("%s: %s, %d with train_resolution (%s)", out_json, told, len(fitted), sizes)
        if self.faults:
            what = "a training refuses the entries of what was passed over (%s): remove them, or give %s."
            logger.warning(what, counted(len(self.faults), "picture"), "--on_bad_file=skip")
        if not is_changed:
            without_captions = ["--missing_caption=allow", "--empty_caption=allow"] if self.needs_no_caption else []
            flags = [*training_flags(self.given, out_json), *without_captions]
            logger.info("train with these caches by: %s", shlex.join(flags))

    def _read_again(self) -> bool:
        """Take IN_JSON as it is now, since a person may have corrected it meanwhile; whether that is so."""
        before, self.entries = self.entries, self.rewriting.read()
        if self.entries == before:
            return False
        again = "Give the same command again for what is new in it: valid caches are kept"
        logger.warning("%s was changed while this ran, and is taken as it is now. %s.", self.given.files.in_json, again)
        return True


def prepare(options: BucketLatentsOptions) -> None:
    """From options to caches and a metadata file.

    Raises:
        DatasetError: The data is wrong; or pictures could not be used, when all others are done.
        CheckpointError: A model file is wrong.
        OutputError: Files cannot be written.
    """
    _refuse_missing(options.model)
    in_json, out_json = options.files.in_json, options.files.out_json
    assert in_json is not None and out_json is not None  # both are needed options
    run = BucketLatentTool(options, Rewriting(in_json, "IN_JSON", out_json, is_overwrite=options.files.overwrite))
    try:
        run.run()
    except (CheckpointError, OptionError) as error:  # told by what all scripts share, in the name of their option
        raise type(error)(str(error).replace("--pretrained_model_name_or_path", "MODEL_NAME_OR_PATH")) from None
    if run.accelerator.is_main_process:
        run.write()
    raise_faults(run.faults)


def _refuse_missing(model: BucketModelOptions) -> None:
    """Refuse model files that are not there, by the names they have here, before pictures are looked at.

    Raises:
        CheckpointError: One is.
    """
    for name, given in (("MODEL_NAME_OR_PATH", model.model_name_or_path), ("--vae", model.vae)):
        if given and not Path(given).exists() and not is_hub_name(Path(given)):
            open_weights(Path(given), name)  # says what there is instead


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(BucketLatentsOptions, prepare, argv=argv, **BUCKET_LATENTS_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
