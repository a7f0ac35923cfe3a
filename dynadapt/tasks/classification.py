"""Image classification: linear head, cross-entropy, top-1, top-5 and mean-per-class accuracy."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads.linear import POOLINGS, LinearHead

Array = jax.Array
Batch = dict[str, Array]


class Task:
    """Classification into `info.classes`.

    Args:
        info: description of the data set.
        pool: pooling of the head, one of `heads.linear.POOLINGS`.
        label_smoothing: mass spread evenly over all classes.
        mixup: alpha of the Beta distribution that mixes pairs of images; 0 for none.
    """

    headline = "top1"

    def __init__(
        self, info: Any, *, pool: str = "mean", label_smoothing: float = 0.0, mixup: float = 0.0
    ):
        if pool not in POOLINGS:
            raise UnknownName("pooling", pool, POOLINGS)
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        if len(info.classes) < 2:
            raise ConfigError(f"classification needs classes; data set {info.name!r} has none")
        self.classes = len(info.classes)
        self.pool, self.label_smoothing, self.mixup = pool, label_smoothing, mixup

    def head(self, backbone: nnx.Module, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features of this backbone."""
        if self.pool == "cls" and not backbone.prefix:
            raise ConfigError("pool='cls' needs a backbone with a class token; use pool='mean'")
        return LinearHead(backbone.dims[-1], self.classes, pool=self.pool, rngs=rngs)

    def within(self, logits: Array, classes: Array) -> Array:
        """The logits of the first `classes` classes; the head's others are out of reach."""
        return jnp.where(jnp.arange(self.classes)[None] < classes, logits, -1e9)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Adds `target` `b c`, and mixes pairs while training."""
        target = jax.nn.one_hot(batch["label"], self.classes)
        batch = {**batch, "target": target}
        if not (train and self.mixup):
            return batch
        share = jax.random.beta(key, self.mixup, self.mixup)

        def mix(x: Array) -> Array:
            return (share * x + (1.0 - share) * x[::-1]).astype(x.dtype)

        # An example that is mixed with a masked one counts no more than that one.
        mask = batch["mask"] * batch["mask"][::-1]
        return {**batch, "image": mix(batch["image"]), "target": mix(target), "mask": mask}

    def losses(self, logits: Array, target: Array) -> Array:
        """Cross-entropy of each example, `b`."""
        target = optax.smooth_labels(target, self.label_smoothing)
        return optax.softmax_cross_entropy(logits, target)

    def loss(self, logits: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Mean over the unmasked examples."""
        mask = batch["mask"]
        total = jnp.maximum(mask.sum(), 1.0)
        return (self.losses(logits, batch["target"]) * mask).sum() / total, {}

    def zero(self) -> dict[str, Array]:
        """Metric sums of no example."""
        per_class = jnp.zeros(self.classes, jnp.int32)
        return {
            "loss": jnp.zeros((), jnp.float32),
            "top5": jnp.zeros((), jnp.int32),
            "correct": per_class,
            "count": per_class,
        }

    def add(self, sums: dict[str, Array], logits: Array, batch: Batch) -> dict[str, Array]:
        """The sums with one batch more; padded examples count nothing."""
        mask = batch["mask"].astype(jnp.int32)
        label = batch["label"]
        own = jnp.take_along_axis(logits, label[:, None], axis=1)
        # Ties count against the label unless it comes first, as arg max has it. Counted are those
        # that are not behind, so that an output of NaN is wrong, not first.
        earlier = jnp.arange(self.classes)[None] < label[:, None]
        rank = (~jnp.where(earlier, logits < own, logits <= own)).sum(1)
        hits = jax.nn.one_hot(label, self.classes, dtype=jnp.int32) * mask[:, None]
        return {
            "loss": sums["loss"] + (self.losses(logits, batch["target"]) * batch["mask"]).sum(),
            "top5": sums["top5"] + ((rank < 5) * mask).sum(),
            "correct": sums["correct"] + ((rank == 0)[:, None] * hits).sum(0),
            "count": sums["count"] + hits.sum(0),
        }

    def value(self, sums: dict[str, Array]) -> dict[str, float]:
        """Metrics: `loss`, and `top1`, `top5`, `mean_per_class` in percent, and the `examples`."""
        count, correct = sums["count"], sums["correct"]
        total = max(int(count.sum()), 1)
        present = count > 0
        per_class = correct[present] / count[present]
        return {
            "loss": float(sums["loss"]) / total,
            "top1": 100.0 * int(correct.sum()) / total,
            "top5": 100.0 * int(sums["top5"]) / total,
            "mean_per_class": 100.0 * float(per_class.mean()) if len(per_class) else 0.0,
            "examples": int(count.sum()),
        }

    def predict(self, logits: Array) -> dict[str, Array]:
        """The answer for each image: class number and its probability, `b` each."""
        probability = jax.nn.softmax(logits)
        return {"prediction": logits.argmax(-1), "probability": probability.max(-1)}
