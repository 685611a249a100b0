"""What the families around a U-Net share: Stable Diffusion 1.x, 2.x and SDXL, as the trainer asks for it.

A family says beside this which text encoders it has, which layer of them is read, and what the U-Net is told. Sources:
Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952; the published checkpoints.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from library.errors import CheckpointError
from library.log import get_logger
from library.options.groups.sampling import SAMPLERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.diffusion.ddpm import DdpmObjective
    from library.families.base import Conditioning
    from library.families.unet.checkpoint import UnetFiles
    from library.families.unet.npz_cache import UnetNpzReader
    from library.families.unet.text import LayerChoice
    from library.models.tokenizers import TokenizerSet
    from library.models.unet import UNet
    from library.records import Size, View
    from networks.targets import ModelOutline


logger = get_logger(__name__)

_MARKS = {  # what a model says of itself, and the options that train it so
    "v_pred": ("predicts the velocity", "--v_parameterization"),
    "ztsnr": ("knows noise without any signal", "--zero_terminal_snr"),
}


@dataclass(frozen=True, kw_only=True)
class UnetFamily:
    """The settings of a run that such families have, and the functions of `library/families/base.py`.

    Attributes:
        kinds: Of models that the family takes: "sd1", "sd2", "sdxl".
        num_chunks: Rows of 77 tokens that a caption may fill.
        is_weighted: Captions may weigh their words.
        noise: Settings of the objective, which needs torch; see `library/families/unet/objective.py`.
    """

    name: str
    denoiser_name: str = "unet"
    latent_channels: int = 4
    pixels_per_latent: int = 8
    bucket_multiple: int
    encoder_names: tuple[str, ...]
    sample_size: int
    sample_steps: int = 30
    sample_guidance: float = 7.5
    sample_multiple: int = 8
    samplers: tuple[str, ...] = SAMPLERS
    dropout_rates: Mapping[str, float] = field(default_factory=dict)

    kinds: tuple[str, ...]
    pretrained: Path
    vae: Path | None = None
    tokenizer_dir: Path | None = None
    tokenizer_cache_dir: Path | None = None
    mmap: bool = True
    allow_pickle: bool = False
    weights_format: str | None = None

    num_chunks: int = 1
    is_weighted: bool = False
    noise: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_velocity(self) -> bool:
        """Whether the model predicts the velocity."""
        return bool(self.noise.get("v_parameterization"))

    @property
    def is_zero_terminal(self) -> bool:
        """Whether the schedule ends in pure noise."""
        return bool(self.noise.get("zero_terminal_snr"))

    @property
    def prediction_type(self) -> str:
        """As metadata has it."""
        return "v" if self.is_velocity else "epsilon"

    def for_buckets(self, resolutions: Sequence[Size], buckets: Sequence[Size]) -> UnetFamily:
        """Sizes change nothing."""
        return self

    # What a family says beside this

    @abstractmethod
    def text_layers(self) -> Mapping[str, LayerChoice]:
        """Which states of each encoder are read."""

    @abstractmethod
    def join_text(
        self,
        states: Mapping[str, Tensor],
        denoiser: nn.Module,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> Conditioning:
        """The states as the U-Net wants them."""

    @abstractmethod
    def architecture(self, files: UnetFiles) -> str:
        """Name for modelspec.architecture."""

    @abstractmethod
    def metadata(self, files: UnetFiles) -> dict[str, Any]:
        """What only these files say, without ss_."""

    @abstractmethod
    def zero_padded(self, files: UnetFiles | None) -> tuple[str, ...]:
        """Encoders whose captions are filled up with token 0, and not with the end token."""

    def place(self, conditioning: Conditioning, views: Sequence[View]) -> Conditioning:
        """The U-Net is told nothing of sizes."""
        return conditioning

    def denoiser_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """What the U-Net is told beside the text."""
        return {}

    # Files

    def inspect(self) -> UnetFiles:
        """Look at the headers of every file that is given.

        Raises:
            CheckpointError: A file cannot be used, is of another family or predicts something else than options say,
                or parts are nowhere or incomplete.
        """
        from library.families.unet.checkpoint import inspect_files

        files = inspect_files(self.pretrained, kinds=self.kinds, vae=self.vae, allow_pickle=self.allow_pickle)
        self.check_marks(files)
        return files

    def check_marks(self, files: UnetFiles) -> None:
        """Refuse to train a model as something else than what it says of itself."""
        title = f"--pretrained_model_name_or_path: {self.pretrained} says that it"
        asked = {"v_pred": self.is_velocity, "ztsnr": self.is_zero_terminal}
        if missing := [mark for mark, is_given in asked.items() if mark in files.marks and not is_given]:
            said = " and ".join(_MARKS[mark][0] for mark in _MARKS if mark in files.marks)
            raise CheckpointError(f"{title} {said}. Add {' and '.join(_MARKS[mark][1] for mark in missing)}.")
        if "epsilon" in files.marks and self.is_velocity:
            logger.warning("%s predicts noise, and --v_parameterization trains it to predict the velocity.", title)

    def depth(self, files: UnetFiles) -> int:
        """Number of blocks that can wait in host memory."""
        from library.families.unet.checkpoint import empty_unet

        return len(empty_unet(files).block_row())

    def longest_side(self, files: UnetFiles) -> int | None:
        """A U-Net has no table of positions."""
        return None

    def has_encoder(self, files: UnetFiles, name: str) -> bool:
        """`inspect` has made sure of all."""
        return name in files.encoders

    def encoder_bytes(self, files: UnetFiles, name: str) -> int:
        """Bytes of an encoder's weights as they are stored."""
        part = files.encoders[name]
        return sum(part.source.tensors[key].end - part.source.tensors[key].start for key in part.names)

    def write_model(
        self,
        path: Path,
        *,
        files: UnetFiles,
        denoiser: Mapping[str, Tensor],
        encoders: Mapping[str, Mapping[str, Tensor]],
        layout: str,
        bundled: Sequence[str],
        dtype: torch.dtype | None,
        metadata: Mapping[str, str] | None,
    ) -> list[Path]:
        """A whole model in the published layout, or as a diffusers folder; see library/families/base.py."""
        from library.families.unet.export import write_model

        return write_model(
            path,
            self._model_to_write(files, denoiser, encoders, dtype),
            layout=layout,
            metadata=metadata,
            tokenizers=partial(self.load_tokenizers, files, self.encoder_names),
        )

    def model_bytes(
        self,
        files: UnetFiles,
        *,
        denoiser: Mapping[str, Tensor],
        encoders: Mapping[str, Mapping[str, Tensor]],
        layout: str,
        bundled: Sequence[str],
        dtype: torch.dtype | None,
    ) -> int:
        """What `write_model` takes on the disk."""
        from library.families.unet.export import model_bytes

        return model_bytes(self._model_to_write(files, denoiser, encoders, dtype), layout=layout)

    def _model_to_write(self, files: Any, denoiser: Any, encoders: Any, dtype: Any) -> Any:
        from library.families.unet.export import UnetModel

        marks = {"v_pred": self.is_velocity, "ztsnr": self.is_zero_terminal}
        return UnetModel(
            files, denoiser, encoders, dtype, self.mmap, frozenset(name for name, is_on in marks.items() if is_on)
        )

    def check_places(self, files: UnetFiles, paths: Iterable[Path], *, layout: str) -> None:
        """Refuse paths where a model may not be written."""
        from library.families.unet.export import check_places

        check_places(files, paths, layout=layout)

    def part_files(self, files: UnetFiles) -> dict[str, Path]:
        """The files that metadata names."""
        return {"model": files.path, **({"vae": self.vae} if self.vae else {})}

    def network_to_diffusers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The PEFT names and factors that diffusers loads."""
        from library.families.unet.lora_format import kohya_to_diffusers

        return kohya_to_diffusers(state, self.name)

    # Networks

    def network_encoders(self, arguments: Mapping[str, str]) -> tuple[str, ...]:
        """All of them."""
        return self.encoder_names

    def check_network_options(self, options: Any, arguments: Mapping[str, str]) -> None:
        """The options have been checked among each other already."""

    def network_model(self, files: UnetFiles) -> ModelOutline:
        """Every linear and convolution layer, as files of networks name them."""
        from library.families.unet.checkpoint import network_layers
        from networks.targets import ModelOutline

        return ModelOutline(files.kind, network_layers(files), 0)

    # Loading

    def load_denoiser(
        self,
        files: UnetFiles,
        dtype: torch.dtype,
        device: torch.device,
        change: Callable[[nn.Module], None] | None = None,
        *,
        rounds_on: torch.device | None = None,
    ) -> nn.Module:
        """The U-Net, frozen, in evaluation mode; in 8 or 4 bits where it is asked for."""
        from library.families.unet.checkpoint import load_unet

        form = self.weights_format
        if change is None:
            return load_unet(files, dtype, device, self.mmap, form=form, rounds_on=rounds_on)
        if form is None:
            model = load_unet(files, dtype, device, self.mmap)
            change(model)
            return model
        from library.families.unet.quantized import quantize_unet

        model = load_unet(files, None, "cpu", self.mmap)
        change(model)
        return quantize_unet(model, form, dtype, device, rounds_on=rounds_on)

    def denoiser_outline(self, files: UnetFiles) -> nn.Module:
        """The U-Net with shapes only."""
        from library.families.unet.checkpoint import empty_unet

        return empty_unet(files)

    def vae_outline(self, files: UnetFiles, dtype: torch.dtype) -> nn.Module:
        """The autoencoder with shapes only."""
        from library.families.unet.outlines import vae_outline

        return vae_outline(files, dtype)

    def encoder_outline(self, files: UnetFiles, name: str, dtype: torch.dtype) -> nn.Module:
        """A text encoder with shapes only."""
        from library.families.unet.outlines import encoder_outline

        return encoder_outline(files, name, dtype)

    def encoder_device(self, name: str, device: torch.device) -> torch.device:
        """With the denoiser."""
        return device

    def denoiser_inputs(self, files: UnetFiles, size: Size, number: int, text_dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of the U-Net for so many pictures with full texts."""
        from library.families.unet.outlines import denoiser_inputs

        return denoiser_inputs(
            files,
            size,
            number,
            num_tokens=75 * self.num_chunks + 2,
            text_dtype=text_dtype,
            cells=self.pixels_per_latent,
        )

    def tokens_of_full_length(self, names: Sequence[str], number: int) -> dict[str, Tensor]:
        """Ids and masks of so many captions."""
        from library.families.unet.outlines import tokens

        return tokens(tuple(names), number, self.num_chunks)

    def part_names(self, files: UnetFiles) -> tuple[str, ...]:
        """Embedders, every block of the published layout, what is behind them."""
        return tuple(self.denoiser_parts(self.denoiser_outline(files)))

    def denoiser_parts(self, denoiser: nn.Module) -> dict[str, list[nn.Module]]:
        """The same with their modules."""
        from library.families.unet.rate_parts import rate_parts

        return rate_parts(denoiser)

    def encoder_parameters(self, name: str, encoder: nn.Module) -> dict[str, nn.Parameter]:
        """Those that what is read depends on: layers behind it, and a projection that nothing reads, do not train."""
        from library.families.unet.text import reached_parameters

        return reached_parameters(encoder, self.text_layers()[name])

    def load_vae(self, files: UnetFiles, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The 4-channel autoencoder, frozen."""
        from library.families.unet.checkpoint import load_vae

        with _naming(files.vae.path):
            return load_vae(files, dtype, device, self.mmap).requires_grad_(False).eval()

    def load_text_encoders(
        self, files: UnetFiles, dtype: torch.dtype, device: torch.device, names: Sequence[str]
    ) -> dict[str, nn.Module]:
        """The encoders that are asked for, frozen, in evaluation mode."""
        from library.families.unet.checkpoint import load_encoder

        encoders = {}
        for name in names:
            with _naming(files.encoders[name].path):
                encoders[name] = load_encoder(files, name, dtype, device, self.mmap).requires_grad_(False).eval()
        return encoders

    def check_devices(self, device: torch.device) -> None:
        """See whether the device knows the format of weights."""
        from library.families.quantized import check_form

        check_form(self.weights_format, device)

    def check_changed_encoders(self, names: Sequence[str], why: str) -> None:
        """No encoder is asked for elsewhere or in a format of its own."""

    def load_tokenizers(self, files: UnetFiles | None, names: Sequence[str]) -> TokenizerSet:
        """The tokenizers of these encoders."""
        from library.families.unet.parts import encoder_tokens
        from library.models.tokenizers import load_tokenizers

        rows = None if files is None else {name: encoder_tokens(files.encoders[name]) for name in names}
        return load_tokenizers(
            names,
            tokenizer_dir=self.tokenizer_dir,
            cache_dir=self.tokenizer_cache_dir,
            model_path=files.path if files is not None else _given(self.pretrained),
            vocab_rows=rows,
            zero_padded=self.zero_padded(files),
        )

    def vae_identity(self, files: UnetFiles) -> str:
        """Hash of the VAE's weights."""
        from library.checkpoint.weights import part_identity

        return part_identity(files.vae)

    def text_identity(self, files: UnetFiles, names: Sequence[str], dtype: torch.dtype) -> dict[str, str]:
        """What the outputs of these encoders depend on, as fields of a cache header."""
        from library.checkpoint.weights import part_identity

        return {**{name: part_identity(files.encoders[name]) for name in names}, **self.text_settings(dtype)}

    def text_settings(self, dtype: torch.dtype) -> dict[str, str]:
        """Settings that what the text encoders give depends on."""
        from library.families.unet.text import text_settings

        return text_settings(self.text_layers(), num_chunks=self.num_chunks, is_weighted=self.is_weighted)

    def npz_reader(self, files: UnetFiles, dtype: torch.dtype, encoders: Sequence[str] = ()) -> UnetNpzReader:
        """Reads cache files of sd-scripts as a run with these settings would have written them."""
        from library.families.unet.npz_cache import UnetNpzReader
        from library.families.unet.parts import encoder_width

        return UnetNpzReader(
            family=self.name,
            encoders=tuple(encoders),
            widths={name: encoder_width(files.encoders[name]) for name in encoders},
            num_chunks=self.num_chunks,
            is_weighted=self.is_weighted,
            dtype=dtype,
        )

    # Text

    def tokenize(self, tokenizers: TokenizerSet, captions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and masks of every encoder, in whole rows of 77. Shapes [B, 77 num_chunks]."""
        from library.families.unet.text import tokenize

        return tokenize(tokenizers, captions, num_chunks=self.num_chunks, is_weighted=self.is_weighted)

    def caption_lengths(self, tokenizers: TokenizerSet, captions: Sequence[str]) -> dict[str, tuple[list[int], int]]:
        """Tokens of each caption, and the limit, for every encoder."""
        from library.families.unet.text_sizes import caption_lengths

        return caption_lengths(tokenizers, captions, num_chunks=self.num_chunks, is_weighted=self.is_weighted)

    def caption_cuts(self, tokenizers: TokenizerSet, caption: str) -> dict[str, int]:
        """Where the encoders stop reading a caption that is too long for them."""
        from library.families.unet.text_sizes import caption_cuts

        return caption_cuts(tokenizers, caption, num_chunks=self.num_chunks, is_weighted=self.is_weighted)

    def text_state_bytes(
        self, files: UnetFiles, names: Sequence[str], lengths: Sequence[Mapping[str, int]], *, element_bytes: int
    ) -> int:
        """Bytes of cached encoder outputs."""
        from library.families.unet.parts import encoder_width
        from library.families.unet.text_sizes import text_state_bytes

        widths = {name: encoder_width(files.encoders[name]) for name in names}
        return text_state_bytes(widths, len(lengths), num_chunks=self.num_chunks, element_bytes=element_bytes)

    def encode_text(self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States of the given encoders."""
        from library.families.unet.text import encode

        return encode(encoders, tokens, layers=self.text_layers())

    def text_rows(self, tokens: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """No row is zero."""
        return {}

    def drop_text(self, states: Mapping[str, Tensor], uniform: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """There is no encoder dropout."""
        return dict(states)

    def may_merge_padding(self, size: Size, device: torch.device) -> bool:
        """No row is zero, so none may be merged."""
        return False

    # Images

    def encode_images(self, vae: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
        """Images [B, 3, H, W] to scaled latents [B, 4, H/8, W/8]."""
        from library.models.vae import encode_images

        with _naming(self.vae or self.pretrained):
            return encode_images(cast(Any, vae), images, noise)

    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Scaled latents to images in -1..1."""
        from library.models.vae import decode_latents

        return decode_latents(cast(Any, vae), latents)

    # Diffusion

    def objective(self) -> DdpmObjective:
        """Diffusion in 1000 steps."""
        from library.families.unet.objective import make_objective

        return make_objective(self.noise)

    def sample(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        *,
        num_steps: int,
        sampler: str | None = None,
        guidance_scale: float = 1.0,
        seed: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """By one of the samplers of `library/diffusion/ddpm_samplers.py`."""
        from library.diffusion.ddpm_samplers import sample_ddpm

        return sample_ddpm(
            predict,
            noise,
            sampler=sampler or "ddim",
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            is_velocity=self.is_velocity,
            is_zero_terminal=self.is_zero_terminal,
            seed=seed,
            on_step=on_step,
        )

    def predict(
        self,
        denoiser: nn.Module,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        *,
        position_draw: tuple[float, float, float] | None = None,
    ) -> Tensor:
        """The noise, or the velocity. Shape [B, 4, h, w]."""
        unet = cast("UNet", denoiser)
        result: Tensor = unet(
            noisy_latents.to(unet.dtype),
            timesteps,
            encoder_hidden_states=conditioning.context,
            return_dict=False,
            **self.denoiser_arguments(conditioning),
        )[0]
        return result


def _given(path: Path) -> Path | None:
    return None if path == Path() else path


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file at the beginning of a message that does not name it."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error
