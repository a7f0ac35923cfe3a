"""Saliency: how likely each pixel is part of what catches the eye."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import heads, pictures
from dynadapt.data import frames
from dynadapt.data.fields import Field
from dynadapt.errors import DataError
from dynadapt.layers.resample import resize
from dynadapt.targets import binary

Array = jax.Array
Batch = dict[str, Array]

THRESHOLDS = tuple(float(t) for t in np.linspace(0.2, 0.9, 15))
BETA2 = 0.3  # beta squared: what recall counts beside precision


class Task:
    """One of two classes of `info.fields["saliency"]` for each pixel, 1 for what is salient.

    Args:
        info: description of the data set.
        head: name of a dense head, a module of `heads`.
        channels: of the head; -1 is its own.
        dropout: of whole channels before the head's last layer; -1 is its own.
    """

    headline, better, needs = "max_miou", "higher", ("saliency",)
    beside = ("max_f",)
    whole_batch = True  # the loss is balanced over a batch

    def __init__(
        self, info: Any, *, head: str = "hrnet", channels: int = -1, dropout: float = -1.0
    ):
        heads.dense_module(head)  # an unknown name is answered here
        self.given = dict(name=head, channels=channels, dropout=dropout)
        self.fill = info.fields[self.needs[0]].fill

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        return heads.dense_head(like=like, outputs=1, rngs=rngs, **self.given)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """The batch as it is."""
        return batch

    def read(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, Array]:
        """Logits, labels and which of them are known, `b h w` each."""
        labels = batch[self.needs[0]]
        logits = resize(outputs[0], labels.shape[1:3])[..., 0]
        return logits, labels, binary.known(labels, self.fill)

    def loss(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, dict]:
        """Cross-entropy over known pixels, both classes balanced by their shares of the batch."""
        logits, labels, known = self.read(outputs, batch)
        known &= (batch["mask"] > 0)[:, None, None]
        return binary.balanced(logits, labels, known).sum(), known.sum(dtype=jnp.float32), {}

    def rows(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Pixels above each of `THRESHOLDS`, as of `targets.binary.counts`."""
        logits, labels, known = self.read(outputs, batch)
        return binary.counts(jax.nn.sigmoid(logits), labels, known, THRESHOLDS)

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Percent, each the largest over thresholds: `max_miou`, the mean over images of the
        intersection over union; `max_f`, F of precision and recall as means over images;
        `max_f_beta`, F with `BETA2` of those over all pixels. An image without known pixels is left
        out; where a class is neither there nor answered, an image counts as right.
        """
        if len(rows["pixels"]) and not rows["pixels"].any():
            raise DataError("no pixel of the evaluated images has a known saliency")
        kept = rows["pixels"] > 0
        both, given, there = (rows[k][kept].astype(np.int64) for k in ("both", "given", "there"))
        there = there[:, None]
        iou = _share(both, given + there - both, 1.0)
        empty = (given + there == 0).astype(np.float64)
        shares = _share(both, given, empty), _share(both, there, empty)
        pooled = (_share(both.sum(0), x.sum(0), 0.0) for x in (given, there))
        return {
            "max_miou": 100 * _highest(_mean(iou)),
            "max_f": 100 * _highest(_f(*map(_mean, shares), 1.0)),
            "max_f_beta": 100 * _highest(_f(*pooled, BETA2)),
            "examples": len(rows["pixels"]),
        }

    def answer(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Chances `b h w` at the head's own resolution."""
        return {"chance": jax.nn.sigmoid(outputs[0][..., 0])}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File and the share of the picture that is of the class; a PNG of chances, 255 for 1."""
        found = frames.restored(answer["chance"], example["frame"], example["size"])
        values = {"file": example["name"], "share": round(float((found > 0.5).mean()), 4)}
        return values, {".png": pictures.png(pictures.grey(found)[..., 0])}

    def panels(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """The truth where it is known, and the answer."""
        found = frames.restored(answer["chance"], example["frame"], example["size"])
        panels = {"answer": pictures.grey(found)}
        if (name := self.needs[0]) in example:
            field = Field("labels", fill=self.fill)
            truth = frames.unwarp(example[name], field, example["frame"], example["size"])
            panels = {"truth": pictures.grey(truth == 1), **panels}
        return panels

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image, the truth where it is known, and the answer."""
        return pictures.beside({"image": image, **self.panels(answer, example)})


def _share(part: np.ndarray, whole: np.ndarray, without: np.ndarray | float) -> np.ndarray:
    """`part / whole`, float64; `without` where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), without)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.sum(0) / max(len(values), 1)


def _f(precision: np.ndarray, recall: np.ndarray, beta2: float) -> np.ndarray:
    below = beta2 * precision + recall
    return (1 + beta2) * precision * recall / np.where(below > 0, below, 1.0)


def _highest(values: np.ndarray) -> float:
    return float(values.max())
