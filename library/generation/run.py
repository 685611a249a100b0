"""A run that draws pictures: what is wrong is found from headers first, then the model is read once, then batches of
pictures are drawn, decoded and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.generation.extras import GUIDE, tell_unused
from library.generation.file_marks import file_mark, file_marks
from library.generation.guides import GuidePictures
from library.generation.jobs import JobMaker, Seeds, batch_key, with_networks
from library.generation.naming import FileNames
from library.generation.options.scripts import GenerationOptions
from library.generation.record import GenerationRecord
from library.generation.redrawing import redrawings
from library.generation.settings import files_beside, settings_of
from library.generation.sheet_run import draw_sheets
from library.generation.sources import SourcePictures
from library.generation.supply import PromptSupply, naming
from library.log import get_logger

if TYPE_CHECKING:
    from PIL.Image import Image

    from library.families.base import ModelFamily
    from library.generation.drawing import Drawing
    from library.generation.networks import KnownTensors

logger = get_logger(__name__)

MakeFamily = Callable[[GenerationOptions], "ModelFamily"]


def draw_pictures(options: GenerationOptions, make_family: MakeFamily) -> None:
    """Draw everything that the options ask for.

    Args:
        options: Of the script.
        make_family: Chooses the family from options and headers.

    Raises:
        UserError: Something cannot be used, or drawn.
    """
    names = FileNames(
        options.files.outdir,
        is_sequential=options.files.sequential_file_name,
        uses_original=options.files.use_original_file_name,
    )
    if options.sheets.xyz:
        known: KnownTensors = {}  # networks are read once for all models
        number = draw_sheets(options, lambda own: PictureRun(own, make_family, names, known))
    elif options.prompts.from_png:
        number = sum(PictureRun(one.options, make_family, names).draw(one.supply) for one in redrawings(options))
    else:
        number = PictureRun(options, make_family, names).draw(PromptSupply.of(options.prompts, options.values()))
    logger.info("%d picture%s in %s", number, "s"[: number != 1], options.files.outdir)


class PictureRun:
    """One model, and the prompts that it draws.

    Args:
        options: Of the run.
        make_family: See `draw_pictures`.
        names: For the pictures.
        known: See `read_networks`.

    Attributes:
        drawing: What draws, once it is loaded.
        written: The pictures so far, in the order in which they were asked for.

    Raises:
        UserError: A file cannot be used; nothing was drawn.
    """

    def __init__(
        self,
        options: GenerationOptions,
        make_family: MakeFamily,
        names: FileNames,
        known: KnownTensors | None = None,
    ) -> None:
        from library.generation.acting import open_extras
        from library.generation.embeddings import read_embeddings
        from library.generation.model import naming_ckpt
        from library.generation.networks import read_networks

        self.options, self.names = options, names
        self.sources = SourcePictures.of(options.source.image_path, options.source.mask_path)
        guides = GuidePictures.of(options.guide.guide_image_path)
        with naming_ckpt():
            family = make_family(options)
            files = family.inspect()
            self.family: ModelFamily = family.as_marked(files)
        self.files: Any = files
        self.networks = read_networks(options.network, self.family, files, known)
        self.embeddings = read_embeddings(options.model.textual_inversion_embeddings)
        self.extras = open_extras(options, self.family, files)
        self.drawing: Drawing | None = None
        self.written: list[Path] = []
        longest = self.family.longest_side(files)
        self.maker = JobMaker(options, self.family, self._base(), longest, self.sources, guides)

    def draw(self, supply: PromptSupply) -> int:
        """Draw all prompts; returns the number of pictures."""
        if supply.is_known:  # what is wrong is told before the model is read
            records = []
            for asked in supply.iteration(0):
                with naming(asked.place):
                    records += self.maker.records(asked, iteration=0, seeds=Seeds(0))
            self._tell_unused(records, [line.text for line in supply.lines or ()])
        self.names.prepare()
        if supply.is_interactive:
            self._drawing()  # whoever types a prompt waits for its picture only
        number, drawn = 0, []
        for batch in self._batches(supply):
            with supply.forgiving():
                number += self._draw_batch(batch)
            drawn += batch
        if not supply.is_known:
            self._tell_unused(drawn)
        return number

    def _tell_unused(self, records: Sequence[GenerationRecord], lines: Sequence[str] = ()) -> None:
        """Warn of what no picture needs; `lines` have prompts with all their variants."""
        from library.generation.embeddings import tell_unused_words

        tell_unused(self.options, records)
        texts = [text for one in records for text in (one.prompt, one.negative_prompt)]
        if texts:
            tell_unused_words(self.embeddings, [*lines, *texts])

    def _batches(self, supply: PromptSupply) -> Iterator[list[GenerationRecord]]:
        """Pictures that are drawn at once. What is asked for by and by is drawn before the next is asked for."""
        batch: list[GenerationRecord] = []
        for records in self._jobs(supply):
            for record in records:
                if batch and (len(batch) == self.options.computing.batch_size or not _same(batch[0], record)):
                    yield batch
                    batch = []
                batch.append(record)
            if supply.is_interactive and batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def _jobs(self, supply: PromptSupply) -> Iterable[list[GenerationRecord]]:
        prompts = self.options.prompts
        seeds = Seeds(prompts.seed, prompts.iter_same_seed)
        for iteration in range(1 if supply.ready is not None else prompts.n_iter):
            for asked in supply.iteration(iteration):
                records: list[GenerationRecord] = []
                with supply.forgiving(), naming(asked.place):
                    records = self.maker.records(asked, iteration=iteration, seeds=seeds)
                yield [self._complete(record, asked.options.network_muls) for record in records]

    def _complete(self, record: GenerationRecord, multipliers: Sequence[float] | None) -> GenerationRecord:
        """With what only the loaded model tells."""
        drawing = self._drawing()
        texts = (record.prompt, record.negative_prompt)
        rows = self.options.model.max_embeddings_multiples or drawing.text.num_rows(texts)
        guides = (record.extras or {}).get(GUIDE, ())
        marks = {**(record.files or {}), **file_marks((record.image, record.mask, *guides))}
        return replace(with_networks(record, drawing.networks.uses_at(multipliers), rows), files=marks or None)

    def _draw_batch(self, batch: list[GenerationRecord]) -> int:
        from library.generation.writing import write_picture

        small: list[tuple[GenerationRecord, Image]] = []  # of first passes, which are called after the last ones

        def keep(records: Sequence[GenerationRecord], pictures: Sequence[Image]) -> None:
            small.extend(zip(records, pictures, strict=True))

        pictures = self._drawing().draw(batch, keep if self.options.highres.highres_fix_save_1st else None)
        for number, (record, picture) in enumerate(zip(batch, pictures, strict=True)):
            path = self.names.next(record.seed, asked=record.file_name, original=record.image)
            write_picture(path, picture, record)
            self.written.append(path)
            logger.info("%s", path)
            for first_record, first in small[number : number + 1]:
                beside = self.names.first_of(path)
                write_picture(beside, first, first_record)
                logger.info("%s", beside)
        return len(batch)

    def _drawing(self) -> Drawing:
        """What draws, once it is needed."""
        from library.generation.drawing import Drawing

        if self.drawing is None:
            self.drawing = Drawing.load(
                self.family,
                self.files,
                self.options,
                networks=self.networks,
                embeddings=self.embeddings,
                extras=self.extras,
            )
        return self.drawing

    def _base(self) -> GenerationRecord:
        """What all pictures share."""
        model = self.options.model
        return GenerationRecord(
            prompt="",
            width=0,
            height=0,
            seed=0,
            steps=1,
            sampler="",
            scale=1.0,
            family=self.family.name,
            model=str(model.ckpt),
            model_hash=file_mark(Path(str(model.ckpt))),
            vae=None if model.vae is None else str(model.vae),
            embeddings=tuple(map(str, self.embeddings)),
            clip_skip=model.clip_skip if self.family.name == "sd" else None,
            emb_normalize_mode=model.emb_normalize_mode,
            v_parameterization=self.family.prediction_type == "v",
            zero_terminal_snr=bool(getattr(self.family, "is_zero_terminal", False)),
            precision=self.options.computing.precision,
            settings=settings_of(self.options, self.family.name) or None,
            files=file_marks(files_beside(self.options, self.family.name)) or None,
        )


def _same(one: GenerationRecord, other: GenerationRecord) -> bool:
    return batch_key(one) == batch_key(other)
