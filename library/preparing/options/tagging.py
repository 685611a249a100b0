"""Options of finetune/tag_images_by_wd14_tagger.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CommonOptions
from library.options.groups.logging import ConsoleOptions
from library.options.spec import OptionGroup, ScriptText, opt
from library.preparing.options.folder import PictureFolderOptions
from library.preparing.options.text_files import extension_problems, line_problems, with_dot
from library.preparing.tagging.replacing import read_replacements

OUTPUT_ENDINGS = (".json", ".jsonl")
DEFAULT_TAGGER = "SmilingWolf/wd-v1-4-convnext-tagger-v2"

TAGGING_SCRIPT: ScriptText = {
    "prog": "finetune/tag_images_by_wd14_tagger.py",
    "description": "Write the tags that an ONNX tagger finds in pictures into text files or a metadata file.",
    "example": "python finetune/tag_images_by_wd14_tagger.py pictures --batch_size 8 --remove_underscore "
    '--undesired_tags "watermark,signature"',
    "ignored": {},
}


@dataclass(frozen=True, kw_only=True)
class TaggerOptions(OptionGroup):
    """Which model tags, and how many pictures it gets at a time."""

    title: ClassVar[str] = "Tagger"

    repo_id: str = opt(
        DEFAULT_TAGGER,
        "The model: its name on the hub, owner/name or owner/name/folder, or a folder with model.onnx and "
        "selected_tags.csv or tag_mapping.json.",
    )
    model_dir: Path = opt(
        Path("wd14_tagger_model"),
        "Where models of the hub are kept, each in a folder of its own; or, without --repo_id, a folder that has the "
        "files of a model itself.",
    )
    force_download: bool = opt(False, "Download a model of the hub again, although it is there.")
    batch_size: int = opt(1, "Pictures that the model gets at once.", minimum=1)
    max_data_loader_n_workers: int | None = opt(
        None,
        "Threads that decode pictures while the model works. Not set means one for each processor, at most 8; "
        "0 decodes between batches.",
        minimum=0,
    )
    onnx: bool = opt(False, "Use onnxruntime.", no_effect="taggers always run with onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ThresholdOptions(OptionGroup):
    """How sure the model has to be."""

    title: ClassVar[str] = "Thresholds"

    thresh: float = opt(0.35, "Least score of a tag.", unit="0-1", minimum=0, maximum=1)
    general_threshold: float | None = opt(
        None, "Least score of general tags. Not set means --thresh.", unit="0-1", minimum=0, maximum=1
    )
    character_threshold: float | None = opt(None, "Likewise, of names of characters.", unit="0-1", minimum=0, maximum=1)
    meta_threshold: float | None = opt(
        None, "Likewise, of tags about the picture as a file.", unit="0-1", minimum=0, maximum=1
    )
    model_threshold: float | None = opt(
        None, "Likewise, of names of the models that made a picture.", unit="0-1", minimum=0, maximum=1
    )
    copyright_threshold: float | None = opt(None, "Likewise, of names of series.", unit="0-1", minimum=0, maximum=1)
    artist_threshold: float | None = opt(None, "Likewise, of names of artists.", unit="0-1", minimum=0, maximum=1)

    def by_category(self) -> dict[str, float]:
        """{category: least score} of all categories that have a threshold."""
        names = ("general", "character", "meta", "model", "copyright", "artist")
        given = {name: getattr(self, f"{name}_threshold") for name in names}
        return {name: self.thresh if value is None else value for name, value in given.items()}


@dataclass(frozen=True, kw_only=True)
class TagChoiceOptions(OptionGroup):
    """Which tags are written, in which words and order."""

    title: ClassVar[str] = "Tags"

    use_rating_tags: bool = opt(False, "Put the likeliest rating first.")
    use_rating_tags_as_last_tag: bool = opt(False, "Put the likeliest rating last.")
    use_quality_tags: bool = opt(False, "Put the likeliest quality first, behind the rating.")
    use_quality_tags_as_last_tag: bool = opt(False, "Put the likeliest quality last, before the rating.")
    character_tags_first: bool = opt(False, "Put names of characters before the other tags.")
    character_tag_expand: bool = opt(False, 'Make two tags of "name_(series)": the name and the series.')
    always_first_tags: str | None = opt(
        None,
        "Tags that come first where a picture has them, in the order given here, separated as in captions.",
        free_text=True,
    )
    undesired_tags: str = opt("", "Tags that are never written, separated as in captions.", free_text=True)
    remove_underscore: bool = opt(False, "Write spaces for underscores, but for those of faces such as ^_^.")
    tag_replacement: str | None = opt(
        None,
        'Other words for tags, as "source1,target1;source2,target2"; \\, and \\; stand for these signs themselves.',
        free_text=True,
    )
    caption_separator: str = opt(
        ", ", "What stands between tags; without the blanks around it, what separates them when they are read."
    )
    frequency_tags: bool = opt(False, "Tell at the end how often each tag was given.")

    def check(self) -> Iterator[str]:
        yield from line_problems("--caption_separator", self.caption_separator, may_be_blank=True)
        yield from line_problems("--tag_replacement", self.tag_replacement)
        if self.tag_replacement and self.tag_replacement.strip():
            try:
                read_replacements(self.tag_replacement)
            except ValueError as error:
                yield f"--tag_replacement {error}"

    def without_effect(self) -> Iterator[tuple[str, str]]:
        for name in ("use_rating_tags", "use_quality_tags"):
            if getattr(self, f"{name}_as_last_tag"):
                yield name, f"--{name}_as_last_tag is given"


@dataclass(frozen=True, kw_only=True)
class TagOutputOptions(OptionGroup):
    """Where tags are written, and what becomes of those that are there."""

    title: ClassVar[str] = "Output"

    output_path: Path | None = opt(
        None,
        "Write all tags to this metadata file (.json or .jsonl) instead of a text file for each picture. Entries that "
        "are there stay.",
    )
    caption_extension: str = opt(".txt", "Ending of the text files.", aliases=("caption_extention",))
    append_tags: bool = opt(False, "Add tags to those that are there; no tag twice.")
    overwrite: bool = opt(
        False,
        "Replace text files, or all of --output_path. Without it, and without --append_tags, pictures that have a text "
        "file, or a text in --output_path, are passed over.",
    )

    def check(self) -> Iterator[str]:
        if self.append_tags and self.overwrite:
            yield "--append_tags and --overwrite exclude each other: keep what is there, or replace it."
        if self.output_path is None:
            yield from extension_problems("--caption_extension", self.caption_extension)
        else:
            yield from self._output_problems(self.output_path)

    @property
    def extension(self) -> str:
        """Ending of the text files, with its dot."""
        return with_dot(self.caption_extension)

    def _output_problems(self, path: Path) -> Iterator[str]:
        if path.suffix.lower() not in OUTPUT_ENDINGS:
            yield f"--output_path ends with .json or .jsonl, which says how tags are written, got {path}."
        elif not path.parent.is_dir():
            yield f"--output_path: the folder {path.parent} does not exist. Make it, or choose another."
        elif path.is_dir():
            yield f"--output_path: {path} is a folder. Name a file in it."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.output_path is not None:
            yield "caption_extension", "with --output_path no text files are written"


@dataclass(frozen=True, kw_only=True)
class TaggingLogOptions(ConsoleOptions):
    """What is told on the console or in its file."""

    debug: bool = opt(False, "Tell the tags of each picture with their scores, and the traceback of an error.")


@dataclass(frozen=True, kw_only=True)
class TaggingOptions(CommonOptions):
    """What the tagger is told."""

    logging: TaggingLogOptions = field(default_factory=TaggingLogOptions)
    pictures: PictureFolderOptions = field(default_factory=PictureFolderOptions)
    tagger: TaggerOptions = field(default_factory=TaggerOptions)
    thresholds: ThresholdOptions = field(default_factory=ThresholdOptions)
    choice: TagChoiceOptions = field(default_factory=TagChoiceOptions)
    output: TagOutputOptions = field(default_factory=TagOutputOptions)

    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ("train_data_dir",)
    leading: ClassVar[tuple[str, ...]] = ("pictures", "tagger")
