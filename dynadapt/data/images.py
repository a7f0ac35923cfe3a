"""Image transforms on the host (uint8, Pillow) and normalisation on the device.

A transform is a function of one image uint8 `h w 3` and literal settings. A pipeline is written
`"resize_short(256)|center_crop(224)"`; bytes are decoded first, always.
"""

import ast
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from PIL import Image

from dynadapt.data.decode import decode
from dynadapt.errors import ConfigError, UnknownName

NORMALISATIONS = {  # name: (mean, std) of r g b, for images scaled to 0..1
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
METHODS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


def normalise(images: ArrayLike, name: str, dtype: DTypeLike = jnp.float32) -> jnp.ndarray:
    """Turns uint8 images `b h w 3` into `(images / 255 - mean) / std`, computed in float32."""
    if name not in NORMALISATIONS:
        raise UnknownName("normalisation", name, NORMALISATIONS)
    # `1 1 1 3`, so that nothing relies on rank promotion
    mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 3) for v in NORMALISATIONS[name])
    return ((jnp.asarray(images, jnp.float32) / 255 - mean) / std).astype(dtype)


def resize(image: np.ndarray, size: int, width: int = 0, method: str = "bicubic") -> np.ndarray:
    """Stretches to `size` square, or to height `size` and `width`; antialiased.

    The method "plain_bilinear" is not: it is TensorFlow's default resize, on pixels of 8 bits.
    """
    return _resample(image, (size, width or size), method)


def resize_short(image: np.ndarray, size: int, method: str = "bicubic") -> np.ndarray:
    """Brings the shorter side to `size` and keeps the aspect."""
    h, w = image.shape[:2]
    scale = size / min(h, w)
    return _resample(image, (max(size, round(h * scale)), max(size, round(w * scale))), method)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Cuts the middle `size` square out."""
    h, w = _room(image, size, "center_crop")
    return image[h // 2 :, w // 2 :][:size, :size]


def random_crop(
    image: np.ndarray, size: int, padding: int = 0, *, rng: np.random.Generator
) -> np.ndarray:
    """Cuts a `size` square at a random place, after `padding` black pixels on each side."""
    if padding:
        h, w = image.shape[:2]
        black = np.zeros((h + 2 * padding, w + 2 * padding, 3), np.uint8)  # np.pad is 20x slower
        black[padding : padding + h, padding : padding + w] = image
        image = black
    h, w = _room(image, size, "random_crop")
    top, left = rng.integers(h + 1), rng.integers(w + 1)
    return image[top : top + size, left : left + size]


def random_resized_crop(
    image: np.ndarray,
    size: int,
    scale: tuple = (0.08, 1.0),
    ratio: tuple = (0.75, 4 / 3),
    method: str = "bicubic",
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Cuts a part of random area (share `scale`) and aspect (`ratio`, width to height), stretched
    to `size` square (Szegedy et al., arXiv:1409.4842, section 6)."""
    h, w = image.shape[:2]
    for _ in range(10):
        area = h * w * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        high, wide = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < high <= h and 0 < wide <= w:
            top, left = rng.integers(h - high + 1), rng.integers(w - wide + 1)
            break
    else:  # an extreme shape: the largest middle part whose aspect is allowed
        aspect = np.clip(w / h, *ratio)
        high, wide = min(h, max(1, round(w / aspect))), min(w, max(1, round(h * aspect)))
        top, left = (h - high) // 2, (w - wide) // 2
    return _resample(image[top : top + high, left : left + wide], (size, size), method)


def flip(image: np.ndarray, p: float = 0.5, *, rng: np.random.Generator) -> np.ndarray:
    """Mirrors left to right with probability `p`."""
    return image[:, ::-1] if rng.random() < p else image


TRANSFORMS = {
    f.__name__: f
    for f in (resize, resize_short, center_crop, random_crop, random_resized_crop, flip)
}


