"""Captioning a folder: what is there is kept, what is missing is written at once, broken pictures are listed last."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.findings import Fault
from library.data.pixels.images import load_image
from library.data.problems import counted, first_names
from library.device import check_device, device_words
from library.errors import EnvironmentFault
from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.preparing.captioning.feeding import one_ahead
from library.preparing.captioning.generating import WordChoice, caption_batch
from library.preparing.captioning.models import (
    Captioner,
    check_few_bits,
    chosen_device,
    chosen_dtype,
    find_captioner,
    load_captioner,
)
from library.preparing.captioning.prompting import Encode, Inputs, encoder, is_padded, least_size
from library.preparing.captioning.wording import finished_caption, without_writing
from library.preparing.decode_ahead import decoded_batches
from library.preparing.options.captioning import LONG_CAPTION, CaptioningOptions, GitCaptionFileOptions
from library.preparing.outcome import Outcome
from library.preparing.pictures import find_pictures, shared_text_files, text_file_of
from library.preparing.shares import Shares
from library.preparing.text_writing import TextWriter

if TYPE_CHECKING:
    from PIL.Image import Image

logger = get_logger(__name__)

_BLANK_BYTES = 64  # a file that is larger is not looked into: nobody keeps so many blanks


@dataclass(frozen=True)
class Work:
    """What a process has to do.

    Attributes:
        names: {picture: its path below the folder}, of those without a caption, in order.
        num_kept: Pictures whose caption is there.
        num_blank: How many of these are empty.
        faults: Pictures that cannot have a caption file.
    """

    names: dict[Path, str]
    num_kept: int = 0
    num_blank: int = 0
    faults: tuple[Fault, ...] = ()


@dataclass
class Progress:
    """What comes up on the way, beside the outcome.

    Attributes:
        outcome: Told at the end.
        num_cut: Captions that ended because they were as long as allowed.
    """

    outcome: Outcome = field(default_factory=Outcome)
    num_cut: int = 0


class CaptioningRun:
    """Captions the pictures of a folder, or of several processes' work its own part.

    Args:
        options: Of the script.
    """

    def __init__(self, options: CaptioningOptions) -> None:
        self.options = options
        self.shares = Shares.of_launch()

    def run(self) -> None:
        """Find, load, caption, tell.

        Raises:
            UserError: See the functions; pictures that were passed over are an error at the end.
        """
        work = self.plan()
        progress = Progress(Outcome(kept=work.num_kept, faults=list(work.faults)))
        if work.names:
            captioner = self.load()
            start = time.monotonic()
            try:
                self.caption(captioner, work.names, progress)
            except (RuntimeError, MemoryError) as error:
                raise self._no_memory(error) from None
            progress.outcome.seconds = time.monotonic() - start
        if progress.num_cut:
            logger.info(
                "%s ended because they were as long as --max_length allows", counted(progress.num_cut, "caption")
            )
        progress.outcome.tell("captions", self.shares)

    def plan(self) -> Work:
        """What this process has to do; it is logged.

        Raises:
            DatasetError: The folder cannot be read, or has no pictures.
        """
        folder = self.options.pictures
        assert folder.train_data_dir is not None  # the options need it
        pictures = find_pictures(folder.train_data_dir, is_recursive=folder.recursive)
        if pictures.left_out and self.shares.is_first:
            names = first_names([fault.path.name for fault in pictures.left_out])
            logger.warning("%s of types that cannot be read: %s", counted(len(pictures.left_out), "file"), names)
        own = self.shares.own(list(zip(pictures.paths, pictures.names, strict=True)))
        work = planned(own, self.options.files.extension, pictures.paths, is_anew=self.options.files.overwrite)
        share = f", in the first of {self.shares.count} processes" if self.shares.count > 1 else ""
        logger.info("%s to caption, %d have their file%s", counted(len(work.names), "picture"), work.num_kept, share)
        if work.num_blank:
            logger.info(
                "%s of them hold nothing and are kept so; delete them, or give --overwrite, to have captions written",
                counted(work.num_blank, "file"),
            )
        return work

    def load(self) -> Captioner:
        """The captioner that the options name; what can be told without its weights is told before they are read.

        Raises:
            UserError: It cannot be had.
        """
        import os

        chosen = self.options.captioner
        if chosen.device is not None:
            check_device(chosen.device, "--device")
        device = chosen_device(chosen.device, int(os.environ.get("LOCAL_RANK", "0") or 0))
        bits = 8 if chosen.load_in_8bit else 4 if chosen.load_in_4bit else None
        check_few_bits(bits, device)
        dtype = chosen_dtype(chosen.mixed_precision, device)
        if chosen.mixed_precision == "fp16" and device.type == "cpu":
            logger.warning("--mixed_precision fp16 has no effect on a CPU, which computes in float32 instead")
        found = find_captioner(chosen.model, chosen.prompt)
        encoder(found.kind, found.processor, found.prompt)  # what is missing for it is told before weights are read
        captioner = load_captioner(found, device=device, dtype=dtype, bits=bits)
        words = f"{bits} bits" if bits else str(dtype).removeprefix("torch.")
        logger.info("%s (%s) on %s, %s", found.name, found.kind.model_type, device_words(device), words)
        return captioner

    def caption(self, captioner: Captioner, names: dict[Path, str], progress: Progress) -> None:
        """Caption pictures and write their files, each as soon as its batch is done.

        Args:
            captioner: The model.
            names: {picture: its path below the folder}.
            progress: Counted on the way.

        Raises:
            OutputError: A file cannot be written.
        """
        from tqdm import tqdm

        reader = copy.deepcopy(captioner.processor.tokenizer)  # a tokenizer serves one thread at a time
        choice = word_choice(self.options, is_told=captioner.kind.is_told)
        bar = tqdm(total=len(names), desc="captions", unit=" pictures", disable=not self.shares.is_first)
        with bar, TextWriter() as writer:
            for batch, inputs in self._inputs(captioner, list(names), progress.outcome.faults):
                answers = caption_batch(captioner, inputs, [names[path] for path in batch], choice, reader)
                progress.num_cut += answers.num_cut
                for path, text in zip(batch, answers.texts, strict=True):
                    self._finish(path, text, writer, progress.outcome)
                bar.update(len(batch))

    def _inputs(
        self, captioner: Captioner, paths: Sequence[Path], faults: list[Fault]
    ) -> Iterator[tuple[list[Path], Inputs]]:
        """Batches of pictures and what the processor makes of them."""
        speed, least = self.options.speed, least_size(captioner.kind, captioner.processor)
        batches = decoded_batches(
            paths,
            lambda path: load_image(path, least=least),
            batch_size=speed.batch_size,
            num_threads=speed.max_data_loader_n_workers,
            on_fault=faults.append,
        )
        encode = encoder(captioner.kind, captioner.processor, captioner.prompt)
        may_pad = captioner.may_pad
        encoded = (part for batch in batches for part in encode_batch(batch, encode, faults, may_pad=may_pad))
        return encoded if speed.max_data_loader_n_workers == 0 else one_ahead(encoded)

    def _finish(self, path: Path, text: str, writer: TextWriter, outcome: Outcome) -> None:
        files = self.options.files
        if isinstance(files, GitCaptionFileOptions) and files.remove_words:
            text = without_writing(text)
        if not text.strip():
            outcome.faults.append(Fault(path, "got no words from the model; try another --prompt or --seed"))
            return
        caption = finished_caption(
            text, trigger_word=files.trigger_word, postfix=files.postfix, separator=files.caption_separator
        )
        writer.write(text_file_of(path, files.extension), caption)
        outcome.written += 1
        if self.options.logging.debug:
            logger.info("%s: %s", path, caption)

    def _no_memory(self, error: RuntimeError | MemoryError) -> Exception:
        if not is_out_of_memory(error):
            return error
        size = self.options.speed.batch_size
        advice = f"Give a smaller --batch_size than {size}" if size > 1 else "Give --load_in_4bit or a smaller --model"
        if self.options.generation.beam_search and self.options.generation.num_beams > 1:
            advice += " or fewer --num_beams"
        return EnvironmentFault(
            f"out of memory with --batch_size {size}. {advice}, or close other programs; captions so far are written, "
            "and the next start goes on from there."
        )


def planned(own: Sequence[tuple[Path, str]], extension: str, everyone: Sequence[Path], *, is_anew: bool) -> Work:
    """Which pictures get a caption.

    Args:
        own: (picture, its path below the folder) of this process.
        extension: Of caption files.
        everyone: All pictures; those of other processes may share a caption file with one of these.
        is_anew: Captions that are there are written anew.
    """
    shared = shared_text_files(everyone, extension)
    faults = tuple(shared[path] for path, _ in own if path in shared)
    alone = {path: name for path, name in own if path not in shared}
    if is_anew:
        return Work(alone, faults=faults)
    there = {path: file for path in alone if (file := text_file_of(path, extension)).exists()}
    missing = {path: name for path, name in alone.items() if path not in there}
    return Work(missing, len(there), sum(map(_is_blank, there.values())), faults)


def word_choice(options: CaptioningOptions, *, is_told: bool) -> WordChoice:
    """What the options say about words.

    Args:
        options: Of the script.
        is_told: The model is told what to do, so its captions are long if nothing is said of their length.
    """
    asked = options.generation
    length = asked.max_length if options.max_length is not None or not is_told else LONG_CAPTION
    return WordChoice(
        num_beams=asked.num_beams if asked.beam_search else None,
        top_p=asked.top_p,
        temperature=asked.temperature,
        max_length=length,
        min_length=asked.min_length,
        seed=asked.seed,
    )


def encode_batch(
    batch: Sequence[tuple[Path, Image]], encode: Encode, faults: list[Fault], *, may_pad: bool = True
) -> list[tuple[list[Path], Inputs]]:
    """The inputs of a batch, without pictures that the model's processor refuses.

    Args:
        batch: Pictures, decoded.
        encode: Makes inputs.
        faults: Gets what is wrong with those that are refused.
        may_pad: Prompts of different lengths may be together.

    Returns:
        One batch; each picture alone where they may not be together; nothing where none is left.
    """
    try:
        inputs = encode([image for _, image in batch])
    except ValueError as error:
        if len(batch) == 1:
            reason = " ".join(str(error).split())
            faults.append(Fault(batch[0][0], f"cannot be given to this model ({reason}); crop or remove it"))
            return []
        good = [item for item in batch if encode_batch([item], encode, faults)]
        if len(good) == len(batch):
            raise
        return encode_batch(good, encode, faults, may_pad=may_pad) if good else []
    if len(batch) > 1 and not may_pad and is_padded(inputs):
        return [alone for item in batch for alone in encode_batch([item], encode, faults)]
    return [([path for path, _ in batch], inputs)]


def _is_blank(file: Path) -> bool:
    return file.stat().st_size <= _BLANK_BYTES and not file.read_bytes().strip()
