"""What a model family tells the trainer: about ten functions and a few constants.

A family is a small frozen value made from the options. It holds no weights: whatever it loads is
handed back and handed in again. The trainer imports this file and never a concrete family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.diffusion.samplers import AfterStep, SamplerWays, Start
    from library.records import Size, View
    from networks.targets import ModelOutline


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about the picture.

    Attributes:
        context: Token states. Shape [B, N, D].
        pooled: One vector per sample. Shape [B, P].
        is_used: False for rows of the context that are all zero and may be merged. On the CPU, whatever device the
            others are on. Shape [B, N], bool. None where none may.
        sizes: What the picture is shown of, for families whose denoiser is told: original height and width, top and
            left of the crop, height and width. In pixels. Shape [B, 6], float32.
    """

    context: Tensor
    pooled: Tensor
    is_used: Tensor | None = None
    sizes: Tensor | None = None

    def take(self, rows: Tensor, on_host: Tensor) -> Conditioning:
        """Of some samples, whose numbers are given on both sides."""
        used = None if self.is_used is None else self.is_used[on_host]
        sizes = None if self.sizes is None else self.sizes[rows]
        return Conditioning(self.context[rows], self.pooled[rows], used, sizes)


class ModelFamily(Protocol):
    """One family of diffusion models. `Files` below is whatever `inspect` returns; only the family looks inside.

    Text encoders come and go as a mapping {name: module} in a fixed order ("clip_l", "clip_g", "t5xxl"), VAE and
    denoiser as modules. Text states are {name: Tensor [B, ...]}. Latents are scaled everywhere outside
    `encode_images` and `decode_latents`.
    """

    @property
    def name(self) -> str:
        """Also the suffix of cache files."""

    @property
    def denoiser_name(self) -> str:
        """For logs."""

    @property
    def latent_channels(self) -> int:
        """Of latents."""

    @property
    def pixels_per_latent(self) -> int:
        """Side of what a latent stands for."""

    @property
    def bucket_multiple(self) -> int:
        """Sides of buckets must be multiples of this many pixels."""

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """Text encoders, in their order."""

    @property
    def sample_size(self) -> int:
        """Side of a sample picture where its prompt says nothing, in pixels."""

    @property
    def sample_steps(self) -> int:
        """Sampling steps, likewise."""

    @property
    def sample_guidance(self) -> float:
        """Guidance scale, likewise."""

    @property
    def sample_multiple(self) -> int:
        """Sides of a sample picture are multiples of this many pixels."""

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of `--sample_sampler` that make a difference; empty where there is one sampler."""

    @property
    def is_weighted(self) -> bool:
        """Whether brackets in captions and prompts weigh words."""

    @property
    def prediction_type(self) -> str:
        """As metadata has it: "epsilon", "v", or "flow"."""

    @property
    def dropout_rates(self) -> Mapping[str, float]:
        """Chance of dropping what an encoder says, by its name."""

    def for_buckets(self, resolutions: Sequence[Size], buckets: Sequence[Size]) -> ModelFamily:
        """The same family, told which resolutions and sizes the data has."""

    def refuse_other_models(self, instead: Mapping[str, str] | None = None) -> None:
        """Look at the header of the model's file, where it can be read, without torch; `inspect` does the rest.

        Args:
            instead: {"sd1", "sd2", "sdxl", "sd3" or "sd3_diffusers": what to do with such a model}. Not given means
                the scripts that train it.

        Raises:
            CheckpointError: It is known to be something else than a model of this family.
        """

    def inspect(self) -> Any:
        """Look at headers only: find every part, detect the variant, refuse what does not fit. Fast, no weights."""

    def as_marked(self, files: Any) -> ModelFamily:
        """The same family, told what these files say of themselves, such as that they predict the velocity.

        Raises:
            CheckpointError: It is nothing that the family knows.
        """

    def with_text_rows(self, number: int) -> ModelFamily:
        """The same family, reading texts of so many rows of 75 tokens; itself where texts have no such rows."""

    def depth(self, files: Any) -> int:
        """Number of swappable blocks of the denoiser."""

    def longest_side(self, files: Any) -> int | None:
        """Longest side of a picture that the denoiser can place, in pixels; None for any."""

    def load_denoiser(
        self,
        files: Any,
        dtype: torch.dtype,
        device: torch.device,
        change: Callable[[nn.Module], None] | None = None,
        *,
        rounds_on: torch.device | None = None,
    ) -> nn.Module:
        """The denoiser, frozen. `change` is called with it before options put its weights into fewer bits; until then
        it may be on the host, in the precision of its file. `rounds_on` is the device that puts them there, one after
        the other, if it is not `device`."""

    def denoiser_outline(self, files: Any) -> nn.Module:
        """The denoiser with the shapes of its weights and without numbers. Fast."""

    def vae_outline(self, files: Any, dtype: torch.dtype) -> nn.Module:
        """The VAE likewise."""

    def encoder_outline(self, files: Any, name: str, dtype: torch.dtype) -> nn.Module:
        """A text encoder likewise, in the format that options ask for where the others are in `dtype`."""

    def encoder_device(self, name: str, device: torch.device) -> torch.device:
        """Where a frozen text encoder runs whose denoiser is on `device`."""

    def denoiser_inputs(self, files: Any, size: Size, number: int, text_dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of the denoiser's forward for so many pictures with full texts, of any numbers, on the host."""

    def tokens_of_full_length(self, names: Sequence[str], number: int) -> dict[str, Tensor]:
        """As `tokenize` gives them for so many captions, of any words."""

    def part_names(self, files: Any) -> tuple[str, ...]:
        """Parts of the denoiser that may have learning rates of their own, in order: embedders, each block, what is
        behind them."""

    def denoiser_parts(self, denoiser: nn.Module) -> dict[str, list[nn.Module]]:
        """{name as in `part_names`: its modules}"""

    def network_encoders(self, arguments: Mapping[str, str]) -> tuple[str, ...]:
        """Text encoders that a network with these --network_args is for, unless it is for the denoiser only."""

    def check_network_options(self, options: Any, arguments: Mapping[str, str]) -> None:
        """Refuse options that do not go with the encoders of such a network.

        Raises:
            OptionError: They do not.
        """

    def network_model(self, files: Any) -> ModelOutline:
        """What of the denoiser the names and ranks of a network can be checked against."""

    def encoder_parameters(self, name: str, encoder: nn.Module) -> dict[str, nn.Parameter]:
        """{name: parameter} of an encoder, without what its files have no place for."""

    def load_vae(self, files: Any, dtype: torch.dtype, device: torch.device) -> nn.Module: ...

    def load_text_encoders(
        self, files: Any, dtype: torch.dtype, device: torch.device, names: Sequence[str]
    ) -> dict[str, nn.Module]:
        """The encoders that are asked for and there, frozen. Options may ask for another device or format of one;
        a `device` that is the CPU goes before them, for whoever has no room elsewhere."""

    def check_devices(self, device: torch.device) -> None:
        """Refuse devices of encoders that are not there, and devices that do not know a format that weights are to be
        kept in. `device` is where the denoiser runs."""

    def check_changed_encoders(self, names: Sequence[str], why: str) -> None:
        """Refuse options of encoders whose weights change; `why` is the rest of a sentence that begins with one."""

    def load_tokenizers(self, files: Any, names: Sequence[str]) -> Any:
        """The tokenizers of these encoders. No weights are read; without `files` (None) no words are checked."""

    def vae_identity(self, files: Any) -> str:
        """Hash of the VAE's weights, for cache headers."""

    def has_encoder(self, files: Any, name: str) -> bool:
        """Whether a text encoder is in one of the files."""

    def advice_for_missing(self, name: str) -> str:
        """What to do where an encoder that shall train is not there; the rest of the sentence, or its end, follows."""

    def encoder_bytes(self, files: Any, name: str) -> int:
        """Bytes of a text encoder's weights as they are stored; 0 where there is none."""

    def text_identity(self, files: Any, names: Sequence[str], dtype: torch.dtype) -> dict[str, str]:
        """What the outputs of these encoders depend on beside `dtype`, their precision unless options ask for another,
        as fields of a cache header: hashes and settings."""

    def text_settings(self, dtype: torch.dtype) -> dict[str, str]:
        """Of `text_identity` the settings, those of all encoders."""

    def npz_reader(self, files: Any, dtype: torch.dtype, encoders: Sequence[str] = ()) -> Any:
        """Reads cache files of sd-scripts, in this precision (library/data/cache/npz.py); of texts, these encoders."""

    def tokenize(self, tokenizers: Any, captions: Sequence[str]) -> dict[str, Tensor]:
        """{encoder name: ids [B, L], encoder name + "_mask": [B, L]}"""

    def caption_lengths(self, tokenizers: Any, captions: Sequence[str]) -> dict[str, tuple[list[int], int]]:
        """{encoder: (tokens of each caption with begin and end, how many of them the encoder reads)}"""

    def caption_cuts(self, tokenizers: Any, caption: str) -> dict[str, int]:
        """{encoder: index of the first character that it does not read}, of encoders the caption is too long for."""

    def text_state_bytes(
        self, files: Any, names: Sequence[str], lengths: Sequence[Mapping[str, int]], *, element_bytes: int
    ) -> int:
        """Bytes that a cache keeps of these encoders' outputs for captions of these lengths, {encoder: tokens} each.

        An encoder that is missing in a mapping counts in full.
        """

    def encode_text(self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States of the encoders that are given, on the device of each, with the masked rows set to zero where options
        ask for it. The tokens may be on the host."""

    def text_rows(self, tokens: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """{encoder: for each sample the rows of its states up to which they may differ from zero}, of encoders whose
        padding `encode_text` sets to zero. The tokens are on the host."""

    def drop_text(self, states: Mapping[str, Tensor], uniform: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encoder dropout. `uniform` holds draws in [0, 1), shape [B], for each encoder with a rate above 0."""

    def join_text(
        self,
        states: Mapping[str, Tensor],
        denoiser: nn.Module,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> Conditioning:
        """The states of all encoders as the denoiser wants them. `rows` is as from `text_rows`, of encoders where it
        is known."""

    def place(self, conditioning: Conditioning, views: Sequence[View]) -> Conditioning:
        """The same, with what the denoiser is told about what each row's picture shows."""

    def may_merge_padding(self, size: Size, device: torch.device) -> bool:
        """Whether contexts that go with pictures of this size may come with fewer rows, and not all with as many."""

    def encode_images(self, vae: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
        """images [B, 3, H, W] in -1..1, noise [B, C, h, w] for the draw from the posterior -> scaled latents."""

    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] -> images [B, 3, H, W] in -1..1."""

    def predict(
        self,
        denoiser: nn.Module,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        *,
        position_draw: tuple[float, float, float] | None = None,
    ) -> Tensor:
        """The model's output. `position_draw` (three numbers in [0, 1)) is given while training only."""

    def objective(self) -> Any:
        """The training objective (library/diffusion/objective.py)."""

    def sample(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        *,
        num_steps: int,
        sampler: str | None = None,
        guidance_scale: float = 1.0,
        seed: int | Sequence[int] = 0,
        on_step: Callable[[int, int], None] | None = None,
        start: Start | None = None,
        after_step: AfterStep | None = None,
        ways: SamplerWays | None = None,
    ) -> Tensor:
        """From noise to scaled latents [B, C, h, w], float32.

        Args:
            predict: (noisy latents [R, C, h, w], timesteps [R]) -> prediction. With guidance R is 2B: rows for the
                prompts first, then those for the negative prompts.
            noise: Standard normal. Shape [B, C, h, w].
            num_steps: Sampling steps.
            sampler: One of the names of `--sample_sampler`, for families that have several; None for the usual one.
            guidance_scale: 1 is without guidance.
            seed: Of samplers that draw noise on the way; or that of each row.
            on_step: Called after each step with the number of steps done and of all steps.
            start: Clean latents to add the noise to, and how much of it; None begins at noise.
            after_step: Called after each step; gives the latents to go on with.
            ways: What samplers do otherwise, of families that have several.
        """

    def metadata(self, files: Any) -> dict[str, Any]:
        """What the family adds to the metadata of a saved file."""

    def architecture(self, files: Any) -> str:
        """Name for modelspec.architecture, for instance "stable-diffusion-3-medium"."""

    def network_to_diffusers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A trained network's tensors under the names that diffusers loads."""

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
        """Write a whole model. Returns what was written.

        Args:
            path: One file, or a folder for the layout "diffusers".
            denoiser: What of its state was trained, and its buffers; the rest is read from `files`.
            encoders: {name: state} of those that were trained; the others are read from `files`.
            layout: "safetensors", "ckpt" or "diffusers".
            bundled: Encoders that go into the one file. One that was trained and is not among them gets its own.
            dtype: Of all weights; None keeps what each has.
            metadata: For the header.

        Raises:
            OutputError: It cannot be written.
        """

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
        """Bytes that `write_model` takes on the disk. Shapes and types of the states are enough: nothing is read."""

    def check_places(self, files: Any, paths: Iterable[Path], *, layout: str) -> None:
        """See, before anything is trained, that `write_model` may write to these paths, side files among them.

        Raises:
            OutputError: One is a file that the model is read from, which happens again at every save; or there is
                something that is no model in this layout.
        """

    def part_files(self, files: Any) -> dict[str, Path]:
        """{"model": path, "vae": path if given separately}: files named in the metadata."""
