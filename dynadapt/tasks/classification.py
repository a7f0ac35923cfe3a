"""Image classification: linear head, cross-entropy, top-1, top-5 and mean-per-class accuracy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dynadapt import pictures
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads import linear

Array = jax.Array
Batch = dict[str, Array]

BEST = 5  # classes of an answer


class Task:
    """Classification into `info.classes`.

    Args:
        info: description of the data set.
        pool: pooling of the head, one of `heads.linear.POOLINGS`.
        label_smoothing: mass spread evenly over all classes.
        mixup: alpha of the Beta distribution that mixes pairs of images; 0 for none.
    """

    headline, better, needs = "top1", "higher", ("label",)

    def __init__(
        self, info: Any, *, pool: str = "mean", label_smoothing: float = 0.0, mixup: float = 0.0
    ):
        if pool not in linear.POOLINGS:
            raise UnknownName("pooling", pool, linear.POOLINGS)
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        if len(info.classes) < 2:
            raise ConfigError(f"classification needs classes; data set {info.name!r} has none")
        if "label" in info.fields and info.fields["label"].most:
            raise ConfigError(
                f"the images of {info.name!r} have several labels each; the task multilabel is for "
                "them"
            )
        self.classes = info.classes
        self.pool, self.label_smoothing, self.mixup = pool, label_smoothing, mixup

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        return linear.made_for(like, len(self.classes), pool=self.pool, rngs=rngs)

    def within(self, logits: Array, classes: Array) -> Array:
        """The logits of the first `classes` classes; the head's others are out of reach."""
        return jnp.where(jnp.arange(len(self.classes))[None] < classes, logits, -1e9)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Adds `target` `b c`, and mixes pairs while training."""
        target = jax.nn.one_hot(batch["label"], len(self.classes))
        batch = {**batch, "target": target}
        if not (train and self.mixup):
            return batch
        share = jax.random.beta(key, self.mixup, self.mixup)

        def mix(x: Array) -> Array:
            return (share * x + (1.0 - share) * x[::-1]).astype(x.dtype)

        # An example that is mixed with a masked one counts no more than that one.
        mask = jnp.minimum(batch["mask"], batch["mask"][::-1])
        return {**batch, "image": mix(batch["image"]), "target": mix(target), "mask": mask}

    def loss(self, logits: Array, batch: Batch) -> tuple[Array, Array, dict[str, Array]]:
        """Cross-entropy of the unmasked examples, and their number."""
        target = optax.smooth_labels(batch["target"], self.label_smoothing)
        mask = batch["mask"]
        return (optax.softmax_cross_entropy(logits, target) * mask).sum(), mask.sum(), {}

    def rows(self, logits: Array, batch: Batch) -> dict[str, Array]:
        """Of each example its `label`, the `rank` of that among the answers, and its `loss`.

        The loss is that of the label alone: smoothing belongs to training.
        """
        label = batch["label"]
        own = jnp.take_along_axis(logits, label[:, None], axis=1)
        # Ties count against the label unless it comes first, as arg max has it. Counted are those
        # that are not behind, so that an output of NaN is wrong, not first.
        earlier = jnp.arange(logits.shape[1])[None] < label[:, None]
        rank = (~jnp.where(earlier, logits < own, logits <= own)).sum(1)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return {"label": label, "rank": rank, "loss": loss}

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics: `loss`, and `top1`, `top5`, `mean_per_class` in percent, and the `examples`."""
        label, first = rows["label"], rows["rank"] == 0
        total = max(len(label), 1)
        count = np.bincount(label, minlength=1)
        correct = np.bincount(label, first, minlength=1)
        per_class = correct[count > 0] / count[count > 0]
        return {
            "loss": float(rows["loss"].astype(np.float64).sum()) / total,
            "top1": 100.0 * int(first.sum()) / total,
            "top5": 100.0 * int((rows["rank"] < 5).sum()) / total,
            "mean_per_class": 100.0 * float(per_class.mean()) if len(per_class) else 0.0,
            "examples": len(label),
        }

    def answer(self, logits: Array, batch: Batch) -> dict[str, Array]:
        """The likeliest classes of each example, at most five, `b k`, and their probabilities."""
        return likeliest(logits)

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File, label where it is known, class, probability and the best five."""
        return recorded(answer, example, self.classes), {}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image with its class and probability below."""
        name, share = self.classes[answer["classes"][0]], answer["probabilities"][0]
        return pictures.captioned(image, f"{name} {100 * share:.1f} %")


def likeliest(logits: Array) -> dict[str, Array]:
    """The likeliest `classes` of each example, at most five, `b k`, and their `probabilities`."""
    most = min(BEST, logits.shape[1])
    probability, classes = jax.lax.top_k(jax.nn.softmax(logits), most)
    return {"classes": classes, "probabilities": probability}


def recorded(
    answer: dict[str, np.ndarray], example: dict[str, Any], classes: tuple[str, ...]
) -> dict[str, Any]:
    """File, label where it is known, class, probability and the best five."""
    names = [classes[n] for n in answer["classes"]]
    shares = [round(float(p), 6) for p in answer["probabilities"]]
    known = {"label": classes[int(example["label"])]} if "label" in example else {}
    best = "; ".join(f"{n} {p:.4f}" for n, p in zip(names, shares, strict=True))
    own = {"prediction": names[0], "probability": shares[0], "top5": best}
    return {"file": example["name"], **known, **own}
