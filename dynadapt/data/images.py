"""Decoding of images on the host (uint8, Pillow) and normalisation on the device."""

import io

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from PIL import Image

from dynadapt.errors import DataError, UnknownName

NORMALISATIONS = {  # name: (mean, std) of r g b, for images scaled to 0..1
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def normalise(images: ArrayLike, name: str, dtype: DTypeLike = jnp.float32) -> jnp.ndarray:
    """Turns uint8 images `b h w 3` into `(images / 255 - mean) / std`, computed in float32."""
    if name not in NORMALISATIONS:
        raise UnknownName("normalisation", name, NORMALISATIONS)
    # `1 1 1 3`, so that nothing relies on rank promotion
    mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 3) for v in NORMALISATIONS[name])
    return ((jnp.asarray(images, jnp.float32) / 255 - mean) / std).astype(dtype)


def decode(image: bytes | np.ndarray, name: str = "an image") -> np.ndarray:
    """Any image file, or an array `h w`, `h w 1`, `h w 3` or `h w 4`, as uint8 `h w 3`.

    Transparency is dropped and 16-bit grey is scaled to 8; raises DataError that holds `name`.
    """
    if isinstance(image, bytes):
        try:
            with Image.open(io.BytesIO(image)) as opened:
                return _rgb(opened)
        except Exception as error:  # Pillow's readers raise a dozen different classes
            raise DataError(f"cannot decode {name}: {error or type(error).__name__}") from error
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    channels = image.shape[-1] if image.ndim == 3 else None
    if image.dtype != np.uint8 or channels not in (1, 3, 4) or 0 in image.shape:
        raise DataError(
            f"{name} is {image.dtype} with shape {image.shape} and must be uint8 `h w 3`"
        )
    return np.repeat(image, 3, axis=-1) if channels == 1 else image[..., :3]


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion would cut everything above 255 to white
        grey = np.round(np.asarray(image, np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
