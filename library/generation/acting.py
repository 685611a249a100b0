"""The extras of pictures while they act: what they need is loaded once, and attached while a batch is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.diffusion.samplers import SamplerWays
from library.errors import OptionError
from library.generation.clip_vision import check_clip_vision, load_clip_vision, seen, with_seen
from library.generation.control_nets import (
    Clock,
    ControlNet,
    ControlSettings,
    control_settings,
    controlling,
    open_control_nets,
)
from library.generation.decoding import to_images
from library.generation.extras import GUIDE, REGIONS, control_pictures, growth_of, ignored_switches, shrink_of
from library.generation.guides import check_preps, load_guide
from library.generation.highres import find_upscaler, upscaler_arguments
from library.generation.painting import Canvas, Painter
from library.generation.record import GenerationRecord, NetworkUse
from library.generation.regions import Region, by_regions, region_masks
from library.generation.start_noise import start_noise
from library.records import Size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.families.base import ModelFamily
    from library.generation.model import DrawingModel
    from library.generation.options.scripts import GenerationOptions
    from library.models.control_net import ControlNetFile

_CONTROL, _LLLITE, _VISION = "control_net_models", "control_net_lllite_models", "clip_vision_strength"


@dataclass(frozen=True)
class ExtraFiles:
    """The files of extras, looked at but not read.

    Attributes:
        control_nets: ControlNets.
        lllites: Files of ControlNet-LLLite.
        settings: Of each of both.
        vision: Folder of a CLIP model.
    """

    control_nets: tuple[ControlNetFile, ...] = ()
    lllites: tuple[Path, ...] = ()
    settings: tuple[ControlSettings, ...] = ()
    vision: Path | None = None


def open_extras(options: GenerationOptions, family: ModelFamily, files: Any) -> ExtraFiles:
    """Look at the files of extras, and see that they fit the model, before any weights are read.

    Raises:
        UserError: One is missing, or for another model.
    """
    guide, highres = options.guide, options.highres
    check_preps(guide.control_net_preps or ())
    if highres.highres_fix_scale is not None and highres.highres_fix_upscaler is not None:
        find_upscaler(highres.highres_fix_upscaler)
        upscaler_arguments(highres.highres_fix_upscaler_args)
    nets = open_control_nets(guide.control_net_models, family, files) if guide.control_net_models else []
    lllites = guide.control_net_lllite_models or ()
    for path in lllites:
        _check_lllite(path, family, files)
    vision = guide.clip_vision_model if _VISION not in ignored_switches(family) and guide.clip_vision_strength else None
    if vision is not None:
        check_clip_vision(vision)
    return ExtraFiles(tuple(nets), tuple(lllites), tuple(control_settings(guide)), vision)


@dataclass(frozen=True)
class LoadedExtras:
    """What extras need beside the model.

    Attributes:
        control_nets: ControlNets.
        lllites: Networks of ControlNet-LLLite with their settings, attached and without a picture.
        vision: CLIP's image encoder.
    """

    control_nets: tuple[ControlNet, ...] = ()
    lllites: tuple[tuple[Any, ControlSettings], ...] = ()
    vision: nn.Module | None = None

    @classmethod
    def load(cls, files: ExtraFiles, model: DrawingModel) -> LoadedExtras:
        """Read them.

        Raises:
            UserError: Weights are damaged, or do not fit.
        """
        nets = [
            ControlNet(file.load(model.dtype, model.device), settings)
            for file, settings in zip(files.control_nets, files.settings, strict=False)
        ]
        lllites = [
            (_lllite(path, model), settings) for path, settings in zip(files.lllites, files.settings, strict=False)
        ]
        vision = None
        if files.vision is not None:
            config: Any = model.encoders["clip_g"].config
            width = int(config.projection_dim)
            vision = load_clip_vision(files.vision, width, model.dtype, model.device)
        return cls(tuple(nets), tuple(lllites), vision)

    @contextmanager
    def acting(
        self, batch: Sequence[GenerationRecord], painter: Painter, canvas: Canvas, clock: Clock
    ) -> Iterator[tuple[Painter, Canvas]]:
        """Painter and canvas with the extras of a batch, while the context is open.

        Raises:
            UserError: A guiding picture cannot be read, or an extra does not fit the model.
        """
        extras = batch[0].extras or {}
        canvas = replace(canvas, noise=start_noise(canvas.noise, canvas.seeds, extras))
        ways = SamplerWays(growth_of(extras), bool(extras.get("force_scheduler_zero_steps_offset")))
        with ExitStack() as attached:
            shrink = shrink_of(extras)
            if shrink is not None:
                attached.enter_context(_shrinking(painter.denoiser, shrink))
            if _CONTROL in extras:
                pictures = [
                    (images + 1) / 2 for images in self._pictures(batch, [net.settings for net in self.control_nets])
                ]
                attached.enter_context(controlling(painter.denoiser, self.control_nets, pictures, clock))
            if _LLLITE in extras:
                lllite_pictures = self._pictures(batch, [settings for _, settings in self.lllites])
                attached.enter_context(_lllites_acting(painter.denoiser, self.lllites, lllite_pictures, clock))
            if _VISION in extras and self.vision is not None:
                canvas = self._with_vision(batch, canvas, extras[_VISION])
            yield replace(painter, ways=ways), canvas

    def _with_vision(self, batch: Sequence[GenerationRecord], canvas: Canvas, strength: float) -> Canvas:
        from library.generation.guides import OPTION
        from library.generation.sources import opened_picture

        pictures = [opened_picture(Path((record.extras or {})[GUIDE][0]), OPTION) for record in batch]
        guidance = canvas.guidance
        wanted = with_seen(guidance.wanted, seen(self.vision, pictures), strength)
        return replace(canvas, guidance=replace(guidance, wanted=wanted))

    @staticmethod
    def _pictures(batch: Sequence[GenerationRecord], settings: Sequence[ControlSettings]) -> list[Tensor]:
        """For each ControlNet those of the batch, in -1..1. Each of shape [B, 3, H, W]."""
        size = Size(batch[0].width, batch[0].height)
        found = []
        for number, own in enumerate(settings):
            paths = [control_pictures(record.extras or {}) for record in batch]
            mine = [Path(listed[number if len(listed) > 1 else 0]) for listed in paths]
            found.append(to_images([load_guide(path, size, own.prep) for path in mine]))
        return found


def with_regions(
    painter: Painter,
    batch: Sequence[GenerationRecord],
    regions: Sequence[Region],
    set_networks: Callable[[Sequence[NetworkUse]], None],
) -> Painter:
    """A painter that draws each region by itself.

    Args:
        painter: As it is.
        batch: Records with one map for all of them.
        regions: All of them.
        set_networks: Lets networks act at strengths.

    Raises:
        UserError: The map cannot be used.
    """
    extras, first = batch[0].extras or {}, batch[0]
    path, size = Path(extras[GUIDE][0]), Size(first.width, first.height)
    masks = region_masks(path, size, extras[REGIONS], painter.family.pixels_per_latent)
    return replace(painter, wrap=by_regions(regions, masks, set_networks))


@contextmanager
def _shrinking(unet: nn.Module, shrink: Any) -> Iterator[None]:
    from library.models.deep_shrink import shrinking

    with ExitStack() as attached:
        try:
            attached.enter_context(shrinking(unet, shrink))
        except ValueError as error:
            raise OptionError(f"--ds_depth_1 and --ds_depth_2: {error}. Give another block of the U-Net.") from None
        yield


@contextmanager
def _lllites_acting(
    unet: nn.Module, lllites: Sequence[tuple[Any, ControlSettings]], pictures: Sequence[Tensor], clock: Clock
) -> Iterator[None]:
    """Networks of LLLite with their pictures; without any afterwards."""
    device = next(unet.parameters()).device

    def set_strengths(*_: Any) -> None:
        for network, settings in lllites:
            network.set_multiplier(settings.multiplier if clock.is_within(settings.ratio) else 0.0)

    for (network, _), images in zip(lllites, pictures, strict=True):
        network.set_condition(images.to(device))
    try:
        with unet.register_forward_pre_hook(partial(set_strengths)):
            yield
    finally:
        for network, _ in lllites:
            network.set_condition(None)


def _check_lllite(path: Path, family: ModelFamily, files: Any) -> None:
    from library.pickled import read_any_header
    from networks.control_net_lllite import check_network_file

    what = f"--control_net_lllite_models {path}"
    header = read_any_header(path, "--control_net_lllite_models")
    check_network_file(header.shapes(), what, model=family.network_model(files))


def _lllite(path: Path, model: DrawingModel) -> Any:
    from networks.control_net_lllite import create_network_from_weights

    network = create_network_from_weights(1.0, path, model.denoiser)
    network.apply_to()
    return network.to(model.device)
