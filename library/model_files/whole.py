"""A whole model of any family and layout: found from its headers, and planned as it is written with nothing trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, OptionError
from library.families.detect import LORA, SD1, SD2, SD3, SD3_DIFFUSERS, SDXL, FileKind, denoiser_place, file_kind
from library.families.hub_model import hub_folder, is_hub_name
from library.families.unet.marks import NOISE, VELOCITY, ZERO_TERMINAL
from library.model_files.places import naming
from library.model_files.prediction import prediction_mark
from library.records import Size

if TYPE_CHECKING:
    import torch

    from library.checkpoint.weights import Part
    from library.families.model_folder import ModelFolder
    from library.families.whole_model import Plan
    from library.models.tokenizers import TokenizerSet

UNET_KINDS = (SD1, SD2, SDXL)
_SD3_SIDE = 1024


@dataclass(frozen=True)
class WholeModel:
    """A model that is there.

    Attributes:
        path: The file or folder.
        kind: SD1, SD2, SDXL or SD3.
        family: Of the kind, with the settings of no training.
        files: What the family's inspection found.
        marks: What a U-Net model was trained for, see `UnetFiles`.
        is_said: The model or the user says what it predicts. Else it is a guess.
    """

    path: Path
    kind: FileKind
    family: Any
    files: Any
    marks: frozenset[str] = frozenset()
    is_said: bool = True

    @property
    def parts(self) -> dict[str, Part]:
        """{"denoiser", "vae" or name of a text encoder: where it lies} of all parts that are there."""
        denoiser = self.files.denoiser if self.kind == SD3 else self.files.unet
        encoders = {name: self.family.encoder_part(self.files, name) for name in self.family.encoder_names}
        found = {"denoiser": denoiser, "vae": self.files.vae, **encoders}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def sources(self) -> set[Path]:
        """All files that are read."""
        return {header.path for part in self.parts.values() for header in part.source.headers}

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file of the denoiser says."""
        return self.parts["denoiser"].header.metadata

    @property
    def prediction_type(self) -> str | None:
        """As metadata has it: "epsilon", "v" or "flow"; None where it is a guess."""
        if self.kind == SD3:
            return "flow"
        return ("v" if VELOCITY in self.marks else "epsilon") if self.is_said else None

    @property
    def resolution(self) -> Size:
        """Of the pictures that such models were trained with first."""
        if self.kind == SD3:
            return Size(_SD3_SIDE, _SD3_SIDE)
        facts = self.files.facts
        side = facts.velocity_side if VELOCITY in self.marks else facts.picture_side
        return Size(side, side)

    @property
    def architecture(self) -> str:
        """Name for modelspec.architecture."""
        name: str = self.family.architecture(self.files)
        return name

    def single_file(self, dtype: torch.dtype | None) -> Plan:
        """What one file has, with every text encoder that is there; None for `dtype` keeps what each tensor has."""
        plan: Plan = self._model(dtype).single_file(*([self._encoders] if self.kind == SD3 else []))
        return plan

    def folder(self, dtype: torch.dtype | None) -> ModelFolder:
        """What a diffusers folder has."""
        if self.kind == SD3:
            from library.families.sd3.diffusers_folder import model_folder as sd3_folder

            return sd3_folder(self._model(dtype))
        from library.families.unet.diffusers_folder import model_folder

        return model_folder(self._model(dtype))

    def tokenizers(self, folder: Path | None) -> TokenizerSet:
        """Those of its text encoders; looked for in `folder` first.

        Raises:
            CheckpointError: They are nowhere.
        """
        found: TokenizerSet = replace(self.family, tokenizer_dir=folder).load_tokenizers(self.files, self._encoders)
        return found

    @property
    def _encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self.family.encoder_names if name in self.parts)

    def _model(self, dtype: torch.dtype | None) -> Any:
        if self.kind == SD3:
            return self.family.model_to_write(self.files, {}, {}, dtype)
        from library.families.unet.export import UnetModel

        return UnetModel(self.files, {}, {}, dtype, marks=self.marks)


def find_whole_model(
    path: Path,
    option: str,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
) -> WholeModel:
    """Find a model and all its parts. Reads headers only.

    Args:
        path: A file in any layout, a diffusers folder, or the name of one on the hub.
        option: Names it in errors.
        variant: See `open_weights`.
        allow_pickle: Also read .ckpt files that hold more than tensors.
        prediction_type: "epsilon" or "v_prediction", for U-Net models; None for what the model says.
        zero_terminal_snr: A U-Net model was trained down to pure noise, whether or not it says so.

    Raises:
        CheckpointError: It is none of the kinds, cannot be read, or is not complete.
        OptionError: A prediction type for a model that has none.
    """
    from library.checkpoint.weights import open_weights

    path = hub_folder(path, option) if is_hub_name(path) else path
    opened = open_weights(denoiser_place(path), option, allow_pickle=allow_pickle, is_told=True, variant=variant)
    kind = file_kind(opened.shapes())
    reading = {"allow_pickle": allow_pickle, "variant": variant}
    with naming(option):
        if kind in (SD3, SD3_DIFFUSERS):
            if prediction_type is not None:
                raise OptionError(f"--prediction_type: {path} is {SD3.title}, which predicts a flow. Leave it out.")
            if zero_terminal_snr:
                raise OptionError(
                    f"--zero_terminal_snr: {path} is {SD3.title}, which has no such schedule. Leave it out."
                )
            return _sd3_model(path, option, reading)
        if kind in UNET_KINDS:
            model = _unet_model(path, kind, prediction_type, reading)
            return replace(model, marks=model.marks | {ZERO_TERMINAL}) if zero_terminal_snr else model
    advice = "Convert it with networks/convert_lora.py." if kind == LORA else "Give a whole model."
    raise CheckpointError(f"{option}: {path} is {kind.title}, not a model of SD 1.x, SD 2.x, SDXL or SD3. {advice}")


def _sd3_model(path: Path, option: str, reading: Mapping[str, Any]) -> WholeModel:
    from library.families.sd3.checkpoint import inspect_files
    from library.families.sd3.family import Sd3Family

    files = inspect_files(path, **reading)
    files.check_complete()
    if files.vae is None:
        raise CheckpointError(
            f"{option}: {path} has no VAE inside. Put one in with tools/merge_sd3_safetensors.py first."
        )
    return WholeModel(path, SD3, Sd3Family(pretrained=path, dropout_rates={}, flow={}), files)


def _unet_model(path: Path, kind: FileKind, prediction_type: str | None, reading: Mapping[str, Any]) -> WholeModel:
    from library.families.sd.family import SdFamily
    from library.families.sdxl.family import SdxlFamily
    from library.families.unet.checkpoint import inspect_files

    files = inspect_files(path, kinds=(kind.name,), **reading)
    predicted, is_said = prediction_mark(files, prediction_type)
    marks = (files.marks - {VELOCITY, NOISE}) | {predicted}
    family = SdxlFamily if kind == SDXL else SdFamily
    own = family(pretrained=path, noise={"v_parameterization": predicted == VELOCITY})
    return WholeModel(path, kind, own, files, marks, is_said)
