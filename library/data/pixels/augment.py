"""Small changes of colour while training (`color_aug`). The picture stays where it is, so masks need no change."""

from __future__ import annotations

import random

import numpy as np

from library.data.pixels.opencv import opencv

CHANCE = 0.33  # of any change
HUE_DEGREES = 16.0  # 8 of OpenCV's 180 steps around the circle
GAMMA = (0.95, 1.05)


def change_colours(pixels: np.ndarray, draw: random.Random) -> np.ndarray:
    """Now and then turn the hues or bend the brightness of a picture.

    Args:
        pixels: RGB. Shape [H, W, 3], uint8. Is not changed.
        draw: Generator of this sample in this epoch.

    Returns:
        Pixels of the same shape and kind; the same object where nothing changes.
    """
    if draw.random() >= CHANCE:
        return pixels
    if draw.random() < 0.5:
        return turn_hue(pixels, draw.uniform(-HUE_DEGREES, HUE_DEGREES))
    return bend_gamma(pixels, draw.uniform(*GAMMA))


def turn_hue(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Move every hue around the colour circle; greys stay. Shape [H, W, 3], uint8."""
    cv2 = opencv()
    colours = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)  # hue in degrees
    colours[..., 0] = (colours[..., 0] + degrees) % 360
    turned = cv2.cvtColor(colours, cv2.COLOR_HSV2RGB)
    result: np.ndarray = np.round(turned * 255).clip(0, 255).astype(np.uint8)
    return result


def bend_gamma(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """Raise brightness to a power; black and white stay. Shape [H, W, 3], uint8."""
    table = np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    result: np.ndarray = table[pixels]
    return result
