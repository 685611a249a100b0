"""Stable Diffusion 3 / 3.5: what is special about it, as the trainer asks for it.

Sources: Esser et al. 2024, arXiv:2403.03206; the published checkpoints and their reference inference code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from library.device import send
from library.errors import CheckpointError, OptionError
from library.families.base import Conditioning
from library.families.sd3.options import EIGHT_BITS
from library.log import get_logger
from library.records import Size

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.diffusion.objective import FlowObjective
    from library.families.sd3.checkpoint import Part, Sd3Files
    from library.families.sd3.npz_cache import Sd3NpzReader
    from library.families.sd3.options import Sd3NetworkOptions
    from library.models.mmdit import MMDiT
    from library.models.positions import ScaledPositionTables
    from library.models.tokenizers import TokenizerSet
    from library.records import View
    from networks.targets import ModelOutline

logger = get_logger(__name__)

ENCODER_NAMES = ("clip_l", "clip_g", "t5xxl")
_DROPOUTS = ("dropout=", "neuron_dropout=")  # of --network_args, of single values


@dataclass(frozen=True, kw_only=True)
class Sd3Family:
    """The settings of one run that only SD3 has, and the functions of `library/families/base.py`."""

    name: str = "sd3"
    denoiser_name: str = "mmdit"
    latent_channels: int = 16
    pixels_per_latent: int = 8
    bucket_multiple: int = 16
    encoder_names: tuple[str, ...] = ENCODER_NAMES
    sample_size: int = 1024
    sample_steps: int = 28
    sample_guidance: float = 4.5
    sample_multiple: int = 16
    samplers: tuple[str, ...] = ()
    prediction_type: str = "flow"

    pretrained: Path
    clip_l: Path | None = None
    clip_g: Path | None = None
    t5xxl: Path | None = None
    vae: Path | None = None
    tokenizer_dir: Path | None = None
    tokenizer_cache_dir: Path | None = None
    mmap: bool = True
    allow_pickle: bool = False

    t5_length: int = 256
    t5_device: str | None = None
    t5_dtype: str | None = None  # as the option has it
    weights_format: str | None = None  # of the denoiser's linear layers, where it is frozen
    apply_lg_attn_mask: bool = False
    apply_t5_attn_mask: bool = False
    merges_padding: bool = True  # where a mask makes it zero; dropout of single values would make its rows unequal
    dropout_rates: Mapping[str, float]
    pos_emb_random_crop_rate: float = 0.0
    enable_scaled_pos_embed: bool = False
    resolutions: tuple[Size, ...] = ()
    buckets: tuple[Size, ...] = ()
    flow: Mapping[str, Any]  # settings of the objective, which needs torch

    @classmethod
    def from_options(cls, options: Sd3NetworkOptions) -> Sd3Family:
        """The family as the command line asks for it."""
        sd3, model = options.sd3, options.model
        return cls(
            pretrained=Path(model.pretrained_model_name_or_path or ""),
            clip_l=_path(sd3.clip_l),
            clip_g=_path(sd3.clip_g),
            t5xxl=_path(sd3.t5xxl),
            vae=_path(model.vae),
            tokenizer_dir=_path(model.tokenizer_dir),
            tokenizer_cache_dir=_path(model.tokenizer_cache_dir),
            mmap=not model.disable_mmap_load_safetensors,
            allow_pickle=model.allow_pickle,
            t5_length=sd3.t5xxl_max_token_length,
            t5_device=sd3.t5xxl_device,
            t5_dtype=sd3.t5xxl_dtype,
            weights_format=options.memory.weights_format,
            apply_lg_attn_mask=sd3.apply_lg_attn_mask,
            apply_t5_attn_mask=sd3.apply_t5_attn_mask,
            merges_padding=not _drops_single_values(options),
            dropout_rates={
                "clip_l": sd3.clip_l_dropout_rate,
                "clip_g": sd3.clip_g_dropout_rate,
                "t5xxl": sd3.t5_dropout_rate,
            },
            pos_emb_random_crop_rate=sd3.pos_emb_random_crop_rate,
            enable_scaled_pos_embed=sd3.enable_scaled_pos_embed,
            flow={
                "weighting_scheme": sd3.weighting_scheme,
                "training_shift": sd3.training_shift,
                "logit_mean": sd3.logit_mean,
                "logit_std": sd3.logit_std,
                "mode_scale": sd3.mode_scale,
                "min_timestep": options.loss.min_timestep,
                "max_timestep": options.loss.max_timestep,
            },
        )

    def for_buckets(self, resolutions: Sequence[Size], buckets: Sequence[Size]) -> Sd3Family:
        """The same settings, told what position tables have to cover."""
        return replace(self, resolutions=tuple(resolutions), buckets=tuple(buckets))

    # Files

    def inspect(self) -> Sd3Files:
        """Look at the headers of every file that is given. T5 may be missing, the other parts may not.

        Raises:
            CheckpointError: A file cannot be used, or parts are nowhere or incomplete; all are named.
        """
        from library.families.sd3.checkpoint import inspect_files
        from library.families.sd3.parts import TITLES

        files = inspect_files(
            self.pretrained,
            clip_l=self.clip_l,
            clip_g=self.clip_g,
            t5xxl=self.t5xxl,
            vae=self.vae,
            allow_pickle=self.allow_pickle,
        )
        parts = {"vae": files.vae, "clip_l": files.clip_l, "clip_g": files.clip_g}
        if missing := [name for name, part in parts.items() if part is None]:
            titles = " and no ".join(TITLES[name] for name in missing)
            flags = " and ".join(f"--{name}" for name in missing)
            raise CheckpointError(f"{self.pretrained} has no {titles} inside. Give the files with {flags}.")
        files.check_complete()
        if files.t5xxl is None:
            given = {"--t5xxl_device": self.t5_device, "--t5xxl_dtype": self.t5_dtype}
            idle = " and ".join(flag for flag, value in given.items() if value is not None)
            effect = f", so {idle} changes nothing" if idle else ""
            logger.warning("there is no T5 in %s and no --t5xxl: zeros stand for it%s.", self.pretrained, effect)
        return files

    def depth(self, files: Sd3Files) -> int:
        """Number of joint blocks."""
        return files.config.depth

    def longest_side(self, files: Sd3Files) -> int | None:
        """What the stored table of positions covers; tables are computed as needed with --enable_scaled_pos_embed."""
        patch_pixels = files.config.patch_size * self.pixels_per_latent
        return None if self.enable_scaled_pos_embed else files.config.position_side * patch_pixels

    def has_encoder(self, files: Sd3Files, name: str) -> bool:
        """Whether the encoder is in one of the files."""
        return self._part(files, name) is not None

    def encoder_bytes(self, files: Sd3Files, name: str) -> int:
        """Bytes of an encoder's weights as they are stored, or as it keeps them in 8 bits."""
        part = self._part(files, name)
        if part is None:
            return 0
        stored = sum(part.source.tensors[name].end - part.source.tensors[name].start for name in part.names)
        numbers = sum(prod(shape) for shape in part.shapes().values())
        return min(stored, numbers) if name == "t5xxl" and self.t5_dtype in EIGHT_BITS else stored

    def architecture(self, files: Sd3Files) -> str:
        """Name for modelspec.architecture."""
        return f"stable-diffusion-3-{files.variant}"

    def write_model(
        self,
        path: Path,
        *,
        files: Sd3Files,
        denoiser: Mapping[str, Tensor],
        encoders: Mapping[str, Mapping[str, Tensor]],
        layout: str,
        bundled: Sequence[str],
        dtype: torch.dtype | None,
        metadata: Mapping[str, str] | None,
    ) -> list[Path]:
        """A whole model in the published layout, or as a diffusers folder; see library/families/base.py."""
        from library.families.sd3.export import Sd3Model, write_model

        return write_model(
            path,
            Sd3Model(files, denoiser, encoders, dtype, self.mmap),
            layout=layout,
            bundled=bundled,
            metadata=metadata,
            tokenizers=partial(self.load_tokenizers, files, self.encoder_names),
        )

    def model_bytes(
        self,
        files: Sd3Files,
        *,
        denoiser: Mapping[str, Tensor],
        encoders: Mapping[str, Mapping[str, Tensor]],
        layout: str,
        bundled: Sequence[str],
        dtype: torch.dtype | None,
    ) -> int:
        """What `write_model` takes on the disk."""
        from library.families.sd3.export import Sd3Model, model_bytes

        return model_bytes(Sd3Model(files, denoiser, encoders, dtype), layout=layout, bundled=bundled)

    def check_places(self, files: Sd3Files, paths: Iterable[Path], *, layout: str) -> None:
        """Refuse paths where a model may not be written."""
        from library.families.sd3.export import check_places

        check_places(files, paths, layout=layout)

    def part_files(self, files: Sd3Files) -> dict[str, Path]:
        """The files that metadata names."""
        return {"model": self.pretrained, **({"vae": self.vae} if self.vae else {})}

    def network_to_diffusers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The PEFT names and factors that diffusers loads; it has no place for adapters of T5."""
        from library.families.sd3.lora_format import kohya_to_diffusers

        conversion = kohya_to_diffusers(state)
        if conversion.dropped:
            logger.warning("%d modules of T5 are left out: diffusers cannot load them.", len(conversion.dropped))
        return conversion.tensors

    def metadata(self, files: Sd3Files) -> dict[str, Any]:
        """What only SD3 files say, without ss_. The base model version is the variant, as other tools write it."""
        return {
            "base_model_version": files.variant,
            "apply_lg_attn_mask": self.apply_lg_attn_mask,
            "apply_t5_attn_mask": self.apply_t5_attn_mask,
            **{name: value for name, value in self.flow.items() if not name.endswith("_timestep")},
            "t5xxl_max_token_length": self.t5_length,
            "clip_l_dropout_rate": self.dropout_rates["clip_l"],
            "clip_g_dropout_rate": self.dropout_rates["clip_g"],
            "t5_dropout_rate": self.dropout_rates["t5xxl"],
            "pos_emb_random_crop_rate": self.pos_emb_random_crop_rate,
            "enable_scaled_pos_embed": self.enable_scaled_pos_embed,
        }

    # Loading

    def load_denoiser(
        self,
        files: Sd3Files,
        dtype: torch.dtype,
        device: torch.device,
        change: Callable[[nn.Module], None] | None = None,
        *,
        rounds_on: torch.device | None = None,
    ) -> nn.Module:
        """The MMDiT, frozen, in evaluation mode; in 8 or 4 bits where it is asked for."""
        from library.families.sd3.checkpoint import load_mmdit

        form = self.weights_format
        if change is None:
            return load_mmdit(files, dtype, str(device), self.mmap, form=form, rounds_on=rounds_on)
        if form is None:
            model = load_mmdit(files, dtype, str(device), self.mmap)
            change(model)
            return model
        from library.families.sd3.quantized_mmdit import quantize_mmdit

        model = load_mmdit(files, None, "cpu", self.mmap)
        change(model)
        return quantize_mmdit(model, form, dtype, device, rounds_on=rounds_on)

    def denoiser_outline(self, files: Sd3Files) -> nn.Module:
        """The MMDiT with shapes only."""
        from library.families.sd3.checkpoint import empty_mmdit

        return empty_mmdit(files)

    def vae_outline(self, files: Sd3Files, dtype: torch.dtype) -> nn.Module:
        """The autoencoder with shapes only."""
        from library.families.sd3.outlines import vae_outline

        return vae_outline(_given(files.vae), dtype)

    def encoder_outline(self, files: Sd3Files, name: str, dtype: torch.dtype) -> nn.Module:
        """A text encoder with shapes only; T5 in the format that is asked for."""
        from library.families.sd3.outlines import clip_outline, t5_outline
        from library.families.sd3.t5_format import T5Format

        part = _given(self._part(files, name))
        if name == "t5xxl":
            return t5_outline(part, T5Format.of(self.t5_dtype, dtype))
        return clip_outline(part, name, dtype)

    def encoder_device(self, name: str, device: torch.device) -> torch.device:
        """With the denoiser, unless T5 is asked for elsewhere."""
        from library.families.sd3.t5_format import t5_device

        return t5_device(self.t5_device, device) if name == "t5xxl" else device

    def denoiser_inputs(self, files: Sd3Files, size: Size, number: int, text_dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of the MMDiT for so many pictures with full texts."""
        from library.families.sd3.outlines import denoiser_inputs
        from library.families.sd3.text_sizes import text_limit

        t5_tokens = text_limit("clip_l" if files.t5xxl is None else "t5xxl", self.t5_length)
        return denoiser_inputs(
            files.config,
            size,
            number,
            num_tokens=text_limit("clip_l", self.t5_length) + t5_tokens,
            text_dtype=text_dtype,
            cells=self.pixels_per_latent,
        )

    def tokens_of_full_length(self, names: Sequence[str], number: int) -> dict[str, Tensor]:
        """Ids and masks of so many captions."""
        from library.families.sd3.outlines import tokens

        return tokens(tuple(names), number, self.t5_length)

    def part_names(self, files: Sd3Files) -> tuple[str, ...]:
        """Embedders, joint blocks, final layer."""
        return ("embedders", *(f"block_{index:02}" for index in range(files.config.depth)), "final")

    def denoiser_parts(self, denoiser: nn.Module) -> dict[str, list[nn.Module]]:
        """The same with their modules."""
        model = cast("MMDiT", denoiser)
        embedders = [model.x_embedder, model.t_embedder, model.y_embedder, model.context_embedder]
        blocks = {f"block_{index:02}": [block] for index, block in enumerate(model.joint_blocks)}
        return {"embedders": embedders, **blocks, "final": [model.final_layer]}

    def network_encoders(self, arguments: Mapping[str, str]) -> tuple[str, ...]:
        """CLIP-L and CLIP-G; T5 on request."""
        return ENCODER_NAMES if _trains_t5(arguments) else ENCODER_NAMES[:2]

    def check_network_options(self, options: Any, arguments: Mapping[str, str]) -> None:
        """What a T5 with adapters does not go with.

        Raises:
            OptionError: It is given.
        """
        if not _trains_t5(arguments):
            return
        if options.network.network_train_unet_only:
            raise OptionError(
                "--network_args train_t5xxl=True and --network_train_unet_only exclude each other. Keep one of them."
            )
        if options.precision.mixed_precision == "fp16":
            raise OptionError(
                "--network_args train_t5xxl=True cannot be used with --mixed_precision fp16: "
                "T5's numbers exceed the range of fp16. Use bf16."
            )
        if options.cache.caches_text:
            raise OptionError(
                "--network_args train_t5xxl=True cannot be used with --cache_text_encoder_outputs: "
                "a trained encoder has no fixed output. Leave one of them out."
            )

    def network_model(self, files: Sd3Files) -> ModelOutline:
        """The joint blocks, by their number."""
        from networks.targets import ModelOutline

        return ModelOutline("sd3", {}, files.config.depth)

    def encoder_parameters(self, name: str, encoder: nn.Module) -> dict[str, nn.Parameter]:
        """All, but for the projection of CLIP-L: published files have none, consumers take the identity."""
        is_left_out = "text_projection.weight" if name == "clip_l" else None
        return {key: parameter for key, parameter in encoder.named_parameters() if key != is_left_out}

    def load_vae(self, files: Sd3Files, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The 16-channel autoencoder, frozen."""
        from library.families.sd3.checkpoint import read_part
        from library.models.vae import load_vae

        part = _given(files.vae)
        with _naming(part.path):
            vae = load_vae(read_part(part, dtype=dtype, device=device, mmap=self.mmap))
        return vae.requires_grad_(False).eval()

    def load_text_encoders(
        self, files: Sd3Files, dtype: torch.dtype, device: torch.device, names: Sequence[str]
    ) -> dict[str, nn.Module]:
        """The encoders that are asked for and there, frozen, in evaluation mode."""
        encoders: dict[str, nn.Module] = {}
        for name in names:
            part = self._part(files, name)
            if name == "t5xxl" and part is None:
                continue
            with _naming(_given(part).path):
                load = self._load_t5 if name == "t5xxl" else partial(self._load_clip, name)
                encoders[name] = load(_given(part), dtype, device).requires_grad_(False).eval()
        return encoders

    def _load_clip(self, name: str, part: Part, dtype: torch.dtype, device: torch.device) -> nn.Module:
        from library.families.sd3.checkpoint import read_part
        from library.models.text_encoders import load_clip

        return load_clip(read_part(part, dtype=dtype, device=device, mmap=self.mmap), kind=name)

    def _load_t5(self, part: Part, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """T5 as `--t5xxl_device` and `--t5xxl_dtype` ask for it."""
        from library.families.sd3.t5_format import T5Format, load_t5, t5_device

        form, place = T5Format.of(self.t5_dtype, dtype), t5_device(self.t5_device, device)
        is_as_given = form.dtype == dtype and place == device
        return load_t5(part, form if is_as_given else form.on(place), place, mmap=self.mmap)

    def check_devices(self, device: torch.device) -> None:
        """See whether T5 can run where it is asked to, and whether the devices know the formats of weights.

        Raises:
            EnvironmentFault: They do not.
        """
        from library.families.quantized import check_form
        from library.families.sd3.t5_format import check_place

        check_place(self.t5_device, self.t5_dtype, device)
        check_form(self.weights_format, device)

    def check_changed_encoders(self, names: Sequence[str], why: str) -> None:
        """A T5 whose weights change is where the denoiser is, in the format that training asks for.

        Raises:
            OptionError: It is asked for elsewhere, or in a format of its own.
        """
        from library.families.sd3.t5_format import refuse_changes

        if "t5xxl" in names:
            refuse_changes(self.t5_device, self.t5_dtype, why)

    def load_tokenizers(self, files: Sd3Files | None, names: Sequence[str]) -> TokenizerSet:
        """The tokenizers of those of these encoders that are there; without files, of all."""
        from library.models.tokenizers import load_tokenizers

        load = partial(
            load_tokenizers,
            tokenizer_dir=self.tokenizer_dir,
            cache_dir=self.tokenizer_cache_dir,
            model_path=None if self.pretrained == Path() else self.pretrained,
        )
        if files is None:
            return load(names)
        from library.models.text_encoders import token_rows

        parts = {name: part for name in names if (part := self._part(files, name)) is not None}
        rows = {name: token_rows(part.shapes(), name) for name, part in parts.items()}
        return load(list(parts), vocab_rows=rows)

    def vae_identity(self, files: Sd3Files) -> str:
        """Hash of the VAE's weights."""
        from library.families.sd3.checkpoint import part_identity

        return part_identity(_given(files.vae))

    def text_identity(self, files: Sd3Files, names: Sequence[str], dtype: torch.dtype) -> dict[str, str]:
        """What the outputs of these encoders depend on, as fields of a cache header."""
        from library.families.sd3.checkpoint import part_identity

        identity = {}
        for name in names:
            part = self._part(files, name)
            identity[name] = "none" if part is None else part_identity(part)
        if "t5xxl" in names:
            identity["t5xxl_max_token_length"] = str(self.t5_length)
            identity["apply_t5_attn_mask"] = str(self.apply_t5_attn_mask)
            identity |= self._t5_settings(dtype)
        if "clip_l" in names or "clip_g" in names:
            identity["apply_lg_attn_mask"] = str(self.apply_lg_attn_mask)
        return identity

    def text_settings(self, dtype: torch.dtype) -> dict[str, str]:
        """Settings that what the text encoders give depends on."""
        return {
            "t5xxl_max_token_length": str(self.t5_length),
            "apply_t5_attn_mask": str(self.apply_t5_attn_mask),
            **self._t5_settings(dtype),
            "apply_lg_attn_mask": str(self.apply_lg_attn_mask),
        }

    def _t5_settings(self, dtype: torch.dtype) -> dict[str, str]:
        """The format of T5, where it is not that of the others."""
        from library.families.sd3.t5_format import T5Format

        form = T5Format.of(self.t5_dtype, dtype)
        return {} if form == T5Format(dtype) else {"t5xxl_dtype": form.name}

    def npz_reader(self, files: Sd3Files, dtype: torch.dtype, encoders: Sequence[str] = ()) -> Sd3NpzReader:
        """Reads cache files of sd-scripts as a run with these settings would have written them."""
        from library.families.sd3.npz_cache import Sd3NpzReader
        from library.families.sd3.parts import clip_width

        return Sd3NpzReader(
            clip_widths={name: clip_width(_given(self._part(files, name))) for name in ("clip_l", "clip_g")},
            encoders=tuple(encoders),
            t5_length=self.t5_length,
            t5_width=files.config.context_dim,
            apply_lg_attn_mask=self.apply_lg_attn_mask,
            apply_t5_attn_mask=self.apply_t5_attn_mask,
            dtype=dtype,
        )

    def _part(self, files: Sd3Files, name: str) -> Part | None:
        return {"clip_l": files.clip_l, "clip_g": files.clip_g, "t5xxl": files.t5xxl}[name]

    # Text

    def tokenize(self, tokenizers: TokenizerSet, captions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and masks of every encoder. Shapes [B, 77] and [B, t5_length]."""
        from library.families.sd3.text import tokenize

        return tokenize(tokenizers, captions, t5_length=self.t5_length)

    def caption_lengths(self, tokenizers: TokenizerSet, captions: Sequence[str]) -> dict[str, tuple[list[int], int]]:
        """Tokens of each caption, and the limit, for every encoder."""
        from library.families.sd3.text_sizes import caption_lengths

        return caption_lengths(tokenizers, captions, t5_length=self.t5_length)

    def caption_cuts(self, tokenizers: TokenizerSet, caption: str) -> dict[str, int]:
        """Where the encoders stop reading a caption that is too long for them."""
        from library.families.sd3.text_sizes import caption_cuts

        return caption_cuts(tokenizers, caption, t5_length=self.t5_length)

    def text_state_bytes(
        self, files: Sd3Files, names: Sequence[str], lengths: Sequence[Mapping[str, int]], *, element_bytes: int
    ) -> int:
        """Bytes of cached encoder outputs; padding that a mask makes zero takes none."""
        from library.families.sd3.text_sizes import text_state_bytes

        return text_state_bytes(
            files, names, lengths, t5_length=self.t5_length, masked=self._masked, element_bytes=element_bytes
        )

    @property
    def _masked(self) -> list[str]:
        """Encoders whose padding is set to zero."""
        masks = {"clip_l": self.apply_lg_attn_mask, "clip_g": self.apply_lg_attn_mask, "t5xxl": self.apply_t5_attn_mask}
        return [name for name, is_masked in masks.items() if is_masked]

    def encode_text(self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States of the given encoders: "clip_l", "clip_l_pooled", "clip_g", "clip_g_pooled", "t5xxl"."""
        from library.families.sd3.text import encode

        return encode(
            encoders,
            tokens,
            apply_lg_attn_mask=self.apply_lg_attn_mask,
            apply_t5_attn_mask=self.apply_t5_attn_mask,
        )

    def text_rows(self, tokens: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Tokens of each caption, of encoders with a mask."""
        from library.families.sd3.text import text_rows

        return text_rows(tokens, self._masked)

    def drop_text(self, states: Mapping[str, Tensor], uniform: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zero an encoder's states where its draw falls below its dropout rate."""
        from library.families.sd3.text import drop

        return drop(states, uniform, self.dropout_rates)

    def join_text(
        self,
        states: Mapping[str, Tensor],
        denoiser: nn.Module,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> Conditioning:
        """[CLIP-L and CLIP-G side by side ; T5] along the tokens, and both pooled vectors."""
        from library.families.sd3.text import join, used_rows

        config = _mmdit(denoiser).config
        joined = join(states, context_dim=config.context_dim, pooled_dim=config.pooled_dim)
        if rows is None or not self.merges_padding or not self._masked:
            return joined
        return replace(joined, is_used=used_rows(states, rows))

    def place(self, conditioning: Conditioning, views: Sequence[View]) -> Conditioning:
        """The MMDiT is told nothing of sizes."""
        return conditioning

    def may_merge_padding(self, size: Size, device: torch.device) -> bool:
        """Where a mask makes padding zero, and the picture is so small that fewer rows of the context pay."""
        from library.models.merged_padding import may_pay
        from library.models.tokenizers import CLIP_LENGTH

        side = self.bucket_multiple  # of a patch, in pixels
        num_patches = (size.width // side) * (size.height // side)
        can_be = self.merges_padding and bool(self._masked)
        return can_be and may_pay(CLIP_LENGTH + self.t5_length, num_patches, device)

    # Images

    def encode_images(self, vae: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
        """Images [B, 3, H, W] to scaled latents [B, 16, H/8, W/8]."""
        from library.models.vae import encode_images

        with _naming(self.vae or self.pretrained):
            return encode_images(vae, images, noise)

    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Scaled latents to images in -1..1."""
        from library.models.vae import decode_latents

        return decode_latents(vae, latents)

    # Diffusion

    def objective(self) -> FlowObjective:
        """Rectified flow."""
        from library.diffusion.objective import FlowObjective

        return FlowObjective(**self.flow)

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
        """Euler's method with the published shift of 3. There is no other sampler, and nothing is drawn on the way."""
        from library.diffusion.samplers import euler_flow, flow_sigmas

        sigmas = flow_sigmas(num_steps, shift=3.0)
        return euler_flow(predict, noise, sigmas, guidance_scale=guidance_scale, on_step=on_step)

    def predict(
        self,
        denoiser: nn.Module,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        *,
        position_draw: tuple[float, float, float] | None = None,
    ) -> Tensor:
        """The velocity. Shape [B, 16, h, w]."""
        mmdit = _mmdit(denoiser)
        positions = self._positions(mmdit, noisy_latents, position_draw)
        context, bias = _merged(mmdit, noisy_latents, conditioning)
        result: Tensor = denoiser(
            noisy_latents, timesteps, context, conditioning.pooled, context_bias=bias, positions=positions
        )
        return result

    def _positions(self, mmdit: MMDiT, latents: Tensor, draw: tuple[float, float, float] | None) -> Tensor | None:
        """None for the usual centred window of the stored table; otherwise the rows to use instead."""
        from library.models.positions import window_at

        patch = mmdit.config.patch_size
        height, width = latents.shape[-2] // patch, latents.shape[-1] // patch
        is_random = draw is not None and draw[0] < self.pos_emb_random_crop_rate
        if not self.enable_scaled_pos_embed and not is_random:
            return None
        table = mmdit.pos_embed
        if self.enable_scaled_pos_embed:
            table = _scaled_table(self.resolutions, self.buckets, table.shape[-1], patch, height, width)
        if draw is not None and is_random:
            return send(window_at(table, height, width, draw[1], draw[2]), latents.device)
        return mmdit.windows.centred(table, height, width, latents.device)


def _trains_t5(arguments: Mapping[str, str]) -> bool:
    """Of --network_args."""
    return arguments.get("train_t5xxl", "").lower() in ("true", "1")


def _drops_single_values(options: Any) -> bool:
    """Whether a network that trains has dropout that is drawn for each token."""
    network = getattr(options, "network", None)  # which not every script has
    if network is None:
        return False
    return bool(network.network_dropout) or any(item.startswith(_DROPOUTS) for item in network.network_args or ())


def _given(part: Part | None) -> Part:
    """A part that `inspect` has made sure of."""
    assert part is not None
    return part


def _merged(mmdit: MMDiT, latents: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
    """The context, and the bias that goes with it: with rows merged that are zero, where that is of use."""
    from library.models.merged_padding import merging, pays

    context = conditioning.context
    if conditioning.is_used is None or not mmdit.takes_bias:
        return context, None
    merged, num_patches = merging(conditioning.is_used), latents[0, 0].numel() // mmdit.config.patch_size**2
    if merged is None or not pays(merged, context.shape[1], num_patches, latents.device):
        return context, None
    return merged.context(context), merged.bias_for(context)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file at the beginning of a message that does not name it."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error


def _mmdit(denoiser: nn.Module) -> MMDiT:
    """What `load_denoiser` made."""
    return cast("MMDiT", denoiser)


@lru_cache(maxsize=2)
def _scaled_tables(
    resolutions: tuple[Size, ...], buckets: tuple[Size, ...], channels: int, patch: int
) -> ScaledPositionTables:
    """The tables for these resolutions. Every bucket asks once, so that the order of batches changes nothing."""
    from library.models.positions import ScaledPositionTables

    tables = ScaledPositionTables([round((size.width * size.height) ** 0.5) // 8 for size in resolutions], channels)
    for bucket in buckets:
        tables.table(bucket.height // (8 * patch), bucket.width // (8 * patch))
    return tables


@lru_cache(maxsize=8)
def _scaled_table(
    resolutions: tuple[Size, ...], buckets: tuple[Size, ...], channels: int, patch: int, height: int, width: int
) -> Tensor:
    """The table for a picture of this many patches. Sizes that are not trained, of samples, leave the others theirs."""
    tables = _scaled_tables(resolutions, buckets, channels, patch)
    is_trained = Size(width * 8 * patch, height * 8 * patch) in buckets
    return (tables if is_trained else tables.copy()).table(height, width)


def _path(value: str | Path | None) -> Path | None:
    return Path(value) if value else None
