"""Transforms that change colours: `f(image, settings..., rng) -> image`, uint8 `h w 3`.

One that takes no `rng` is not random.
"""

import numpy as np
from PIL import Image, ImageEnhance

from dynadapt.data.arguments import Interval, Share, Shift, Strength


def jitter(
    image: np.ndarray,
    brightness: Strength = 0.0,
    contrast: Strength = 0.0,
    saturation: Strength = 0.0,
    hue: Shift = 0.0,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Changes the colours by factors from 1 - x to 1 + x, at least 0, in a random order.

    The hue is shifted by up to `hue` of the whole circle. The factors mean what they mean to
    torchvision's ColorJitter: 0 is black, the mean grey or no colour, 1 the image itself.
    """
    picture = Image.fromarray(image)
    strengths = (brightness, contrast, saturation, hue)
    for i in rng.permutation(len(strengths)):
        if strengths[i] and i < len(_ENHANCE):
            factor = rng.uniform(max(0, 1 - strengths[i]), 1 + strengths[i])
            picture = _ENHANCE[i](picture).enhance(factor)
        elif strengths[i]:
            picture = _shift_hue(picture, rng.uniform(-hue, hue))
    return np.asarray(picture)


_ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def _shift_hue(picture: Image.Image, share: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = hue.point([(h + int(share * 255)) % 256 for h in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def grey(image: np.ndarray, p: Share = 0.1, *, rng: np.random.Generator) -> np.ndarray:
    """Takes the colours away with probability `p`."""
    if rng.random() >= p:
        return image
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def distort(
    image: np.ndarray,
    brightness: Strength = 32.0,
    contrast: Share = 0.5,
    saturation: Share = 0.5,
    hue: Shift = 0.1,
    p: Share = 0.5,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """The photometric distortion of SSD (Liu et al., arXiv:1512.02325), each part with probability
    `p`: adds up to +-`brightness` levels, multiplies levels by 1 +- `contrast` and saturation by
    1 +- `saturation`, and turns the hue by up to `hue` of the circle; the contrast first or last.
    """
    pixels = image.astype(np.float32)
    if rng.random() < p:
        pixels = pixels + rng.uniform(-brightness, brightness)
    factor = rng.uniform(1 - contrast, 1 + contrast) if rng.random() < p else 1.0
    first = rng.random() < 0.5
    pixels = _levels(pixels * factor if first else pixels)
    strength = rng.uniform(1 - saturation, 1 + saturation) if rng.random() < p else 1.0
    turn = rng.uniform(-hue, hue) if rng.random() < p else 0.0
    if strength != 1 or turn:
        picture = Image.fromarray(pixels)
        picture = _saturate(picture, strength) if strength != 1 else picture
        pixels = np.asarray(_shift_hue(picture, turn) if turn else picture)
    return pixels if first else _levels(pixels * np.float32(factor))


def _levels(pixels: np.ndarray) -> np.ndarray:
    return np.round(pixels).clip(0, 255).astype(np.uint8)


def _saturate(picture: Image.Image, factor: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    changed = saturation.point([min(255, round(s * factor)) for s in range(256)])
    return Image.merge("HSV", (hue, changed, value)).convert("RGB")


def gamma(
    image: np.ndarray,
    exponent: Interval = (0.8, 1.2),
    p: Share = 0.5,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Raises pixels of 0 to 1 to a random power within `exponent`, with probability `p`."""
    if rng.random() >= p:
        return image
    table = _levels(255 * (np.arange(256) / 255) ** rng.uniform(*exponent))
    return table[image]


COLOURS = (jitter, grey, distort, gamma)
