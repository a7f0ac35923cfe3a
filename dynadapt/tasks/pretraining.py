"""Masked prediction of dense targets: what is under the grey squares?

Squares of the image are painted grey before the backbone sees it, and a linear head says, at every
patch, the orientation histogram and the mean colour of the whole image there (after MaskFeat, arXiv
2112.09133). Because the mask is painted, the backbone needs no mask token and is used unchanged.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.errors import ConfigError
from dynadapt.heads.dense import DenseHead

Array = jax.Array
Batch = dict[str, Array]


class Task:
    """Masked prediction; labels are not looked at.

    Args:
        info: description of the data set.
        patch: side in pixels of the cells that targets are made for, the backbone's patch.
        bins: orientations of the histograms.
        mask_ratio: part of the squares that is painted.
        mask_size: side of a square, in patches.
        visible_weight: weight of a visible patch's error, where a painted one's is 1.
        flip: mirror half of the images.
    """

    headline, better, needs = "hidden_error", "lower", ("image",)

    def __init__(
        self,
        info: Any,
        *,
        patch: int = 4,
        bins: int = 8,
        mask_ratio: float = 0.5,
        mask_size: int = 2,
        visible_weight: float = 0.1,
        flip: bool = True,
    ):
        if not 0 < mask_ratio < 1:
            raise ConfigError(f"mask_ratio must be in (0, 1), not {mask_ratio}")
        self.patch, self.bins, self.flip = patch, bins, flip
        self.mask_ratio, self.mask_size = mask_ratio, mask_size
        self.visible_weight = visible_weight

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        return DenseHead(like.maps[-1].shape[-1], self.bins + 3, rngs=rngs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Paints `image` (in [-1, 1]) and adds `target` `b h w bins+3` and `hidden` `b h w`."""
        key = jax.random.key(0) if key is None else key
        to_flip, to_hide = jax.random.split(key)
        image = batch["image"]
        if train and self.flip:
            chosen = jax.random.bernoulli(to_flip, 0.5, (len(image), 1, 1, 1))
            image = jnp.where(chosen, image[:, :, ::-1], image)
        unit = image * 0.5 + 0.5
        target = [histograms(unit, self.patch, self.bins), colours(unit, self.patch)]
        target = jnp.concatenate(target, axis=-1)
        squares, (b, h, w, _) = self.mask_size, target.shape
        drawn = hidden(to_hide, (b, h // squares, w // squares), self.mask_ratio)
        patches = drawn.repeat(squares, axis=1).repeat(squares, axis=2)
        pixels = patches.repeat(self.patch, axis=1).repeat(self.patch, axis=2)[..., None]
        painted = jnp.where(pixels, 0.0, image)
        return {**batch, "image": painted, "target": target, "hidden": patches}

    def loss(self, outputs: Array, batch: Batch) -> tuple[Array, Array, dict[str, Array]]:
        """Weighted squared error over painted and visible patches, and the sum of the weights."""
        under, n, open_, m = (x.sum() for x in self._sums(outputs, batch))
        weight = self.visible_weight
        logs = {"hidden": under / jnp.maximum(n, 1), "visible": open_ / jnp.maximum(m, 1)}
        return under + weight * open_, n + weight * m, logs

    def _sums(self, outputs: Array, batch: Batch) -> tuple[Array, Array, Array, Array]:
        """Squared error and count over painted patches, then over visible ones, `b` each."""
        if outputs.shape != batch["target"].shape:
            sides = [x.shape[1] for x in (batch["image"], outputs)]
            raise ConfigError(
                f"task.patch {self.patch} must be the backbone's, {sides[0] // sides[1]}"
            )
        error = jnp.square(outputs - batch["target"]).sum(-1)
        there = batch["mask"][:, None, None]
        under, open_ = batch["hidden"] * there, ~batch["hidden"] * there
        return tuple(x.sum((1, 2)) for x in (error * under, under, error * open_, open_))

    def rows(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Squared error over painted patches, and their number."""
        error, patches, _, _ = self._sums(outputs, batch)
        return {"error": error, "patches": patches}

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """`hidden_error`: mean squared error of a painted patch."""
        error, patches = (rows[k].astype(np.float64).sum() for k in ("error", "patches"))
        return {"hidden_error": float(error / max(patches, 1))}

    def answer(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """The mean predicted value of each image, `b`; there is no answer for a user here."""
        return {"mean": outputs.mean((1, 2, 3))}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File and mean."""
        return {"file": example["name"], "mean": float(answer["mean"])}, {}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image alone."""
        return image


def histograms(images: Array, patch: int, bins: int) -> Array:
    """Histograms of oriented gradients: `b h w 3` in [0, 1] to `b h/patch w/patch bins`.

    Orientations are unsigned; a pixel's gradient is shared between the two nearest bins, and the
    histogram of a patch is divided by its own length, softened so that flat patches stay near zero.
    """
    grey = jnp.pad(images.mean(-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    dy = (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]) / 2
    dx = (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2
    size = jnp.sqrt(dx**2 + dy**2 + 1e-12)[..., None]
    turn = jnp.arctan2(dy, dx) / jnp.pi * bins % bins
    low = jnp.floor(turn)
    share = (turn - low)[..., None]
    low = low.astype(jnp.int32)
    votes = jax.nn.one_hot(low % bins, bins) * (1 - share)
    votes = (votes + jax.nn.one_hot((low + 1) % bins, bins) * share) * size
    b, h, w, _ = images.shape
    cells = votes.reshape(b, h // patch, patch, w // patch, patch, bins).sum((2, 4))
    return cells / (jnp.linalg.norm(cells, axis=-1, keepdims=True) + 0.05)


def colours(images: Array, patch: int) -> Array:
    """Mean colours in [-1, 1]: `b h w 3` in [0, 1] to `b h/patch w/patch 3`."""
    b, h, w, c = images.shape
    return images.reshape(b, h // patch, patch, w // patch, patch, c).mean((2, 4)) * 2 - 1


def hidden(key: Array, shape: tuple[int, int, int], ratio: float) -> Array:
    """A mask `b h w`, true in the same number of cells of every example."""
    b, h, w = shape
    order = jax.random.uniform(key, (b, h * w)).argsort(-1).argsort(-1)
    return (order < round(ratio * h * w)).reshape(shape)
