"""Options of the preview page: those of a training, and where the page goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from library.options.groups.preview import PreviewOptions
from library.options.spec import ScriptText
from tools.family_options import AnyFamilyOptions


@dataclass(frozen=True, kw_only=True)
class PreviewToolOptions(AnyFamilyOptions):
    """All options of tools/preview_dataset.py: a command of each script that trains a network works as it is."""

    preview: PreviewOptions = field(default_factory=PreviewOptions)

    leading: ClassVar[tuple[str, ...]] = ("preview", "model")
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = (("dataset_config", "train_data_dir", "in_json"),)
    tells_ignored: ClassVar[bool] = False


PREVIEW_SCRIPT: ScriptText = {
    "prog": "tools/preview_dataset.py",
    "description": "Write one HTML page that shows every picture of a dataset as it will be trained, with its caption "
    "as the encoders will read it. Takes the options of the training, so that its command can be copied; no weights "
    "are read, and the model file may be left out.",
    "example": "python tools/preview_dataset.py --dataset_config=my_pictures.toml --output=preview.html",
    "ignored": {},
}
