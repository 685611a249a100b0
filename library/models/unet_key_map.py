"""Tensors of the U-Nets: published single files and diffusers. Only names differ; `library/unet_names.py` has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from library.unet_names import to_diffusers, to_published

T = TypeVar("T")


def unet_to_diffusers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Published names to those of diffusers' UNet2DConditionModel.

    Args:
        tensors: {published name without prefix: tensor, or whatever else goes with the name}.

    Raises:
        CheckpointError: A name that is not of such a U-Net.
    """
    names = to_diffusers(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


def unet_from_diffusers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Names of diffusers to published names. The inverse of `unet_to_diffusers`.

    Raises:
        CheckpointError: A name that is not of such a U-Net.
    """
    names = to_published(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}
