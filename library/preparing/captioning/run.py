"""Captioning a folder: what is there is kept, what is missing is written at once, broken pictures are listed last."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.findings import Fault
from library.data.problems import counted, first_names
from library.device import check_device, device_words
from library.errors import EnvironmentFault
from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.preparing.captioning.batching import encode_batch, picture_for
from library.preparing.captioning.feeding import one_ahead
from library.preparing.captioning.generating import caption_batch
from library.preparing.captioning.lengths import positions, prompt_length, word_choice
from library.preparing.captioning.models import (
    Captioner,
    check_few_bits,
    check_folder,
    chosen_device,
    chosen_dtype,
    find_captioner,
    load_captioner,
    pads_well,
)
from library.preparing.captioning.prompting import Inputs, encoder, least_size
from library.preparing.captioning.trying import tried
from library.preparing.captioning.wording import finished_caption, without_writing
from library.preparing.decode_ahead import decoded_batches
from library.preparing.options.captioning import CHAT_PIXELS, CaptioningOptions, GitCaptionFileOptions
from library.preparing.outcome import Outcome
from library.preparing.pictures import find_pictures, is_blank, text_file_faults, text_file_of
from library.preparing.shares import Shares
from library.preparing.text_writing import TextWriter, write_text
from library.writable_folders import check_folders

if TYPE_CHECKING:
    import torch

logger = get_logger(__name__)

_BLANK_BYTES = 64  # a file that is larger is not looked into: nobody keeps so many blanks


@dataclass(frozen=True)
class Work:
    """What a process has to do.

    Attributes:
        names: {picture: its path below the folder}, of those without a caption, in order.
        num_kept: Pictures whose caption is there.
        num_blank: How many of these are empty.
        num_replaced: Pictures whose caption is there and is written anew.
        faults: Pictures that cannot have a caption file.
    """

    names: dict[Path, str]
    num_kept: int = 0
    num_blank: int = 0
    num_replaced: int = 0
    faults: tuple[Fault, ...] = ()


@dataclass
class Progress:
    """What comes up on the way, beside the outcome.

    Attributes:
        outcome: Told at the end.
        num_cut: Captions that ended because they were as long as allowed.
        num_shortened: Captions of which words were left out, as `--remove_words` asks.
    """

    outcome: Outcome = field(default_factory=Outcome)
    num_cut: int = 0
    num_shortened: int = 0


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
        self.check()
        work = self.plan()
        progress = Progress(Outcome(kept=work.num_kept, faults=list(work.faults)))
        if work.names:
            check_folders(text_file_of(path, self.options.files.extension) for path in work.names)
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
        if progress.num_shortened:
            logger.info("--remove_words left words out of %s", counted(progress.num_shortened, "caption"))
        hint = "give --overwrite, or another --caption_extension, to have captions written"
        progress.outcome.tell("captions", self.shares, if_all_kept=hint)

    def check(self) -> None:
        """See whether captioner and device can be used, as far as that is quick; also where nothing is left to do.

        Raises:
            UserError: They cannot.
        """
        chosen = self.options.captioner
        check_folder(chosen.model, chosen.prompt)
        if chosen.device is not None or chosen.bits is not None:
            self._device()

    def _device(self) -> torch.device:
        import os

        chosen = self.options.captioner
        if chosen.device is not None:
            check_device(chosen.device, "--device")
        device = chosen_device(chosen.device, int(os.environ.get("LOCAL_RANK", "0") or 0))
        check_few_bits(chosen.bits, device)
        return device

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
        there = f"{work.num_kept} have their file"
        if self.options.files.overwrite:
            there = f"{counted(work.num_replaced, 'caption')} will be overwritten"
        logger.info("%s to caption, %s%s", counted(len(work.names), "picture"), there, share)
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
        chosen, device = self.options.captioner, self._device()
        bits = chosen.bits
        dtype = chosen_dtype(chosen.mixed_precision, device)
        if chosen.mixed_precision == "fp16" and device.type == "cpu":
            logger.warning("--mixed_precision fp16 has no effect on a CPU, which computes in float32 instead")
        found = find_captioner(chosen.model, chosen.prompt)
        ids = tried(found).get("input_ids")
        number = prompt_length(found.kind, found.config, ids)
        choice = word_choice(self.options, found.kind, num_prompt=number, room=positions(found.config))
        captioner = load_captioner(found, choice, device=device, dtype=dtype, bits=bits)
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
        bar = tqdm(total=len(names), desc="captions", unit=" pictures", disable=not self.shares.is_first)
        with bar, TextWriter() as writer:
            for batch, inputs in self._inputs(captioner, list(names), progress.outcome.faults):
                answers = caption_batch(captioner, inputs, [names[path] for path in batch], reader)
                progress.num_cut += answers.num_cut
                for path, text in zip(batch, answers.texts, strict=True):
                    self._finish(path, text, writer, progress)
                bar.update(len(batch))

    def _inputs(
        self, captioner: Captioner, paths: Sequence[Path], faults: list[Fault]
    ) -> Iterator[tuple[list[Path], Inputs]]:
        """Batches of pictures and what the processor makes of them."""
        from transformers import __version__

        speed, least = self.options.speed, least_size(captioner.kind, captioner.processor)
        max_pixels = speed.max_pixels or (CHAT_PIXELS if captioner.kind.prompting == "chat" else None)
        batches = decoded_batches(
            paths,
            lambda path: picture_for(path, max_pixels=max_pixels, least=least),
            batch_size=speed.batch_size,
            num_threads=speed.max_data_loader_n_workers,
            on_fault=faults.append,
        )
        encode = encoder(captioner.kind, captioner.processor, captioner.prompt)
        may_pad = pads_well(captioner.kind.model_type, __version__)
        if not may_pad and speed.batch_size > 1:
            logger.info("pictures of different sizes are captioned one by one; transformers 4.57 takes them together")
        encoded = (part for batch in batches for part in encode_batch(batch, encode, faults, may_pad=may_pad))
        return encoded if speed.max_data_loader_n_workers == 0 else one_ahead(encoded)

    def _finish(self, path: Path, text: str, writer: TextWriter, progress: Progress) -> None:
        files, outcome = self.options.files, progress.outcome
        if isinstance(files, GitCaptionFileOptions) and files.remove_words:
            whole, text = text, without_writing(text) or text
            progress.num_shortened += text.split() != whole.split()
        if not text.strip():
            outcome.faults.append(Fault(path, "got no words from the model; try another --prompt or --seed"))
            return
        caption = finished_caption(
            text, trigger_word=files.trigger_word, postfix=files.postfix, separator=files.caption_separator
        )
        writer.write(text_file_of(path, files.extension), caption, lambda file, line: self._write(file, line, outcome))
        if self.options.logging.debug:
            logger.info("%s: %s", path, caption)

    def _write(self, file: Path, caption: str, outcome: Outcome) -> None:
        """Write a caption, unless a person wrote one while the model worked."""
        if file.exists() and not self.options.files.overwrite:
            outcome.kept += 1
            return
        write_text(file, caption)
        outcome.written += 1

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
    without = text_file_faults(everyone, extension)
    faults = tuple(without[path] for path, _ in own if path in without)
    alone = {path: name for path, name in own if path not in without}
    there = {path: file for path in alone if (file := text_file_of(path, extension)).exists()}
    if is_anew:
        return Work(alone, num_replaced=len(there), faults=faults)
    missing = {path: name for path, name in alone.items() if path not in there}
    return Work(missing, len(there), sum(is_blank(file, _BLANK_BYTES) for file in there.values()), faults=faults)
