"""Networks beside the model while it draws: read and checked before the model is, then attached or merged."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, EnvironmentFault, OptionError, UserError
from library.generation.options.network import DrawingNetworkOptions
from library.generation.record import NetworkUse
from library.log import get_logger
from networks.other_packages import is_lycoris

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.families.base import ModelFamily
    from library.families.lora_layout import LoraPair
    from library.generation.model import DrawingModel

logger = get_logger(__name__)

_OPTION = "--network_weights"
_DEFAULT = "networks.lora"
_OF_LORA = (_DEFAULT, "networks.lora_sd3", "networks.lora_unet")
_BLOCK_WEIGHTS = "lbw"


KnownTensors = dict[tuple[str, str, str, str], tuple[Mapping[str, "Tensor"], Mapping[str, str]]]
"""{path, module, arguments and family: tensors of a network file and what it says of itself}"""


@dataclass(frozen=True)
class NetworkFile:
    """A network as it was asked for, and what its file holds.

    Attributes:
        use: Its file, strength and module.
        module: That makes it.
        tensors: Of the file, under the names of files of these scripts.
        is_merged: It is added to the weights for good.
    """

    use: NetworkUse
    module: ModuleType
    tensors: Mapping[str, Tensor]
    is_merged: bool


def asked_networks(options: DrawingNetworkOptions) -> tuple[NetworkUse, ...]:
    """The networks that options name, without hashes.

    Raises:
        OptionError: An argument is not of the form key=value.
    """
    number = options.num_files
    multipliers = _for_each(options.network_mul, 1.0, number)
    modules = _for_each(options.network_module, _DEFAULT, number)
    arguments = _for_each(options.network_args, "", number)
    return tuple(
        NetworkUse(str(path), path.stem, "", multiplier, module, _arguments(text) or None)
        for path, multiplier, module, text in zip(
            options.network_weights or (), multipliers, modules, arguments, strict=True
        )
    )


def read_networks(
    options: DrawingNetworkOptions, family: ModelFamily, files: Any, known: KnownTensors | None = None
) -> tuple[NetworkFile, ...]:
    """Read network files, and see that they fit the model, before its weights are read.

    Args:
        options: Name them.
        family: Of the model.
        files: Of the model.
        known: What was read before, which is not read again; what is read is added.

    Raises:
        CheckpointError: A file is missing, damaged, for another model, or has numbers that are not finite.
        OptionError: A module cannot be used, or an argument is wrong.
    """
    found: list[NetworkFile] = []
    known = {} if known is None else known
    asked = asked_networks(options)
    model = {"model": family.network_model(files), "depth": family.depth(files)} if asked else {}
    for number, use in enumerate(asked):
        module = _module(use.module)
        key = (use.path, use.module, str(use.args), family.name)
        if key not in known:
            known[key] = _read(use, family)
        tensors, metadata = known[key]
        _check(module, use, tensors, model)
        _refuse_non_finite(tensors, use.path)
        _tell_other_prediction(use.path, metadata, family)
        if options.network_show_meta:
            told = "\n".join(f"  {key}: {value}" for key, value in sorted(metadata.items()))
            logger.info("%s says of itself%s", use.path, f":\n{told}" if told else " nothing.")
        use = _hashed(use, metadata)
        found.append(NetworkFile(use, module, tensors, number < options.num_merged))
    return tuple(found)


class Networks:
    """Networks of a model.

    Args:
        model: They are attached to it, or merged into it.
        files: From `read_networks`.
        recomputes: Instead of being attached, networks are merged anew each time that strengths change.

    Attributes:
        uses: The networks as a picture's record has them, at the strengths of the options.
    """

    def __init__(self, model: DrawingModel, files: Sequence[NetworkFile], *, recomputes: bool = False) -> None:
        self._model = model
        self.uses = tuple(file.use for file in files)
        self._is_merged = tuple(file.is_merged for file in files)
        self._live: list[Any] = []
        self._strengths: tuple[float, ...] | None = None
        made = [(file, self._made(file)) for file in files]
        for file, network in made:
            if file.is_merged:
                network.merge_to(self._encoders, model.denoiser, file.tensors, model.dtype, model.device)
                logger.info("%s is added to the weights, times %g.", file.use.path, file.use.multiplier)
        self._live = [network for file, network in made if not file.is_merged]
        self._originals = _weights_of(self._live) if recomputes else None
        if not recomputes:
            for network in self._live:
                network.apply_to(self._encoders, model.denoiser, True, True)
                network.to(model.device)

    def uses_at(self, multipliers: Sequence[float] | None) -> tuple[NetworkUse, ...]:
        """The networks with the strengths that a prompt asks for: of those that are not merged, the last number counts
        for all that follow."""
        if not multipliers:
            return self.uses
        numbers = list(multipliers)
        own = []
        for use, is_merged in zip(self.uses, self._is_merged, strict=True):
            own.append(use if is_merged else _stronger(use, numbers.pop(0) if len(numbers) > 1 else numbers[0]))
        return tuple(own)

    def set_strengths(self, uses: Sequence[NetworkUse]) -> None:
        """Let the networks act at these strengths."""
        strengths = tuple(use.multiplier for use, is_merged in zip(uses, self._is_merged, strict=True) if not is_merged)
        if strengths == self._strengths:
            return
        self._strengths = strengths
        for network, strength in zip(self._live, strengths, strict=True):
            network.set_multiplier(strength)
        if self._originals is not None:
            _merge_anew(self._live, self._originals)

    @property
    def _encoders(self) -> nn.Module | list[nn.Module]:
        """As network modules want them: of a family that has one, the encoder itself."""
        encoders = [
            self._model.encoders[name] for name in self._model.family.encoder_names if name in self._model.encoders
        ]
        return encoders[0] if len(self._model.family.encoder_names) == 1 else encoders

    def _made(self, file: NetworkFile) -> Any:
        network, _ = file.module.create_network_from_weights(
            file.use.multiplier,
            file.use.path,
            self._model.vae,
            self._encoders,
            self._model.denoiser,
            weights_sd=dict(file.tensors),
            for_inference=True,
            **_without_block_weights(file.use),
        )
        return network.eval().requires_grad_(False)


def _for_each(given: Sequence[Any] | None, default: Any, number: int) -> list[Any]:
    """A value for each file; one counts for all."""
    if not given:
        return [default] * number
    return list(given) * number if len(given) == 1 else list(given)


def _arguments(text: str) -> dict[str, str]:
    pairs = [item.strip().partition("=") for item in text.split(";") if item.strip()]
    for key, equals, _ in pairs:
        if not equals or not key:
            raise OptionError(f"--network_args {text}: write key=value, with ; between several.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _module(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except (ImportError, TypeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and is_lycoris(name):
            raise EnvironmentFault(
                f"--network_module {name} needs a package that is not installed ({error}). Install it by `pip install "
                "lycoris-lora`."
            ) from error
        raise OptionError(f"--network_module {name}: cannot be imported ({error}). Use networks.lora.") from error
    if not hasattr(module, "create_network_from_weights"):
        raise OptionError(f"--network_module {name}: this module reads no network files. Use networks.lora.")
    return module


def _read(use: NetworkUse, family: ModelFamily) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The tensors of a file and what it says of itself."""
    from library.pickled import read_any_header, read_any_tensors

    if use.module not in _OF_LORA:
        if _BLOCK_WEIGHTS in (use.args or {}):
            raise OptionError(f"--network_args {_BLOCK_WEIGHTS}= is for networks.lora, and not for {use.module}.")
        header = read_any_header(Path(use.path), _OPTION)
        return read_any_tensors(header), header.metadata
    from library.loras.lora_family import FAMILY_TITLES
    from library.loras.lora_file import lora_tensors, read_lora

    lora = read_lora(Path(use.path), _OPTION)
    if lora.family != family.name:
        raise CheckpointError(
            f"{_OPTION}: {use.path} is a LoRA for {FAMILY_TITLES[lora.family]}, and the model is of "
            f"{FAMILY_TITLES[family.name]}. Give a LoRA that was trained for this model."
        )
    modules = lora.modules
    if _BLOCK_WEIGHTS in (use.args or {}):
        modules = _weighted(modules, family.name, dict(use.args or {})[_BLOCK_WEIGHTS], use.path)
    return lora_tensors(modules, lora.family), lora.metadata


