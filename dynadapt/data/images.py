"""Normalisation of images on the device."""

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from dynadapt.errors import UnknownName

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
