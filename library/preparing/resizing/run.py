"""Smaller copies of a folder's pictures, several at a time: each is read once, resized and written by one thread."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from library.data.findings import Fault
from library.data.problems import counted, first_names
from library.log import get_logger
from library.preparing.decode_ahead import decoded_batches
from library.preparing.options.resizing import ResizeOptions
from library.preparing.outcome import Outcome
from library.preparing.pictures import Pictures, find_pictures
from library.preparing.resizing.file_names import (
    associated_files,
    of_one_name,
    refuse_overlap,
    result_name,
    stem_of,
    why_not_written,
)
from library.preparing.resizing.picture_files import (
    LARGEST_JPEG,
    Picture,
    can_be_copied,
    look_at,
    read_picture,
    resized_picture,
    save_picture,
)
from library.preparing.resizing.sizes import central_cut, fitted_size
from library.preparing.shares import Shares
from library.records import CropPlan, Size
from library.tensorfile import write_atomically

logger = get_logger(__name__)


@dataclass
class Done:
    """What was done about one picture.

    Attributes:
        written: Results that were written.
        kept: Results that were there.
        copied: Captions and other files that were copied.
        left: Those that were there.
        faults: What could not be done.
        is_png_for_alpha: PNG was taken because it can be transparent.
        has_lost_exif: Its EXIF could not be taken over.
    """

    written: int = 0
    kept: int = 0
    copied: int = 0
    left: int = 0
    faults: list[Fault] = field(default_factory=list)
    is_png_for_alpha: bool = False
    has_lost_exif: bool = False


@dataclass(frozen=True)
class Resizer:
    """Resizes pictures of one folder.

    Attributes:
        source: The folder.
        target: The folder to write to.
        options: What to do.
        associated: From `associated_files`.
    """

    source: Path
    target: Path
    options: ResizeOptions
    associated: Mapping[Path, Sequence[str]]

    def resize(self, path: Path) -> Done:
        """Write what is missing of a picture.

        Raises:
            DatasetError: The picture cannot be read; nothing is written.
            OutputError: Something cannot be written.
        """
        done = Done()
        header = look_at(path)
        done.is_png_for_alpha = header.has_alpha and not self.options.save_as_png
        suffix = ".png" if header.has_alpha or self.options.save_as_png else ".jpg"
        folder = self.target / path.parent.relative_to(self.source)
        results = {size: folder / result_name(path, size, suffix) for size in self.options.resolutions}
        missing = {}
        for size, result in results.items():
            if (fault := why_not_written(result)) is not None:
                done.faults.append(Fault(path, fault))
            elif result.exists() and not self.options.overwrite:
                done.kept += 1
                self._copy_associated(path, result, done)
            else:
                missing[size] = result
        if missing:
            picture = read_picture(path, header)
            for size, result in missing.items():
                self._write(picture, size, result, done)
        return done

    def _write(self, picture: Picture, limit: Size, result: Path, done: Done) -> None:
        resized = fitted_size(picture.size, limit, may_grow=self.options.upscale)
        crop = central_cut(resized, self.options.divisible_by)
        if (fault := self._fault_of(crop, result.suffix)) is not None:
            done.faults.append(Fault(picture.path, fault))
            return
        if can_be_copied(picture, crop, result.suffix):
            write_atomically(result, partial(shutil.copyfile, picture.path), picture.path.stat().st_size)
        else:
            image = resized_picture(picture, crop, self.options.interpolation)

            def write(place: Path) -> None:
                done.has_lost_exif |= not save_picture(image, place, result.suffix, picture)

            write_atomically(result, write)
        done.written += 1
        self._copy_associated(picture.path, result, done)

    def _fault_of(self, crop: CropPlan, suffix: str) -> str | None:
        if 0 in crop.bucket:
            divisor = self.options.divisible_by
            return (
                f"becomes {crop.resized}, which leaves nothing that --divisible_by {divisor} can divide; leave it out"
            )
        if suffix == ".jpg" and max(crop.bucket) > LARGEST_JPEG:
            return f"becomes {crop.bucket}, and a JPEG has at most {LARGEST_JPEG} pixels a side; give --save_as_png"
        return None

    def _copy_associated(self, path: Path, result: Path, done: Done) -> None:
        for ending in self.associated.get(path, ()):
            source, target = path.with_name(stem_of(path) + ending), result.with_name(stem_of(result) + ending)
            if target.exists() and not self.options.overwrite:
                done.left += 1
                continue
            try:
                content = source.read_bytes()
            except OSError as error:
                fault = f"cannot be read ({error.strerror or error}); copy it yourself"
                done.faults.append(Fault(source, fault, path))
                continue
            write_atomically(target, partial(_write_bytes, content), len(content))
            done.copied += 1


def _write_bytes(content: bytes, place: Path) -> None:
    place.write_bytes(content)


def resize_folder(options: ResizeOptions) -> None:
    """Resize the pictures of a folder, and tell what was done.

    Raises:
        DatasetError: The folder cannot be used; or pictures were passed over, and all others are done.
        OptionError: The two folders do not go together.
        OutputError: Something cannot be written.
    """
    assert options.src_img_folder is not None and options.dst_img_folder is not None
    source, target = options.src_img_folder, options.dst_img_folder
    refuse_overlap(source, target, is_recursive=options.recursive)
    pictures = find_pictures(source, is_recursive=options.recursive, name="SRC_IMG_FOLDER")
    if pictures.left_out:
        lines = [str(fault) for fault in pictures.left_out]
        logger.warning("left out %s: %s.", counted(len(lines), "file"), first_names(lines))
    associated = associated_files(pictures.paths, pictures.other_files) if options.copy_associated_files else {}
    resizer = Resizer(source, target, options, associated)
    shares = Shares.of_launch()
    started = time.monotonic()
    outcome, done = _resize_all(resizer, pictures, shares)
    outcome.seconds = time.monotonic() - started
    _tell_details(done)
    outcome.tell("resized pictures", shares, unit="files")


def _resize_all(resizer: Resizer, pictures: Pictures, shares: Shares) -> tuple[Outcome, dict[Path, Done]]:
    from tqdm import tqdm

    outcome = Outcome()
    doubles = of_one_name(pictures.paths)
    outcome.faults += doubles.values() if shares.is_first else ()
    paths = shares.own([path for path in pictures.paths if path not in doubles])
    done: dict[Path, Done] = {}
    with tqdm(total=len(paths), desc="resizing", unit=" pictures", disable=not shares.is_first) as bar:

        def pass_over(fault: Fault) -> None:
            outcome.faults.append(fault)
            bar.update()

        threads = resizer.options.max_data_loader_n_workers
        batches = decoded_batches(paths, resizer.resize, batch_size=1, num_threads=threads, on_fault=pass_over)
        for ((path, one),) in batches:
            done[path] = one
            outcome.written += one.written
            outcome.kept += one.kept
            outcome.faults += one.faults
            bar.update()
    return outcome, done


def _tell_details(done: Mapping[Path, Done]) -> None:
    copied, left = sum(one.copied for one in done.values()), sum(one.left for one in done.values())
    if copied or left:
        logger.info("captions and other files: copied %d, kept %d that were there", copied, left)
    if number := sum(one.is_png_for_alpha for one in done.values()):
        logger.info("%s can be transparent and became PNG: JPEG cannot be", counted(number, "picture"))
    if lost := [path.name for path, one in done.items() if one.has_lost_exif]:
        logger.warning(
            "the EXIF of %s is damaged or too long for a JPEG and was left out: %s",
            *(counted(len(lost), "picture"), first_names(lost)),
        )