def _check(module: ModuleType, use: NetworkUse, tensors: Mapping[str, Tensor], model: Mapping[str, Any]) -> None:
    """Arguments and names of a file, as far as its module checks them."""
    check_file = getattr(module, "check_network_file", None)
    if check_file is not None:
        check_file({key: tuple(tensor.shape) for key, tensor in tensors.items()}, f"{_OPTION} {use.path}", **model)
    check_arguments = getattr(module, "check_network_args", None)
    arguments = _without_block_weights(use)
    if check_arguments is None or not arguments:
        return
    is_lora = use.module in _OF_LORA
    if is_lora and (near := get_close_matches(_BLOCK_WEIGHTS, arguments, n=1, cutoff=0.6)):
        raise OptionError(f"--network_args {near[0]}=: did you mean {_BLOCK_WEIGHTS}= ?")
    try:
        check_arguments(arguments, **model)
    except OptionError as error:
        if not is_lora:
            raise
        raise OptionError(str(error).replace("(known are ", f"(known are {_BLOCK_WEIGHTS}, ")) from error


def _without_block_weights(use: NetworkUse) -> dict[str, str]:
    """Arguments that the module is given."""
    return {key: value for key, value in (use.args or {}).items() if key != _BLOCK_WEIGHTS}


def _weighted(modules: Mapping[str, LoraPair], family: str, text: str, path: str) -> dict[str, LoraPair]:
    """Modules times the weights of their blocks."""
    from library.loras.block_weights import module_weights, parse_weights

    try:
        weights = parse_weights(text)
        own = {} if weights is None else module_weights(modules, family, weights, path)
    except UserError as error:
        raise type(error)(str(error).replace("--lbws", f"--network_args {_BLOCK_WEIGHTS}=")) from error
    if weights is None:
        return dict(modules)
    return {name: replace(pair, scale=pair.scale * own[name]) for name, pair in modules.items()}


