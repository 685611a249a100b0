"""What all families answer alike: models of a denoiser, a VAE and text encoders, which lie in files.

A family inherits from `LatentFamily` and says how its own parts are read, put into fewer bits, and written.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.checkpoint.weights import Part
    from library.families.base import Conditioning
    from library.families.detect import FileKind
    from library.models.tokenizers import TokenizerSet
    from library.records import View


@dataclass(frozen=True, kw_only=True)
class LatentFamily:
    """Settings that all families have, and the functions of `library/families/base.py` that are alike.

    Attributes:
        encoder_names: In a fixed order.
        pretrained: The model's file or folder, or its name on the hub; `Path()` where none is given.
        vae: A VAE of its own, which wins over the model's.
        tokenizer_dir: Where tokenizers are looked for first.
        tokenizer_cache_dir: Where they are kept.
        mmap: See `read_weights`.
        allow_pickle: Also read .ckpt files that hold more than tensors.
        weights_format: Of the denoiser's layers, where it is frozen.
        is_weighted: Brackets in captions and prompts weigh words.
    """

    encoder_names: tuple[str, ...]
    pretrained: Path
    vae: Path | None = None
    tokenizer_dir: Path | None = None
    tokenizer_cache_dir: Path | None = None
    mmap: bool = True
    allow_pickle: bool = False
    weights_format: str | None = None
    is_weighted: bool = False

    # What a family says beside this. `files` is what its `inspect` returns.

    @property
    @abstractmethod
    def file_kinds(self) -> tuple[FileKind, ...]:
        """What the file of a model may be."""

    @abstractmethod
    def encoder_part(self, files: Any, name: str) -> Part | None:
        """Where a text encoder lies; None where there is none."""

    @abstractmethod
    def encoder_tokens(self, part: Part) -> int:
        """Number of tokens that a text encoder knows."""

    @abstractmethod
    def zero_padded(self, files: Any) -> tuple[str, ...]:
        """Encoders whose captions are filled up with token 0, and not with the end token. `files` may be None."""

    @abstractmethod
    def read_denoiser(
        self,
        files: Any,
        dtype: torch.dtype | None,
        device: torch.device | str,
        *,
        form: str | None = None,
        rounds_on: torch.device | None = None,
    ) -> nn.Module:
        """The denoiser, frozen, in evaluation mode; None for `dtype` is as it is stored."""

    @abstractmethod
    def quantize_denoiser(
        self, model: Any, form: str, dtype: torch.dtype, device: torch.device, *, rounds_on: torch.device | None
    ) -> nn.Module:
        """The same with the layers of its blocks in fewer bits."""

    @abstractmethod
    def read_vae(self, files: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The autoencoder."""

    @abstractmethod
    def read_encoder(self, files: Any, name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """A text encoder that is there."""

    @abstractmethod
    def export(self) -> Any:
        """The module that has `write_model`, `model_bytes` and `check_places` of this family."""

    @abstractmethod
    def model_to_write(self, files: Any, denoiser: Any, encoders: Any, dtype: Any) -> Any:
        """What these take."""

    def model_place(self, files: Any) -> Path:
        """Where the model lies; without `files` (None) as it was given."""
        return self.pretrained

    def with_text_rows(self, number: int) -> Any:
        """The same family, reading texts of so many rows of 75 tokens; itself where texts have no such rows."""
        return self

    # Files

    def as_marked(self, files: Any) -> Any:
        """Files say nothing of themselves that changes the family."""
        return self

    def refuse_other_models(self, instead: Mapping[str, str] | None = None) -> None:
        """A file that cannot be read, or is unknown, is told by `inspect`."""
        from library.checkpoint.weights import open_weights
        from library.families.detect import UNKNOWN, denoiser_place, file_kind, refuse_other_kind

        place = denoiser_place(self.pretrained)
        if self.pretrained == Path() or not place.exists():
            return
        try:
            kind = file_kind(open_weights(place, allow_pickle=True, is_told=True).shapes())
        except CheckpointError:
            return
        if kind != UNKNOWN:
            refuse_other_kind(place, kind, self.file_kinds, instead)
            self.refuse_kind(kind.name)

    def refuse_kind(self, kind: str) -> None:
        """What the options say against a file of a kind that the family has.

        Raises:
            CheckpointError: Something.
        """

    def has_encoder(self, files: Any, name: str) -> bool:
        """Whether the encoder is in one of the files."""
        return self.encoder_part(files, name) is not None

    def encoder_bytes(self, files: Any, name: str) -> int:
        """Bytes of an encoder's weights as they are stored."""
        part = self.encoder_part(files, name)
        if part is None:
            return 0
        return sum(part.source.tensors[key].end - part.source.tensors[key].start for key in part.names)

    def encoder_identities(self, files: Any, names: Sequence[str]) -> dict[str, str]:
        """{encoder: hash of its weights, "none" where there is none}"""
        from library.checkpoint.weights import part_identity

        parts = {name: self.encoder_part(files, name) for name in names}
        return {name: "none" if part is None else part_identity(part) for name, part in parts.items()}

    def vae_identity(self, files: Any) -> str:
        """Hash of the VAE's weights."""
        from library.checkpoint.weights import part_identity

        return part_identity(files.vae)

    def part_files(self, files: Any) -> dict[str, Path]:
        """The files that metadata names."""
        return {"model": self.model_place(files), **({"vae": files.vae.path} if self.vae else {})}

    def write_model(
        self,
        path: Path,
        *,
        files: Any,
        denoiser: Mapping[str, Tensor],
        encoders: Mapping[str, Mapping[str, Tensor]],
        layout: str,
        bundled: Sequence[str],
        dtype: torch.dtype | None,
        metadata: Mapping[str, str] | None,
    ) -> list[Path]:
        """A whole model in the published layout, or as a diffusers folder; see library/families/base.py."""
        written: list[Path] = self.export().write_model(
            path,
            self.model_to_write(files, denoiser, encoders, dtype),
            layout=layout,
            bundled=bundled,
            metadata=metadata,
            tokenizers=partial(self.load_tokenizers, files, self.encoder_names),
        )
        return written

    def model_bytes(
        self,
        files: Any,
        *,
        denoiser: Mapping[str, Tensor],
        encoders: Mapping[str, Mapping[str, Tensor]],
        layout: str,
        bundled: Sequence[str],
        dtype: torch.dtype | None,
    ) -> int:
        """What `write_model` takes on the disk."""
        model = self.model_to_write(files, denoiser, encoders, dtype)
        return int(self.export().model_bytes(model, layout=layout, bundled=bundled))

    def check_places(self, files: Any, paths: Iterable[Path], *, layout: str) -> None:
        """Refuse paths where a model may not be written."""
        self.export().check_places(files, paths, layout=layout)

    # Loading

    def load_denoiser(
        self,
        files: Any,
        dtype: torch.dtype,
        device: torch.device,
        change: Callable[[nn.Module], None] | None = None,
        *,
        rounds_on: torch.device | None = None,
    ) -> nn.Module:
        """The denoiser, frozen, in evaluation mode; in 8 or 4 bits where it is asked for."""
        form = self.weights_format
        if change is None:
            return self.read_denoiser(files, dtype, device, form=form, rounds_on=rounds_on)
        model = self.read_denoiser(files, dtype, device) if form is None else self.read_denoiser(files, None, "cpu")
        change(model)
        return model if form is None else self.quantize_denoiser(model, form, dtype, device, rounds_on=rounds_on)

    def load_vae(self, files: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The autoencoder, frozen, in evaluation mode."""
        with _naming(files.vae.path):
            return self.read_vae(files, dtype, device).requires_grad_(False).eval()

    def load_text_encoders(
        self, files: Any, dtype: torch.dtype, device: torch.device, names: Sequence[str]
    ) -> dict[str, nn.Module]:
        """The encoders that are asked for and there, frozen, in evaluation mode."""
        encoders = {}
        for name in names:
            part = self.encoder_part(files, name)
            if part is not None:
                with _naming(part.path):
                    encoders[name] = self.read_encoder(files, name, dtype, device).requires_grad_(False).eval()
        return encoders

    def load_tokenizers(self, files: Any, names: Sequence[str]) -> TokenizerSet:
        """The tokenizers of those of these encoders that are there; without files, of all."""
        from library.models.tokenizers import load_tokenizers

        place, rows = self.model_place(files), None
        if files is not None:
            parts = {name: self.encoder_part(files, name) for name in names}
            rows = {name: self.encoder_tokens(part) for name, part in parts.items() if part is not None}
        return load_tokenizers(
            names if rows is None else list(rows),
            tokenizer_dir=self.tokenizer_dir,
            cache_dir=self.tokenizer_cache_dir,
            model_path=None if place == Path() else place,
            vocab_rows=rows,
            zero_padded=self.zero_padded(files),
        )

    def check_devices(self, device: torch.device) -> None:
        """See whether the device knows the format of weights.

        Raises:
            EnvironmentFault: It does not.
        """
        from library.families.quantized import check_form

        check_form(self.weights_format, device)

    # A picture

    def place(self, conditioning: Conditioning, views: Sequence[View]) -> Conditioning:
        """The denoiser is told nothing of sizes."""
        return conditioning

    def encode_images(self, vae: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
        """Images [B, 3, H, W] to scaled latents [B, C, H/8, W/8]."""
        from library.models.vae import encode_images

        with _naming(self.vae or self.pretrained):
            return encode_images(vae, images, noise)

    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Scaled latents to images in -1..1."""
        from library.models.vae import decode_latents

        return decode_latents(vae, latents)


def model_settings(options: Any) -> dict[str, Any]:
    """Arguments of `LatentFamily` but for its encoders, from the options of a script."""
    model = options.model
    return {
        "pretrained": Path(model.pretrained_model_name_or_path or ""),
        "vae": path_or_none(model.vae),
        "tokenizer_dir": path_or_none(model.tokenizer_dir),
        "tokenizer_cache_dir": path_or_none(model.tokenizer_cache_dir),
        "mmap": not model.disable_mmap_load_safetensors,
        "allow_pickle": model.allow_pickle,
        "weights_format": options.memory.weights_format,
    }


def path_or_none(value: str | Path | None) -> Path | None:
    """An option as a path; None where it is not given."""
    return Path(value) if value else None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file at the beginning of a message that does not name it."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error
