"""What a saved network says about itself in the header of its file: ss_*, modelspec.* and sshs_* keys.

All values are strings. Every function takes plain values; which option they come from is the caller's affair.

Source: the keys that tools for such networks read and write; Stability AI's ModelSpec 1.0.1.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import mimetypes
import os
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Thread, get_native_id
from typing import TYPE_CHECKING

from library.log import get_logger
from library.records import Size
from library.tensorfile import remembered_hash

if TYPE_CHECKING:
    from torch import Tensor

logger = get_logger(__name__)

RECORDED_OPTIONS = (  # recorded as ss_<name>, where the script has them
    *("output_name", "training_comment", "learning_rate", "text_encoder_lr", "unet_lr", "max_train_steps", "seed"),
    *("gradient_checkpointing", "gradient_accumulation_steps", "lr_warmup_steps", "lr_scheduler", "max_grad_norm"),
    *("lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_timescale"),
    *("lr_scheduler_min_lr_ratio", "lr_scheduler_args"),
    *("network_module", "network_dim", "network_alpha", "network_dropout", "network_args"),
    *("network_train_unet_only", "network_train_text_encoder_only"),
    *("mixed_precision", "full_fp16", "full_bf16", "fp8_base", "fp8_base_unet", "lowram", "cache_latents"),
    *("save_precision", "v2", "v_parameterization", "clip_skip", "max_token_length"),
    *("noise_offset", "noise_offset_random_strength", "multires_noise_iterations", "multires_noise_discount"),
    *("adaptive_noise_scale", "zero_terminal_snr", "ip_noise_gamma", "ip_noise_gamma_random_strength"),
    *("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate"),
    *("face_crop_aug_range", "prior_loss_weight", "min_snr_gamma", "scale_weight_norms", "debiased_estimation"),
    *("scale_v_pred_loss_like_noise_pred", "v_pred_like_loss", "masked_loss", "min_timestep", "max_timestep"),
    *("loss_type", "huber_schedule", "huber_scale", "huber_c"),
    *("ema_decay", "max_bad_steps"),
    *("validation_seed", "validation_split", "max_validation_steps"),
    *("validate_every_n_epochs", "validate_every_n_steps", "resize_interpolation"),
)
JSON_KEYS = frozenset(  # whose values are JSON
    ("ss_network_args", "ss_datasets", "ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_bucket_info")
)
_BACKGROUND = 10  # niceness, of -20 to 19: a tenth of what a thread of the usual 0 gets
MAX_THUMBNAIL_BYTES = 1 << 17  # of the data URL, an eighth of the largest header
_OWN_NAMES = {"debiased_estimation": "debiased_estimation_loss"}  # option of another name than its key
_KINDS = {"lora": "LoRA", "textual-inversion": "TextualInversion"}  # what is behind the base's architecture
_DESCRIPTIONS = (  # modelspec.<name>, from the option --metadata_<name>
    *("author", "description", "license", "tags", "usage_hint", "merged_from"),
    *("trigger_phrase", "preprocessor", "is_negative_embedding"),
)


def build_metadata(options: Mapping[str, object], facts: Mapping[str, object]) -> dict[str, str]:
    """The ss_* keys of a training.

    Args:
        options: {name: value} of all options, flat; those of `RECORDED_OPTIONS` are taken.
        facts: {key without ss_: value} of everything that is not an option: session_id, training_started_at,
            num_train_images, num_reg_images, num_batches_per_epoch, num_epochs, epoch, steps, optimizer,
            base_model_version; what `describe_datasets` (dataset_summary.py) and `describe_file` give; network_args as
            a mapping; the family's own keys. A fact wins over an option of its name.

    Returns:
        Strings. None is "None", truth values are "True" and "False"; nested values are JSON.
    """
    recorded = {
        name: options[_OWN_NAMES.get(name, name)] for name in RECORDED_OPTIONS if _OWN_NAMES.get(name, name) in options
    }
    values = {**recorded, **facts}
    if not values.get("network_args"):
        values.pop("network_args", None)
    named = {f"ss_{name}": value for name, value in values.items()}
    return {key: json.dumps(value) if key in JSON_KEYS else _text(value) for key, value in named.items()}


def modelspec(
    architecture: str,
    *,
    options: Mapping[str, object],
    resolution: Size,
    prediction_type: str | None,
    saved_at: float,
    implementation: str = "diffusers",
    implementation_version: str | None = None,
) -> dict[str, str]:
    """The modelspec.* keys of a saved file.

    Args:
        architecture: Of the family, with "/lora" behind it for a network.
        options: {name: value}: output_name, the metadata_* options (metadata_thumbnail from `read_thumbnail`),
            min_timestep, max_timestep, clip_skip.
        resolution: That was trained at.
        prediction_type: "epsilon", "v", or "flow": what a flow-matching model predicts is neither of ModelSpec's two.
            None where it is not known.
        saved_at: Seconds since 1970.
        implementation: What the weights are laid out for.
        implementation_version: Of this code.
    """
    kind = _KINDS.get(architecture.partition("/")[2], "Checkpoint")
    title = options.get("metadata_title") or options.get("output_name") or f"{kind}@{int(saved_at)}"
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": implementation,
        "title": title,
        "resolution": f"{resolution.width}x{resolution.height}",
        "date": datetime.fromtimestamp(int(saved_at)).isoformat(),  # local time without zone, as ModelSpec has it
        **{name: options.get(f"metadata_{name}") for name in _DESCRIPTIONS},
        "thumbnail": options.get("metadata_thumbnail"),
        "implementation_version": implementation_version,
        "prediction_type": prediction_type,
        "timestep_range": _timestep_range(options.get("min_timestep"), options.get("max_timestep")),
        "encoder_layer": options.get("clip_skip"),
    }
    return {f"modelspec.{name}": _text(value) for name, value in values.items() if value is not None and value != ""}


def file_metadata(
    tensors: Mapping[str, Tensor], training: Mapping[str, str], spec: Mapping[str, str], *, no_metadata: bool = False
) -> dict[str, str]:
    """Everything that goes into the header of a network's file; nothing with `no_metadata`.

    Args:
        tensors: As they are saved.
        training: From `build_metadata`.
        spec: From `modelspec`.
        no_metadata: So that equal weights give equal bytes.
    """
    if no_metadata:
        return {}
    model_hash, legacy_hash = tensor_hashes(tensors, training)
    return {**training, **spec, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}


def tensor_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """sshs_model_hash and sshs_legacy_hash of tensors as a file with the ss_* part of `metadata` would hold them.

    The first is the SHA-256 of the tensor data. The second is 8 digits of the SHA-256 of the 64 KiB that begin 1 MiB
    into the file; smaller files give "e3b0c442".
    """
    from safetensors.torch import save

    recorded = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    data = memoryview(save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, recorded))
    header_length = int.from_bytes(data[:8], "little")
    return hashlib.sha256(data[8 + header_length :]).hexdigest(), _legacy(data[0x100000:0x110000])


def _text(value: object) -> str:
    """As Python prints it; a tuple as a list. Parts of file names that are no text are replaced."""
    text = str(list(value) if isinstance(value, tuple) else value)
    return text.encode("utf-8", "replace").decode("utf-8")


def _timestep_range(low: object, high: object) -> str | None:
    if low is None and high is None:
        return None
    return f"{0 if low is None else low},{1000 if high is None else high}"


def read_thumbnail(source: str | Path | None) -> str | None:
    """A picture file as a data URL, a data URL as it is; None, with a warning, where it is of no use."""
    text = str(source or "")
    named = "(a data URL)"
    if not text:
        return None
    if not text.startswith("data:"):
        try:
            data = Path(text).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            logger.warning("--metadata_thumbnail %s cannot be read (%s) and is left out", text, reason)
            return None
        kind = mimetypes.guess_type(text)[0] or "image/png"
        named, text = text, f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    if len(text) <= MAX_THUMBNAIL_BYTES:
        return text
    logger.warning(
        "--metadata_thumbnail %s takes %d KiB of every file's header, %d are allowed, and is left out; "
        "make it smaller, for instance a JPEG of 256 x 256 pixels",
        *(named, len(text) >> 10, MAX_THUMBNAIL_BYTES >> 10),
    )
    return None


# Files that a training started from


@dataclass(frozen=True)
class FileHashes:
    """Hashes of a model file. "NOFILE" where it is missing, "IsADirectory" where it cannot be read.

    Attributes:
        legacy: 8 digits of the SHA-256 of the 64 KiB that begin 1 MiB into it; fast, but not unique.
        sha256: Of the whole file.
    """

    legacy: str
    sha256: str


def file_hashes(path: Path) -> FileHashes:
    """Hashes of a file; those of large ones take seconds, and are remembered by size and modification time."""
    try:
        with open(path, "rb") as file:
            file.seek(0x100000)
            legacy = _legacy(file.read(0x10000))
        return FileHashes(legacy, remembered_hash(path, "sha256", lambda: _sha256(path)))
    except FileNotFoundError:
        return FileHashes("NOFILE", "NOFILE")
    except OSError:  # a folder, which Windows reports as a lack of permission; or a drive that has gone
        return FileHashes("IsADirectory", "IsADirectory")


def hash_in_background(files: Mapping[str, Path]) -> Future[dict[str, FileHashes]]:
    """Hash files in a thread that does not keep the process alive and steps back for others; `.result()` waits.

    Args:
        files: {any name: path}; the names are those of the result.
    """
    future: Future[dict[str, FileHashes]] = Future()

    def work() -> None:
        _step_back()
        try:
            future.set_result({name: file_hashes(path) for name, path in files.items()})
        except BaseException as error:  # raised by result(), in the thread that asks
            future.set_exception(error)

    Thread(target=work, name="file hashes", daemon=True).start()
    return future


def _step_back() -> None:
    """Let this thread's reading and counting wait where others want the disk or a processor.

    On Linux priorities are those of threads, and the priority at the disk follows. Elsewhere they are those of the
    whole process, which stays as it is.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, get_native_id(), _BACKGROUND)


def describe_file(kind: str, path: Path, hashes: FileHashes) -> dict[str, str]:
    """Facts about a file for `build_metadata`.

    Args:
        kind: "sd_model" or "vae".
        path: As given by the user.
        hashes: From `file_hashes`.
    """
    return {f"{kind}_name": path.name, f"{kind}_hash": hashes.legacy, f"new_{kind}_hash": hashes.sha256}


def _legacy(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
