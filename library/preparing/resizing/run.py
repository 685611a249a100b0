"""Smaller copies of a folder's pictures, several at a time: each is read once, resized and written by one thread."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from library.data.findings import Fault
from library.data.problems import counted, first_names
from library.errors import DatasetError
from library.log import get_logger
from library.preparing.decode_ahead import decoded_batches
from library.preparing.options.resizing import ResizeOptions
from library.preparing.outcome import Outcome
from library.preparing.pictures import Pictures, find_pictures
from library.preparing.resizing.done import Done, tell_details
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
from library.tensorfile import abandoned_files, write_atomically
from library.writable_folders import check_folders

logger = get_logger(__name__)


@dataclass(frozen=True)
class Resizer:
    """Resizes pictures of one folder.

    Attributes:
        source: The folder.
        target: The folder to write to.
        options: What to do.
        associated: `AssociatedFiles.of`, or nothing.
    """

    source: Path
    target: Path
    options: ResizeOptions
    associated: Mapping[Path, Mapping[str, Path]]

    def folder_of(self, path: Path) -> Path:
        """Where the results of a picture lie."""
        return self.target / path.parent.relative_to(self.source)

    def resize(self, path: Path) -> Done:
        """Write what is missing of a picture.

        Raises:
            DatasetError: The picture cannot be read; nothing is written.
            OutputError: Something cannot be written.
        """
        done = Done(path)
        header = look_at(path)
        suffix = ".png" if header.has_alpha or self.options.save_as_png else ".jpg"
        folder = self.folder_of(path)
        results = {size: folder / result_name(path, size, suffix) for size in self.options.resolutions}
        missing = {}
        for size, result in results.items():
            if (fault := why_not_written(result)) is not None:
                done.faults.append(Fault(path, fault))
            elif result.exists() and not self.options.overwrite:
                done.kept += 1
                if not _has_size(result, self._crop_of(header.size, size).bucket):
                    done.other_sizes.append(result.name)
                self._copy_associated(path, result, done)
            else:
                missing[size] = result
        if missing:
            picture = read_picture(path, header)
            for size, result in missing.items():
                self._write(picture, size, result, done)
            done.is_png_for_alpha = header.has_alpha and not self.options.save_as_png and done.written > 0
        return done

    def _crop_of(self, picture: Size, limit: Size) -> CropPlan:
        resized = fitted_size(picture, limit, may_grow=self.options.upscale)
        return central_cut(resized, self.options.divisible_by)

    def _write(self, picture: Picture, limit: Size, result: Path, done: Done) -> None:
        crop = self._crop_of(picture.size, limit)
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
        for ending, source in self.associated.get(path, {}).items():
            target = result.with_name(stem_of(result) + ending)
            if target.exists() and not self.options.overwrite:
                done.left += 1
                continue
            try:
                content = source.read_bytes()
            except OSError as error:
                fault = f"cannot be read ({error.strerror or error}); copy it yourself"
                done.faults.append(Fault(source, fault, path))
                continue
            # A link is replaced, not followed: it may lead to the original.
            write_atomically(target, partial(_write_bytes, content), len(content))
            done.copied += 1


def _write_bytes(content: bytes, place: Path) -> None:
    place.write_bytes(content)


def _has_size(result: Path, size: Size) -> bool:
    try:
        return look_at(result).size == size
    except DatasetError:
        return False


def _clear(folders: Iterable[Path]) -> None:
    """Remove what a run that was killed had begun to write."""
    for folder in folders:
        for torso in abandoned_files(folder):
            torso.unlink(missing_ok=True)


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
    associated = associated_files(pictures.paths, pictures.other_files)
    if options.copy_associated_files and associated.of_none:
        names = [path.name for path in associated.of_none]
        logger.warning("%s of no picture not copied: %s.", counted(len(names), "text file"), first_names(names))
    resizer = Resizer(source, target, options, associated.of if options.copy_associated_files else {})
    shares = Shares.of_launch()
    if shares.is_first:
        folders = {resizer.folder_of(path) for path in pictures.paths}
        check_folders(folder / "picture" for folder in folders)
        _clear(folders)
    started = time.monotonic()
    outcome, done = _resize_all(resizer, pictures, shares)
    outcome.seconds = time.monotonic() - started
    tell_details(done, shares)
    outcome.tell("resized pictures", shares, unit="files")


def _resize_all(resizer: Resizer, pictures: Pictures, shares: Shares) -> tuple[Outcome, list[Done]]:
    from tqdm import tqdm

    outcome = Outcome()
    doubles = of_one_name(pictures.paths)
    outcome.faults += doubles.values() if shares.is_first else ()
    paths = shares.own([path for path in pictures.paths if path not in doubles])
    done: list[Done] = []
    with tqdm(total=len(paths), desc="resizing", unit=" pictures", disable=not shares.is_first) as bar:

        def pass_over(fault: Fault) -> None:
            outcome.faults.append(fault)
            bar.update()

        threads = resizer.options.max_data_loader_n_workers
        batches = decoded_batches(paths, resizer.resize, batch_size=1, num_threads=threads, on_fault=pass_over)
        for ((_, one),) in batches:
            done.append(one)
            outcome.written += one.written
            outcome.kept += one.kept
            outcome.faults += one.faults
            bar.update()
    return outcome, done