def _refuse_non_finite(tensors: Mapping[str, Tensor], path: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise CheckpointError(
                f"{_OPTION}: {path} is damaged: {name} has numbers that are not finite. Give an earlier file."
            )


def _tell_other_prediction(path: str, metadata: Mapping[str, str], family: ModelFamily) -> None:
    from library.loras.lora_metadata import PREDICTIONS, prediction_said

    said, drawn = prediction_said(metadata), family.prediction_type
    if said in PREDICTIONS and drawn in PREDICTIONS and said != drawn:
        logger.warning(
            "%s is for models that predict %s, and this one is drawn as predicting %s.%s",
            *(path, PREDICTIONS[said], PREDICTIONS[drawn]),
            " If it predicts the velocity, give --v_parameterization." if said == "v" else "",
        )


def _hashed(use: NetworkUse, metadata: Mapping[str, str]) -> NetworkUse:
    """With the hash that A1111 shows: the one that the file says of itself, or that of the file."""
    from library.generation.file_marks import network_hash

    return replace(use, hash=metadata.get("sshs_model_hash", "")[:12] or network_hash(Path(use.path)))


def _stronger(use: NetworkUse, multiplier: float) -> NetworkUse:
    return replace(use, multiplier=multiplier)


def _weights_of(networks: Sequence[Any]) -> dict[nn.Module, Tensor]:
    """{layer: its weight on the host} of all that networks change.

    Raises:
        OptionError: A network does not say which layers it changes.
    """
    if any(not hasattr(network, "adapters") for network in networks):
        raise OptionError("--network_pre_calc is for networks of these scripts. Leave it out, or use --network_merge.")
    layers = {adapter.target for network in networks for adapter in network.adapters()}
    return {layer: layer.weight.detach().to("cpu", copy=True) for layer in layers}


def _merge_anew(networks: Sequence[Any], originals: Mapping[nn.Module, Tensor]) -> None:
    """Give every layer its own weight back, and add the networks at their strengths."""
    for layer, weight in originals.items():
        layer.weight.data.copy_(weight)  # type: ignore[operator, union-attr]
    for network in networks:
        for adapter in network.adapters():
            if adapter.multiplier:
                adapter.merge(None, adapter.target.weight.device)
