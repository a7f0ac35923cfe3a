"""Edges: how likely the outline of something runs through each pixel."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt import choices
from dynadapt.errors import ConfigError, DataError
from dynadapt.targets import binary
from dynadapt.tasks import saliency

Array = jax.Array
Batch = dict[str, Array]

STEPS = 100  # thresholds of `edge_f` are the hundredths between 0 and 1
REACH = 0.0075  # of the picture's diagonal, and at least a pixel


class Task(saliency.Task):
    """One of two classes of `info.fields["edges"]` for each pixel, 1 for edges.

    Args:
        info: description of the data set.
        head: name of a dense head, a module of `heads`.
        channels: of the head; -1 is its own.
        dropout: of whole channels before the head's last layer; -1 is its own.
        positive: weight of edges in the loss; others have 1 less that.
    """

    headline, better, needs = "edge_f", "higher", ("edges",)
    beside = ("loss",)
    whole_batch = False

    def __init__(
        self,
        info: Any,
        *,
        head: str = "hrnet",
        channels: int = -1,
        dropout: float = -1.0,
        positive: float = 0.95,
    ):
        super().__init__(info, head=head, channels=channels, dropout=dropout)
        if not choices.inside(positive, "(0, 1)"):
            raise ConfigError(f"positive must be in (0, 1), not {positive!r}")
        self.positive = positive

    def loss(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, dict]:
        """Cross-entropy over known pixels, edges weighted by `positive`."""
        logits, labels, known = self.read(outputs, batch)
        known &= (batch["mask"] > 0)[:, None, None]
        total = binary.balanced(logits, labels, known, self.positive).sum()
        return total, known.sum(dtype=jnp.float32), {}

    def rows(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Pixels near each other, as of `targets.binary.near`, and the loss over so many pixels."""
        logits, labels, known = self.read(outputs, batch)
        reach = max(1.0, REACH * math.hypot(*labels.shape[1:3]))
        return {
            **binary.near(jax.nn.sigmoid(logits), labels, known, STEPS, reach),
            "loss": binary.balanced(logits, labels, known, self.positive),
            "pixels": known.sum((1, 2)),
        }

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """`edge_f`, percent: the largest F over thresholds of precision and recall over all pixels,
        which count where the other map has an edge in reach. It is no ODS: lines are not thinned,
        and several pixels may meet one. `loss` is that of training."""
        if len(rows["pixels"]) and not rows["pixels"].any():
            raise DataError("no pixel of the evaluated images is known to be an edge or none")
        total = {
            k: v.sum(0, dtype=np.float64 if k == "loss" else np.int64) for k, v in rows.items()
        }
        given, there = np.maximum(total["given"], 1), max(int(total["there"]), 1)
        precision, recall = total["right"] / given, total["found"] / there
        both = np.where(precision + recall > 0, precision + recall, 1.0)
        return {
            "edge_f": 100 * float((2 * precision * recall / both).max()),
            "loss": float(total["loss"]) / max(int(total["pixels"]), 1),
            "examples": len(rows["pixels"]),
        }
