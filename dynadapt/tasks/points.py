"""Classification of point clouds: a head on class token, prompts and groups; plain and by votes.

Published numbers "with voting" are the best of many repeats on the test split. Here one vote is
taken, of passes whose draws are fixed, and it always stands beside the plain number.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dynadapt import choices, pictures
from dynadapt.errors import ConfigError
from dynadapt.heads import points as heads
from dynadapt.targets import clouds
from dynadapt.tasks import classification

Array = jax.Array
Batch = dict[str, Array]

VOTES = 10  # passes of a vote
SEED = 0  # of their draws; a setting would invite a search for the best
VOTED = f"vote@{VOTES}"


class Task:
    """The class of a cloud, `info.fields["label"]`.

    A cloud is thinned on the device: in training to a random part of the points that are farthest
    from each other, in an evaluation to those points alone.

    Args:
        info: description of the data set.
        points: of a cloud that the backbone sees; 0 for all.
        prompts: let the head read the prompts, where the method adds any.
        dropout: of the head.
        turn: turn each training cloud about y, the vertical axis, at random.
        jitter: standard deviation by which each training point moves.
    """

    headline, better, needs = "plain", "higher", ("points", "label")
    beside = (VOTED,)

    def __init__(
        self,
        info: Any,
        *,
        points: int = 0,
        prompts: bool = True,
        dropout: float = 0.5,
        turn: bool = False,
        jitter: float = 0.0,
    ):
        if not choices.inside(dropout, "[0, 1)"):
            raise ConfigError(f"dropout must be in [0, 1), not {dropout}")
        if not choices.inside(jitter, "[0, inf)"):
            raise ConfigError(f"jitter must be at least 0, not {jitter}")
        self.classes = info.fields["label"].classes if "label" in info.fields else info.classes
        if len(self.classes) < 2:
            raise ConfigError(f"classification needs classes; data set {info.name!r} has none")
        there = clouds.size(info)
        if not 0 <= points <= there:
            raise ConfigError(
                f"points must be from 1 to the {there} of a cloud of {info.name!r}, or 0 for all, "
                f"not {points}"
            )
        self.points = points or there
        self.prompts, self.dropout, self.turn, self.jitter = prompts, dropout, turn, jitter

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        given = dict(prompts=self.prompts, rate=self.dropout, rngs=rngs)
        return heads.classifier(like, len(self.classes), **given)

    def within(self, outputs: tuple[Array, ...], classes: Array) -> tuple[Array, ...]:
        """The logits of the first `classes` classes; the head's others are out of reach."""
        known = jnp.arange(len(self.classes))[None] < classes
        return tuple(jnp.where(known, logits, -1e9) for logits in outputs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Thins the clouds; `whole` are all points, of which an evaluation draws its votes."""
        whole = batch["points"]
        if not train:
            return {**batch, "points": self._plain(whole), "whole": whole}
        to_draw, to_vary = jax.random.split(key)
        given = clouds.taken(whole, clouds.thinned(to_draw, whole, self.points))
        given = clouds.varied(to_vary, given, turn=self.turn, jitter=self.jitter)
        return {**batch, "points": given}

    def _plain(self, whole: Array) -> Array:
        return clouds.taken(whole, clouds.farthest(whole, self.points))

    def look(self, forward: Any, whole: Array) -> tuple[Array, Array]:
        """The logits of whole clouds in an evaluation, and the mean of those of its votes.

        The draws of a pass are the same for all clouds: no answer depends on what else is in the
        batch.
        """
        pool = clouds.taken(whole, clouds.farthest(whole, clouds.pool(self.points, whole.shape[1])))

        def vote(key: Array) -> Array:
            to_draw, to_move = jax.random.split(key)
            numbers = clouds.drawn(to_draw, (1, pool.shape[1]), self.points)[0]
            return forward(clouds.moved(to_move, pool[:, numbers], 1))[0]

        votes = jax.lax.map(vote, jax.random.split(jax.random.key(SEED), VOTES))
        return forward(pool[:, : self.points])[0], votes.mean(0)

    def loss(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, dict]:
        """Cross-entropy of the unmasked examples, and their number."""
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs[0], batch["label"])
        return (loss * batch["mask"]).sum(), batch["mask"].sum(), {}

    def rows(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Of each example its `label`, the classes that are answered, and the `loss`."""
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs[0], batch["label"])
        found = {"plain": outputs[0].argmax(-1), VOTED: outputs[-1].argmax(-1)}
        return {"label": batch["label"], "loss": loss, **found}

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """`plain` and `vote@10`, accuracies in percent, and each as a mean over classes."""
        found = {}
        for name in ("plain", VOTED):
            confusion = confusions(rows["label"], rows[name], len(self.classes))
            right, count = np.diag(confusion), confusion.sum(1)
            found[name] = 100.0 * int(right.sum()) / max(int(count.sum()), 1)
            each = right[count > 0] / count[count > 0]
            found[f"{name}/mean_class"] = 100.0 * float(each.mean()) if len(each) else 0.0
        total = max(len(rows["label"]), 1)
        loss = float(rows["loss"].astype(np.float64).sum()) / total
        return {**found, "loss": loss, "examples": len(rows["label"])}

    def answer(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """The likeliest classes of each cloud, their probabilities, and the class by votes."""
        return {**classification.likeliest(outputs[0]), "voted": outputs[-1].argmax(-1)}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File, label where it is known, class, probability, the best five, the class by votes."""
        values = classification.recorded(answer, example, self.classes)
        return {**values, VOTED: self.classes[answer["voted"]]}, {}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """Three views of the cloud, with its class and probability below."""
        name, share = self.classes[answer["classes"][0]], answer["probabilities"][0]
        return pictures.captioned(pictures.views(image), f"{name} {100 * share:.1f} %")


def confusions(labels: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """How often each class `c` was answered by each, int64 `c c`."""
    pairs = labels.astype(np.int64) * classes + found
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
