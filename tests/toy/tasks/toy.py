"""Which class has each pixel, and is it in a box? Pixels that are void count nowhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dynadapt import pictures
from dynadapt.context import Context
from dynadapt.layers.batch_norm import BatchNorm

Array = jax.Array
Batch = dict[str, Array]


class PixelHead(nnx.Module):
    """A hidden layer, normalised over the batch or not, and the outputs of a patch's pixels."""

    def __init__(self, dim: int, outputs: int, patch: int, norm: bool, *, rngs: nnx.Rngs):
        self.patch = patch
        # A bias before a norm has no effect: its gradient would be noise alone.
        self.hidden = nnx.Linear(dim, dim, use_bias=not norm, rngs=rngs)
        self.norm = nnx.data(BatchNorm(dim) if norm else None)
        self.last = nnx.Linear(dim, outputs * patch * patch, rngs=rngs)

    def __call__(self, features: Any, ctx: Context) -> Array:
        x = self.hidden(features.maps[-1])
        x = nnx.relu(x if self.norm is None else self.norm(x, ctx))
        x, p = self.last(x), self.patch
        b, h, w, _ = x.shape
        x = x.reshape(b, h, w, p, p, -1).swapaxes(2, 3)
        return x.reshape(b, h * p, w * p, -1)


class Task:
    """Classes and boxes of pixels.

    Args:
        info: of the data.
        patch: of the backbone.
        norm: whether the head normalises over the batch.
    """

    headline, better, needs = "pixels", "higher", ("image", "labels", "boxes")

    def __init__(self, info: Any, *, patch: int = 4, norm: bool = True):
        self.classes, self.fields = info.classes, info.fields
        self.patch, self.norm = patch, norm

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """A logit for each class and one for being in a box, `b h w c+1`."""
        dim, outputs = like.maps[-1].shape[-1], len(self.classes) + 1
        return PixelHead(dim, outputs, self.patch, self.norm, rngs=rngs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Adds `valid` and `inside`, `b h w`: pixels that count, and those in some box."""
        labels, boxes = batch["labels"], batch["boxes"]
        y, x = jnp.mgrid[: labels.shape[1], : labels.shape[2]] + 0.5
        left, top, right, bottom = (boxes[:, :, i, None, None] for i in range(4))
        x, y = x[None, None], y[None, None]
        within = (left < x) & (x < right) & (top < y) & (y < bottom)
        inside = (within & (batch["boxes_mask"] > 0)[:, :, None, None]).any(1)
        valid = (labels != self.fields["labels"].fill) & (batch["mask"] > 0)[:, None, None]
        return {**batch, "inside": inside, "valid": valid}

    def _losses(self, outputs: Array, batch: Batch) -> Array:
        """Of each valid pixel, `b h w`."""
        label = jnp.where(batch["valid"], batch["labels"], 0)
        own = optax.softmax_cross_entropy_with_integer_labels(outputs[..., :-1], label)
        box = optax.sigmoid_binary_cross_entropy(outputs[..., -1], batch["inside"])
        return jnp.where(batch["valid"], own + box, 0.0)

    def loss(self, outputs: Array, batch: Batch) -> tuple[Array, Array, dict[str, Array]]:
        """Summed over valid pixels, and their number."""
        return self._losses(outputs, batch).sum(), batch["valid"].sum().astype(jnp.float32), {}

    def rows(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Of each example how many pixels are valid, right and rightly boxed, and their loss."""
        right = (outputs[..., :-1].argmax(-1) == batch["labels"]) & batch["valid"]
        boxed = ((outputs[..., -1] > 0) == batch["inside"]) & batch["valid"]
        counts = {"valid": batch["valid"], "right": right, "boxed": boxed}
        losses = self._losses(outputs, batch).sum((1, 2))
        return {**{k: v.sum((1, 2)) for k, v in counts.items()}, "loss": losses}

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """`pixels` and `boxed` in percent, `loss` of a pixel, and the `examples`."""
        valid = max(int(rows["valid"].sum()), 1)
        return {
            "loss": float(rows["loss"].astype(np.float64).sum()) / valid,
            "pixels": 100.0 * int(rows["right"].sum()) / valid,
            "boxed": 100.0 * int(rows["boxed"].sum()) / valid,
            "examples": len(rows["valid"]),
        }

    def answer(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """The class of each pixel, `b h w`, and how sure, `b`."""
        share = jax.nn.softmax(outputs[..., :-1]).max(-1).mean((1, 2))
        return {"labels": outputs[..., :-1].argmax(-1).astype(jnp.uint8), "sure": share}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File and sureness; the label map as a PNG file."""
        sure = round(float(answer["sure"]), 6)
        return {"file": example["name"], "sure": sure}, {".png": pictures.png(answer["labels"])}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image beside the map."""
        grey = np.repeat(answer["labels"][..., None] * 100, 3, axis=-1).astype(np.uint8)
        return np.concatenate([image, grey], axis=1)
