"""Parts of point clouds: a class for each point, intersection over union by cloud and category.

As in ShapeNetPart's protocol the category of a cloud is known where its data say so: an evaluation
answers among the parts of that category alone, and so the labels of new clouds, which have none,
are among all parts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dynadapt import choices, pictures
from dynadapt.errors import ConfigError
from dynadapt.heads import parts as heads
from dynadapt.targets import clouds, ious

Array = jax.Array
Batch = dict[str, Array]


class Task:
    """The part that each point of a cloud lies on, `info.fields["parts"]`; all points are seen.

    Args:
        info: description of the data set.
        channels: of the head.
        dropout: of the head.
        turn: turn each training cloud about y, the vertical axis, at random.
        jitter: standard deviation by which each training point moves.
    """

    headline, better, needs = "instance_miou", "higher", ("points", "parts")
    beside = ("class_miou",)

    def __init__(
        self,
        info: Any,
        *,
        channels: int = 256,
        dropout: float = 0.5,
        turn: bool = False,
        jitter: float = 0.0,
    ):
        for name, value, interval in (
            ("channels", channels, "[1, 16384]"),
            ("dropout", dropout, "[0, 1)"),
            ("jitter", jitter, "[0, inf)"),
        ):
            if not choices.inside(value, interval):
                raise ConfigError(f"{name} must be {choices.words(interval)}, not {value}")
        self.field = info.fields["parts"]
        self.parts = self.field.classes
        if len(self.parts) < 2:
            raise ConfigError(f"parts need classes; data set {info.name!r} has none")
        self.categories = info.fields["label"].classes if "label" in info.fields else ()
        # Without categories all parts are of one.
        self.owners = np.array(self.field.owners or (0,) * len(self.parts))
        self.channels, self.dropout, self.turn, self.jitter = channels, dropout, turn, jitter

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        given = dict(channels=self.channels, rate=self.dropout, rngs=rngs)
        return heads.propagation(like, len(self.parts), **given)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Clouds as training sees them; all points stay."""
        if not train:
            return batch
        points = clouds.varied(key, batch["points"], turn=self.turn, jitter=self.jitter)
        return {**batch, "points": points}

    def loss(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, dict]:
        """Cross-entropy over the points whose part is known, and how many they are."""
        known = self._known(batch["parts"]) * batch["mask"][:, None]
        return (self._cross_entropy(outputs, batch) * known).sum(), known.sum(), {}

    def _known(self, parts: Array) -> Array:
        return (parts >= 0) & (parts < len(self.parts)) & (parts != self.field.fill)

    def _cross_entropy(self, outputs: tuple[Array, ...], batch: Batch) -> Array:
        own = jnp.where(self._known(batch["parts"]), batch["parts"], 0)
        return optax.softmax_cross_entropy_with_integer_labels(outputs[0], own)

    def _found(self, outputs: tuple[Array, ...], batch: Batch) -> Array:
        """The part of each point, `b n`, among those of the category where it is known."""
        logits = outputs[0]
        if "label" in batch and self.field.owners:
            own = jnp.asarray(self.owners)[None] == batch["label"][:, None]
            logits = jnp.where(own[:, None], logits, -jnp.inf)
        return logits.argmax(-1)

    def rows(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Points of each part as of `targets.ious`, the category, and the loss over the points."""
        parts = batch["parts"]
        known = self._known(parts)
        found, seen = self._found(outputs, batch), jnp.where(known, parts, -1)
        loss = jnp.where(known, self._cross_entropy(outputs, batch), 0.0)
        owner = jnp.asarray(self.owners)[jnp.maximum(seen.max(1), 0)]
        return {
            **ious.counts(found, seen, len(self.parts)),
            "category": batch["label"] if "label" in batch else owner,
            "loss": loss.sum(1),
            "points": known.sum(1),
        }

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """`instance_miou`, the mean over clouds, and `class_miou`, that of the categories' means;
        `loss`, `examples`, and `categories`: the mean of each one."""
        category, clouds_ = rows["category"], len(rows["category"])
        iou = 100 * ious.of_clouds(rows["intersection"], rows["union"], category, self.owners)
        names = self.categories or tuple(map(str, range(int(self.owners.max()) + 1)))
        each = {
            name: {"miou": round(float(iou[category == n].mean()), 4)}
            for n, name in enumerate(names)
            if (category == n).any()
        }
        present = [iou[category == n].mean() for n in np.unique(category)]
        points = max(int(rows["points"].sum(dtype=np.int64)), 1)
        return {
            "instance_miou": float(iou.mean()) if clouds_ else 0.0,
            "class_miou": float(np.mean(present)) if clouds_ else 0.0,
            "loss": float(rows["loss"].astype(np.float64).sum()) / points,
            "examples": clouds_,
            "categories": each,
        }

    def answer(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """The part of each point, `b n`."""
        return {"parts": self._found(outputs, batch)}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File and the parts by their share of the points; a table `x y z part` of all points."""
        found, points = answer["parts"], example["points"]
        counts = np.bincount(found, minlength=len(self.parts))
        order = [n for n in np.argsort(-counts, kind="stable") if counts[n]]
        shares = "; ".join(f"{self.parts[n]} {counts[n] / len(found):.4f}" for n in order[:10])
        values = {"file": example["name"], "parts": shares}
        if "parts" in example:
            known = np.asarray(self._known(example["parts"]))
            right = (found == example["parts"])[known].sum()
            values["accuracy"] = round(100 * float(right) / max(int(known.sum()), 1), 4)
        lines = [
            f"{x:.6g} {y:.6g} {z:.6g} {n}\n" for (x, y, z), n in zip(points, found, strict=True)
        ]
        return values, {".parts.txt": "".join(lines).encode()}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """Three views of the truth where it is known, above three of the answer."""
        count = len(self.parts)
        colours = np.vstack([pictures.palette(count), [[200, 200, 200]]]).astype(np.uint8)
        shown = {"answer": answer["parts"]}
        if "parts" in example:
            known = np.asarray(self._known(example["parts"]))
            shown = {"truth": np.where(known, example["parts"], count), **shown}
        rows = [
            pictures.captioned(pictures.views(image, colours[parts]), name)
            for name, parts in shown.items()
        ]
        seen = np.bincount(np.concatenate(list(shown.values())), minlength=count)[:count]
        order = [n for n in np.argsort(-seen, kind="stable") if seen[n]]
        names = [(self.parts[n], colours[n]) for n in order]
        return pictures.with_legend(np.concatenate(rows), names)
