"""The loop of the tagger: pictures are decoded, the model scores a batch, and whoever asked gets its tags."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from library.data.files.headers import read_header
from library.data.findings import Fault
from library.data.problems import counted, first_names
from library.log import get_logger
from library.preparing.decode_ahead import decoded_batches
from library.preparing.options.tagging import TaggingOptions
from library.preparing.outcome import Outcome
from library.preparing.shares import Shares
from library.preparing.tagging.choosing import ScoredTag, TagChooser
from library.preparing.tagging.labels import Label
from library.preparing.tagging.model_files import TaggerFiles
from library.preparing.tagging.onnx_model import OnnxTagger, load_tagger
from library.preparing.tagging.pixels import PixelForm, read_pixels

logger = get_logger(__name__)


class Tagged(NamedTuple):
    """A picture, its size as it is seen (only where a metadata file is written), and its tags in their order."""

    path: Path
    size: tuple[int, int] | None
    tags: tuple[str, ...]


Put = Callable[[Sequence[Tagged]], None]


@dataclass
class Tagging:
    """Tags pictures and keeps count.

    Attributes:
        options: What was asked for.
        files: Of the model.
        labels: What its scores are about.
        chooser: Makes tags of scores.
        shares: Of the processes.
        outcome: What this process has done.
        frequencies: How often it has given each tag.
        untagged: Names of pictures that have none.
    """

    options: TaggingOptions
    files: TaggerFiles
    labels: Sequence[Label]
    chooser: TagChooser
    shares: Shares
    outcome: Outcome = field(default_factory=Outcome)
    frequencies: Counter[str] = field(default_factory=Counter)
    untagged: list[str] = field(default_factory=list)

    def tag(self, paths: Sequence[Path], put: Put, *, with_size: bool) -> None:
        """Tag pictures, batch by batch. Broken ones become faults of the outcome.

        Args:
            paths: The pictures.
            put: Gets those of a batch.
            with_size: Find out how large they are.
        """
        if not paths:
            return
        tagger = self.load()
        tagger.check()
        start = time.perf_counter()
        with tqdm(total=len(paths), unit="picture", disable=not self.shares.is_first) as bar:

            def pass_over(fault: Fault) -> None:
                self.outcome.faults.append(fault)
                bar.update()

            batches = decoded_batches(
                paths,
                lambda path: _read(path, tagger.form, with_size),
                batch_size=tagger.batch or self.options.tagger.batch_size,
                num_threads=self.options.tagger.max_data_loader_n_workers,
                on_fault=pass_over,
            )
            for batch in batches:
                scores = tagger.scores([pixels for _, (pixels, _) in batch])
                put([self._tagged(path, size, row) for (path, (_, size)), row in zip(batch, scores, strict=True)])
                bar.update(len(batch))
        self.outcome.seconds = time.perf_counter() - start

    def load(self) -> OnnxTagger:
        """The model, and what is worth knowing of it in the log.

        Raises:
            CheckpointError: It is broken, or no tagger.
        """
        tagger = load_tagger(self.files, self.labels)
        logger.info("%s: %d tags; takes %s", self.files.model, len(self.labels), tagger.form)
        asked = self.options.tagger.batch_size
        if tagger.batch is not None and tagger.batch != asked:
            at_once = "one by one" if tagger.batch == 1 else f"{tagger.batch} at a time"
            logger.warning("The graph takes pictures %s: --batch_size %d has no effect", at_once, asked)
        return tagger

    def _tagged(self, path: Path, size: tuple[int, int] | None, scores: np.ndarray) -> Tagged:
        tags = self.chooser.choose(scores)
        if self.options.logging.debug:
            logger.info("%s: %s", path, _with_scores(tags))
        words = tuple(tag.text for tag in tags)
        self.note(path.name, words)
        return Tagged(path, size, words)

    def note(self, name: str, tags: Sequence[str]) -> None:
        """Count the tags of a picture."""
        self.frequencies.update(tags)
        if not tags:
            self.untagged.append(name)

    def tell(self) -> None:
        """Tell what all processes have done.

        Raises:
            DatasetError: Pictures were passed over.
        """
        parts = self.shares.gathered((self.frequencies, self.untagged))
        frequencies = sum((part[0] for part in parts), Counter[str]())
        untagged = [name for part in parts for name in part[1]]
        if untagged:
            logger.warning(
                "No tag for %s (%s): lower the thresholds, or write captions by hand, since a training asks for a text",
                counted(len(untagged), "picture"),
                first_names(untagged),
            )
        if self.options.choice.frequency_tags:
            logger.info("How often each tag was given:")
            for tag, number in sorted(frequencies.items(), key=lambda item: (-item[1], item[0])):
                logger.info("%s: %d", tag, number)
        self.outcome.tell("tags", self.shares, if_all_kept=self._advice_if_all_kept())

    def _advice_if_all_kept(self) -> str:
        output = self.options.output
        if output.append_tags or output.overwrite:
            return ""
        other = "--caption_extension" if output.output_path is None else "--output_path"
        return f"give --append_tags, --overwrite or another {other} to have tags written"


def _read(path: Path, form: PixelForm, with_size: bool) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Pixels of a picture, and its size; raises DatasetError where it is broken."""
    pixels = read_pixels(path, form)
    return pixels, read_header(path).size if with_size else None


def _with_scores(tags: Iterable[ScoredTag]) -> str:
    return ", ".join(f"{tag.text} {tag.score:.3f}" for tag in tags) or "no tags"
