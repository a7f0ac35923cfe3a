"""Classification of images with any number of labels each: linear head, sigmoid, mean average
precision."""

from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from sklearn import metrics

from dynadapt import pictures
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads import linear

Array = jax.Array
Batch = dict[str, Array]

SURE = 0.5  # probability from which a class counts as predicted


class Task:
    """Which of `info.classes` an image shows, each for itself.

    Args:
        info: description of the data set; its field `label` has one label or several.
        pool: pooling of the head, one of `heads.linear.POOLINGS`.
    """

    headline, better, needs = "mAP", "higher", ("label",)

    def __init__(self, info: Any, *, pool: str = "mean"):
        if pool not in linear.POOLINGS:
            raise UnknownName("pooling", pool, linear.POOLINGS)
        if not info.classes:
            raise ConfigError(f"multilabel needs classes; data set {info.name!r} has none")
        self.classes, self.pool = info.classes, pool

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        return linear.made_for(like, len(self.classes), pool=self.pool, rngs=rngs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Adds `target` `b c`, 1 for each label."""
        label, count = batch["label"], len(self.classes)
        if label.ndim == 1:
            return {**batch, "target": jax.nn.one_hot(label, count)}
        each = jax.nn.one_hot(label, count) * batch["label_mask"][..., None]
        return {**batch, "target": each.max(1)}

    def loss(self, logits: Array, batch: Batch) -> tuple[Array, Array, dict[str, Array]]:
        """Binary cross-entropy of the unmasked examples, mean over classes, and their number."""
        mask = batch["mask"]
        return (self._losses(logits, batch) * mask).sum(), mask.sum(), {}

    def _losses(self, logits: Array, batch: Batch) -> Array:
        return optax.sigmoid_binary_cross_entropy(logits, batch["target"]).mean(1)

    def rows(self, logits: Array, batch: Batch) -> dict[str, Array]:
        """Of each example the probability of every class, the `target`, and the `loss`."""
        loss = self._losses(logits, batch)
        return {"score": jax.nn.sigmoid(logits), "target": batch["target"], "loss": loss}

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics: `loss`, and `mAP` and `AUC` in percent, means over the classes that have both
        images with them and images without; `examples`, and how many such `classes` there are."""
        target, score = rows["target"] > 0, rows["score"].astype(np.float64)
        telling = np.flatnonzero(target.any(0) & ~target.all(0))
        precision = [metrics.average_precision_score(target[:, c], score[:, c]) for c in telling]
        area = [metrics.roc_auc_score(target[:, c], score[:, c]) for c in telling]
        return {
            "loss": float(rows["loss"].astype(np.float64).sum()) / max(len(target), 1),
            "mAP": 100.0 * float(np.mean(precision)) if len(telling) else 0.0,
            "AUC": 100.0 * float(np.mean(area)) if len(telling) else 0.0,
            "classes": len(telling),
            "examples": len(target),
        }

    def answer(self, logits: Array, batch: Batch) -> dict[str, Array]:
        """The probability of every class, `b c`."""
        return {"probabilities": jax.nn.sigmoid(logits)}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File, labels where they are known, classes of at least one half, all probabilities."""
        known = {}
        if "label" in example:
            there = np.atleast_1d(example["label"])[np.atleast_1d(example.get("label_mask", 1)) > 0]
            known = {"labels": "; ".join(self.classes[int(n)] for n in there)}
        shares = dict(zip(self.classes, map(float, answer["probabilities"]), strict=True))
        sure = "; ".join(name for name, share in shares.items() if share >= SURE)
        each = {f"p({name})": round(share, 6) for name, share in shares.items()}
        return {"file": example["name"], **known, "prediction": sure, **each}, {}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image with its classes below."""
        sure = [c for c, p in zip(self.classes, answer["probabilities"], strict=True) if p >= SURE]
        return pictures.captioned(image, ", ".join(sure) or "nothing")
