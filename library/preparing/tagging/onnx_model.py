"""A tagger as an ONNX graph, run with onnxruntime on the first GPU that it can use, else on the processor.

What a graph takes is read from the graph itself: size, place of the channels, type of the numbers, and whether it takes
any number of pictures or one at a time. Whether it gives chances or logits is seen in what it makes of a white picture.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from library.errors import CheckpointError, EnvironmentFault
from library.log import get_logger
from library.preparing.tagging.labels import JSON_FILE, Label
from library.preparing.tagging.model_files import TaggerFiles
from library.preparing.tagging.pixels import PixelForm

USUAL_SIDE = 448
SLACK = 1e-3  # by which rounding may carry a chance beyond 0 or 1
_GPU = "CUDAExecutionProvider"
_PROCESSOR = "CPUExecutionProvider"
_NUMBERS: dict[str, type[np.floating]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_QUIET = 4  # onnxruntime's level for what ends the process

logger = get_logger(__name__)


@dataclass(frozen=True)
class OnnxTagger:
    """A loaded tagger.

    Attributes:
        path: Of the graph.
        session: Of onnxruntime.
        form: What it takes.
        batch: Number of pictures that it takes at once; None for any.
        num_labels: Scores of a picture.
    """

    path: Path
    session: Any
    form: PixelForm
    batch: int | None
    num_labels: int

    def scores(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """How sure the model is of each tag, 0-1. Shape [number of pictures, number of labels], float32.

        Args:
            pixels: From `read_pixels`; at least one.

        Raises:
            CheckpointError: The model gives no numbers.
            EnvironmentFault: Not enough memory.
        """
        scores = self._raw_scores(pixels)
        if self._gives_logits:
            with np.errstate(over="ignore"):
                scores = 1 / (1 + np.exp(-scores))
        return np.clip(scores, 0, 1)

    def _raw_scores(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        step = self.batch or len(pixels)
        parts = [self._run(pixels[start : start + step], self._place) for start in range(0, len(pixels), step)]
        scores = np.concatenate(parts).astype(np.float32)
        if not np.isfinite(scores).all():
            raise CheckpointError(f"{self.path} gives scores that are not finite. Download it again, or use another.")
        return scores

    def _run(self, pixels: Sequence[np.ndarray], place: int) -> np.ndarray:
        """An output of the graph; a graph of a fixed batch gets the last picture again where there are too few."""
        number = len(pixels)
        full = [*pixels, *[pixels[-1]] * ((self.batch or number) - number)]
        outputs = self._outputs(np.stack(full))
        return np.asarray(outputs[place])[:number]

    def _outputs(self, batch: np.ndarray) -> list[Any]:
        try:
            outputs: list[Any] = self.session.run(None, {self.session.get_inputs()[0].name: batch})
        except onnx_faults() as error:
            reason = _first_line(error)
            if any(words in reason.lower() for words in ("allocat", "out of memory", "bad_alloc")):
                raise EnvironmentFault(
                    f"out of memory with {len(batch)} pictures at once ({reason}). Give a smaller --batch_size; what "
                    "was written stays."
                ) from None
            raise CheckpointError(f"{self.path} cannot be run ({reason}). Use another tagger.") from None
        return outputs

    @cached_property
    def _white(self) -> np.ndarray:
        shape = (3, self.form.side, self.form.side) if self.form.is_channels_first else (self.form.side,) * 2 + (3,)
        return np.full(shape, 1 if self.form.is_channels_first else 255, self.form.dtype)

    @cached_property
    def _place(self) -> int:
        """Which output has the scores."""
        outputs = self._outputs(np.stack([self._white] * (self.batch or 1)))
        shapes = [np.shape(output) for output in outputs]
        for place, shape in enumerate(shapes):
            if len(shape) == 2 and shape[1] == self.num_labels:
                return place
        listed = ", ".join(" x ".join(map(str, shape[1:])) or "one" for shape in shapes)
        raise CheckpointError(
            f"{self.path} gives {listed} scores a picture, but its table has {self.num_labels} tags. Take the table "
            "that belongs to the model."
        )

    @cached_property
    def _gives_logits(self) -> bool:
        scores = self._raw_scores([self._white])
        return bool(scores.min() < -SLACK or scores.max() > 1 + SLACK)

    def check(self) -> None:
        """Run the graph once, so that what is wrong with it is known before any picture is decoded.

        Raises:
            CheckpointError: It cannot be run, or its scores do not fit the table.
        """
        _ = self._gives_logits


def load_tagger(files: TaggerFiles, labels: Sequence[Label]) -> OnnxTagger:
    """Load a graph and look at what it takes.

    Args:
        files: The graph and its table.
        labels: What the table says.

    Raises:
        CheckpointError: The graph is broken, or no tagger.
        EnvironmentFault: onnxruntime is not installed.
    """
    session = _session(files.model)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _NUMBERS:
        shown = ", ".join(f"{node.type} {node.shape}" for node in inputs)
        raise CheckpointError(
            f"{files.model} is no tagger: it takes {shown}, not one batch of pictures of 3 channels. Use another."
        )
    shape = [size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape]
    is_first = _has_channels_first(files, shape)
    sides = {side for side in (shape[2:] if is_first else shape[1:3]) if side is not None}
    if len(sides) > 1:
        raise CheckpointError(f"{files.model} takes pictures of {sides}, which are no squares. Use another tagger.")
    form = PixelForm(sides.pop() if sides else USUAL_SIDE, is_first, _NUMBERS[inputs[0].type])
    return OnnxTagger(files.model, session, form, shape[0], len(labels))


def _has_channels_first(files: TaggerFiles, shape: Sequence[int | None]) -> bool:
    """Where the 3 channels stand. Where the graph leaves that open, its kind of table tells."""
    if (shape[1] == 3) != (shape[3] == 3):
        return shape[1] == 3
    if None not in (shape[1], shape[3]):
        raise CheckpointError(f"{files.model} is no tagger of pictures in 3 channels: it takes {shape}. Use another.")
    return files.table.name == JSON_FILE


def _session(path: Path) -> Any:
    """Raises CheckpointError or EnvironmentFault."""
    ort = onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = _QUIET
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it keeps decoders off the cores
    ort.set_default_logger_severity(_QUIET)
    providers: list[Any] = [_PROCESSOR]
    if _GPU in ort.get_available_providers():
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA's own libraries, where pip has put them
        providers.insert(0, (_GPU, {"device_id": int(os.environ.get("LOCAL_RANK", "0") or 0)}))
    _refuse_pointer(path)
    try:
        session = ort.InferenceSession(str(path), settings, providers=providers)
    except onnx_faults() as error:
        raise CheckpointError(
            f"{path} cannot be loaded as an ONNX graph ({_first_line(error)}). Download it again, with the files that "
            "belong beside it; newer graphs need a newer onnxruntime."
        ) from None
    tell_device(session.get_providers()[0], is_gpu_expected=len(providers) > 1)
    return session


def onnxruntime() -> Any:
    """The module.

    Raises:
        EnvironmentFault: It is not installed, or does not load.
    """
    try:
        import onnxruntime as module
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
        raise EnvironmentFault(
            f"onnxruntime, which runs taggers, {reason}. Run `pip install onnxruntime`, or for an NVIDIA GPU "
            "`pip install onnxruntime-gpu`."
        ) from None
    return module


def onnx_faults() -> tuple[type[Exception], ...]:
    """What onnxruntime raises. Its own errors have no base in common."""
    onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*own, RuntimeError, ValueError)


def tell_device(provider: str, *, is_gpu_expected: bool) -> None:
    """Tell where the model runs, and what to install where that is not the GPU although there is one.

    Args:
        provider: The first one that the session has.
        is_gpu_expected: onnxruntime was asked for the GPU.
    """
    if is_gpu_expected and provider != _GPU:
        logger.warning(
            "The tagger runs on the processor, since the CUDA part of onnxruntime does not load: pip "
            "install the onnxruntime-gpu that fits your CUDA, or onnxruntime-gpu[cuda,cudnn], which brings CUDA along"
        )
    elif not is_gpu_expected and shutil.which("nvidia-smi"):
        logger.warning(
            "The tagger runs on the processor, although there is an NVIDIA GPU: pip uninstall onnxruntime, and "
            "pip install onnxruntime-gpu"
        )
    else:
        logger.info("The tagger runs on the %s", "GPU" if provider == _GPU else "processor")


def _refuse_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path} cannot be read ({reason}). Make it readable, or download it again.") from None
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not a graph. Run `git lfs pull` in its folder.")


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next(chain((line for line in lines if line), (type(error).__name__,)))[:300]
