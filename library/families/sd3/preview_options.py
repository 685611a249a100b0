"""Options of the preview page, for Stable Diffusion 3 / 3.5: those of a training, and where the page goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from library.families.sd3.options import Sd3NetworkOptions
from library.options.groups.preview import PreviewOptions
from library.options.spec import ScriptText


@dataclass(frozen=True, kw_only=True)
class Sd3PreviewOptions(Sd3NetworkOptions):
    """All options of tools/preview_dataset.py: a command of sd3_train_network.py works as it is."""

    preview: PreviewOptions = field(default_factory=PreviewOptions)

    required: ClassVar[tuple[str | tuple[str, ...], ...]] = tuple(
        name
        for name in Sd3NetworkOptions.required
        if name not in ("pretrained_model_name_or_path", "output_dir", "network_module")
    )


PREVIEW_SCRIPT: ScriptText = {
    "prog": "tools/preview_dataset.py",
    "description": "Write one HTML page that shows every picture of a dataset as it will be trained, with its caption "
    "as the encoders will read it. Takes the options of the training, so that its command can be copied; no weights "
    "are read, and the model file may be left out.",
    "example": "python tools/preview_dataset.py --dataset_config=my_pictures.toml --output=preview.html",
    "ignored": {},
}
