"""A run of the tagger: find pictures and model, tag what is not tagged yet, tell what was done."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from library.data.files.headers import read_header
from library.data.files.text_files import is_whole
from library.data.findings import Fault
from library.data.problems import counted, first_names
from library.errors import DatasetError
from library.log import get_logger
from library.preparing.decode_ahead import decoded_batches
from library.preparing.options.tagging import TaggingOptions
from library.preparing.outcome import Outcome
from library.preparing.pictures import Pictures, find_pictures
from library.preparing.shares import Shares
from library.preparing.tagging.choosing import ScoredTag, TagChooser, TagRules
from library.preparing.tagging.journal import Found, Journal
from library.preparing.tagging.labels import Label, read_labels
from library.preparing.tagging.metadata_output import merged, read_existing, write_entries
from library.preparing.tagging.model_files import TaggerFiles, TaggerPlace, find_tagger
from library.preparing.tagging.onnx_model import OnnxTagger, load_tagger, onnxruntime
from library.preparing.tagging.pixels import PixelForm, read_pixels
from library.preparing.tagging.rules import rules_of, warn_of_limits
from library.preparing.tagging.text_output import TextOutput
from library.preparing.text_writing import TextWriter

logger = get_logger(__name__)


class Tagged(NamedTuple):
    """A picture, its size as it is seen (only where a metadata file is written), and its tags in their order."""

    path: Path
    size: tuple[int, int] | None
    tags: tuple[str, ...]


Put = Callable[[Sequence[Tagged]], None]


def tag_pictures(options: TaggingOptions) -> None:
    """Tag the pictures of a folder.

    Raises:
        UserError: What is wrong. Of broken pictures it is told at the end, when all others are done.
    """
    folder = options.pictures.train_data_dir
    assert folder is not None  # it is required
    shares = Shares.of_launch()
    pictures = find_pictures(folder, is_recursive=options.pictures.recursive)
    for fault in pictures.left_out:
        logger.warning("%s", fault)
    existing = _existing(options)
    onnxruntime()
    files = _files_for_all(options, shares)
    labels = read_labels(files.table)
    rules = rules_of(options)
    tagging = Tagging(options, files, labels, TagChooser(labels, rules), shares)
    warn_of_limits(options, files.table, labels, tagging.chooser)
    if options.output.output_path is None:
        _into_text_files(tagging, pictures)
    else:
        _into_metadata_file(tagging, pictures, options.output.output_path, existing, _identity(files, rules))
    tagging.tell()


def _existing(options: TaggingOptions) -> dict[str, dict[str, object]]:
    """What the metadata file holds that tags are added to."""
    path = options.output.output_path
    return read_existing(path) if path is not None and options.output.append_tags and path.exists() else {}


def _files_for_all(options: TaggingOptions, shares: Shares) -> TaggerFiles:
    """The files of the tagger; one process downloads them, where that is needed."""
    place = TaggerPlace(options.tagger.repo_id, options.tagger.model_dir, "repo_id" in options.given)
    if shares.is_first:
        find_tagger(place, is_forced=options.tagger.force_download)
    shares.gathered(None)
    return find_tagger(place)


def _identity(files: TaggerFiles, rules: TagRules) -> str:
    """Another for every other model and every other set of rules."""
    marks = [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return hashlib.sha256(json.dumps([marks, repr(rules)]).encode()).hexdigest()[:16]


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
        self.outcome.tell("tags", self.shares)


def _read(path: Path, form: PixelForm, with_size: bool) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Pixels of a picture, and its size; raises DatasetError where it is broken."""
    pixels = read_pixels(path, form)
    return pixels, tuple(read_header(path).size) if with_size else None  # type: ignore[return-value]


def _with_scores(tags: Iterable[ScoredTag]) -> str:
    return ", ".join(f"{tag.text} {tag.score:.3f}" for tag in tags) or "no tags"


def _into_text_files(tagging: Tagging, pictures: Pictures) -> None:
    settings, separator = tagging.options.output, tagging.options.choice.caption_separator
    outcome, shares = tagging.outcome, tagging.shares
    with TextWriter() as writer:
        output = TextOutput(
            writer,
            settings.caption_extension,
            separator,
            is_appended=settings.append_tags,
            is_overwritten=settings.overwrite,
        )
        faults = output.faults(pictures.paths)
        own = [path for path in shares.own(pictures.paths) if path not in faults]
        kept = output.kept(own)
        outcome.faults += faults.values()
        outcome.kept += len(kept)
        _tell_empty(shares.gathered(sum(map(output.is_empty, kept))))

        def put(batch: Sequence[Tagged]) -> None:
            for picture in batch:
                try:
                    is_written = output.put(picture.path, picture.tags)
                except DatasetError as error:
                    problem = str(error).removeprefix(f"{picture.path} ").removesuffix(".")
                    outcome.faults.append(Fault(picture.path, problem))
                    continue
                outcome.written += is_written
                outcome.kept += not is_written

        passed = set(kept)
        tagging.tag([path for path in own if path not in passed], put, with_size=False)


def _tell_empty(numbers: Sequence[int]) -> None:
    if sum(numbers):
        logger.info("text files that stay empty: %d; --append_tags or --overwrite fills them", sum(numbers))


def _into_metadata_file(
    tagging: Tagging, pictures: Pictures, file: Path, existing: Mapping[str, dict[str, object]], identity: str
) -> None:
    outcome, shares = tagging.outcome, tagging.shares
    names = dict(zip(pictures.paths, pictures.names, strict=True))
    odd = [path for path, name in names.items() if not is_whole(name)]
    outcome.faults += [Fault(path, "has a name that is no UTF-8 and cannot be written down; rename it") for path in odd]
    own = [path for path in shares.own(pictures.paths) if is_whole(names[path])]
    with Journal(file, identity, shares.rank) as journal:
        found = journal.read({names[path]: path for path in own})
        if found:
            logger.info("%s: %s were tagged before this run was stopped", journal.path, counted(len(found), "picture"))
        outcome.kept = len(found)
        for name, old in found.items():
            tagging.note(name, old.tags)

        def put(batch: Sequence[Tagged]) -> None:
            new = [(names[path], path, Found(tags, size or (0, 0))) for path, size, tags in batch]
            journal.add(new)
            found.update((name, item) for name, _, item in new)
            outcome.written += len(batch)

        tagging.tag([path for path in own if names[path] not in found], put, with_size=True)
    everything = {name: item for part in shares.gathered(found) for name, item in part.items()}
    if shares.is_first and everything:
        separator = tagging.options.choice.caption_separator
        write_entries(file, merged(file, existing, pictures, everything, separator))
        logger.info("%s: %s", file, counted(len(everything), "picture"))
        journal.remove()