class Pipeline:
    """`pipeline(example, rng)`: the example with its image decoded and transformed, uint8 `h w 3`.

    `random` says whether it draws from `rng`; where it does not, `rng` may be None.
    """

    def __init__(self, text: str, steps: list[tuple[Callable, dict[str, Any]]]):
        self.text = text
        self._steps = [(step, settings, _is_random(step)) for step, settings in steps]
        self.random = any(is_random for *_, is_random in self._steps)

    def __call__(self, example: dict, rng: np.random.Generator | None = None) -> dict:
        name, orient = example.get("name", "an image"), example.get("orient", False)
        image = decode(example["image"], name, orient)
        for step, settings, is_random in self._steps:
            image = step(image, **settings, rng=rng) if is_random else step(image, **settings)
        return {**example, "image": image}

    def __repr__(self) -> str:
        return f"pipeline({self.text!r})"


def pipeline(text: str) -> Pipeline:
    """Reads `"random_resized_crop(224)|flip"`; an empty text only decodes.

    Settings are literals. Raises UnknownName for a transform that is not there and ConfigError for
    settings that it does not take.
    """
    if not text.strip():
        return Pipeline(text, [])
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ConfigError(
            f"cannot read the transforms {text!r}; write them as in 'resize(224)|flip'"
        ) from None
    calls = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        calls.append(node.right)
        node = node.left
    return Pipeline(text, [_step(call, text) for call in [node, *reversed(calls)]])


def _step(node: ast.expr, text: str) -> tuple[Callable, dict[str, Any]]:
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name):
        raise ConfigError(f"{ast.unparse(node)!r} in {text!r} is not a transform with settings")
    name = call.func.id
    if name not in TRANSFORMS:
        raise UnknownName("transform", name, TRANSFORMS)
    taken = inspect.signature(TRANSFORMS[name]).parameters.values()
    taken = [p for p in taken if p.name not in ("image", "rng")]
    try:
        args = [ast.literal_eval(arg) for arg in call.args]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        bound = inspect.Signature(taken).bind(*args, **named).arguments
    except (TypeError, ValueError) as error:
        shown = ", ".join(p.name if p.default is p.empty else f"{p.name}=..." for p in taken)
        raise ConfigError(
            f"{ast.unparse(node)!r} does not fit {name}({shown}): {_reason(error)}"
        ) from None
    for parameter in taken:
        if parameter.name in bound:
            _check(parameter, bound[parameter.name], ast.unparse(node))
    return TRANSFORMS[name], bound


def _reason(error: Exception) -> str:
    return "its settings must be literals" if isinstance(error, ValueError) else str(error)


def _check(parameter: inspect.Parameter, value: Any, call: str) -> None:
    """Refuses a setting of the wrong kind now rather than at the first image."""
    numbers = value if isinstance(value, tuple) else (value,)
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
    if parameter.name == "method":
        if value not in (*METHODS, "plain_bilinear"):
            raise UnknownName("resize method", value, (*METHODS, "plain_bilinear"))
        return
    if parameter.annotation is int:
        least = 0 if parameter.default == 0 else 1
        fits = numeric and isinstance(value, int) and value >= least
        wanted = f"a whole number of at least {least}"
    elif parameter.annotation is tuple:
        fits = numeric and isinstance(value, tuple) and len(value) == 2 and 0 < value[0] <= value[1]
        wanted = "two numbers (low, high) above 0"
    else:
        fits = numeric and isinstance(value, int | float) and 0 <= value <= 1
        wanted = "a number between 0 and 1"
    if not fits:
        raise ConfigError(f"{parameter.name} in {call!r} must be {wanted}")


def _is_random(step: Callable) -> bool:
    return "rng" in inspect.signature(step).parameters


def _resample(image: np.ndarray, shape: tuple[int, int], method: str) -> np.ndarray:
    if image.shape[:2] == shape:
        return image
    if method == "plain_bilinear":
        across = (image.shape[1] / shape[1], 0, 0, 0, image.shape[0] / shape[0], 0)
        picture = Image.fromarray(image)
        bilinear = Image.Resampling.BILINEAR
        return np.asarray(picture.transform(shape[::-1], Image.Transform.AFFINE, across, bilinear))
    resized = Image.fromarray(image).resize(shape[::-1], METHODS[method])
    return np.asarray(resized)


def _room(image: np.ndarray, size: int, name: str) -> tuple[int, int]:
    """How much larger than `size` the image is, in height and width."""
    h, w = image.shape[:2]
    if min(h, w) < size:
        # not a DataError: skipping such images would hide a transform that cannot work
        raise ConfigError(
            f"{name}({size}) met an image of {h} x {w} pixels; put resize_short({size}) before it"
        )
    return h - size, w - size
