"""Semantic segmentation: a dense head, cross-entropy of pixels, mean intersection over union."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dynadapt import choices, heads, pictures
from dynadapt.data import frames
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers.resample import resize
from dynadapt.targets.areas import areas, by_class
from dynadapt.targets.windows import slide

Array = jax.Array
Batch = dict[str, Array]

NORMALISERS = ("valid", "all")
AUXILIARY = 0.4  # weight of an auxiliary output's loss


class Task:
    """A class of `info.fields["labels"]` for each pixel.

    Args:
        info: description of the data set.
        head: name of a dense head, a module of `heads`.
        channels: of the head; -1 is its own.
        dropout: of whole channels before the head's last layer; -1 is its own.
        normaliser: what the loss of a batch is divided by: its "valid" pixels, or "all" of them,
            void ones too, as mmsegmentation does.
        class_weights: of each class's pixels in the loss; () for 1.
        window: side of the windows that an image is evaluated by; 0 for the whole image at once.
        stride: between windows; 0 is two thirds of a window.
        original: evaluate in the pixels of the images as they are stored, instead of those that
            the transforms give; on the host.
    """

    headline, better, needs = "miou", "higher", ("labels",)

    def __init__(
        self,
        info: Any,
        *,
        head: str = "segformer",
        channels: int = -1,
        dropout: float = -1.0,
        normaliser: str = "valid",
        class_weights: tuple[float, ...] = (),
        window: int = 0,
        stride: int = 0,
        original: bool = False,
    ):
        if normaliser not in NORMALISERS:
            raise UnknownName("normaliser", normaliser, NORMALISERS)
        heads.dense_module(head)  # an unknown name is answered here
        self.given = dict(name=head, channels=channels, dropout=dropout)
        self.field = info.fields["labels"] if "labels" in info.fields else Field("labels")
        self.classes = self.field.classes
        if len(self.classes) < 2:
            raise ConfigError(f"segmentation needs classes; data set {info.name!r} has none")
        if class_weights and len(class_weights) != len(self.classes):
            raise ConfigError(
                f"class_weights has {len(class_weights)} entries and {info.name!r} "
                f"{len(self.classes)} classes; give one each, or ()"
            )
        for weight in class_weights:
            if not choices.inside(weight, "[0, inf)"):
                raise ConfigError(f"class_weights must be numbers of at least 0, not {weight!r}")
        if not choices.inside(window, "[0, 8000]"):
            raise ConfigError(f"window must be in [0, 8000] pixels, 0 for none, not {window}")
        if not 0 <= stride <= window:
            raise ConfigError(f"stride must be from 0 to the window of {window}, not {stride}")
        self.normaliser, self.class_weights = normaliser, tuple(class_weights)
        self.stored = ("labels",) if original else ()
        self.window, self.stride = window, stride or max(window * 2 // 3, 1)
        if window:
            self.look = self._in_windows

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        return heads.dense_head(like=like, outputs=len(self.classes), rngs=rngs, **self.given)

    def _in_windows(self, forward: Any, images: Array) -> tuple[Array, ...]:
        """The outputs for images `b h w 3` in an evaluation, by windows."""
        sides = (self.window,) * 2, (self.stride,) * 2
        return (slide(lambda x: resize(forward(x)[0], x.shape[1:3]), images, *sides),)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """The batch as it is."""
        return batch

    def loss(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, dict]:
        """Cross-entropy over the pixels whose class is known, and how many count."""
        labels = batch["labels"]
        there = batch["mask"][:, None, None]
        known = there * self._known(labels)
        weight = jnp.broadcast_to(there, labels.shape) if self.normaliser == "all" else known
        total = self._cross_entropy(outputs[0], labels, known)
        for more in outputs[1:]:
            total += AUXILIARY * self._cross_entropy(more, labels, known)
        return total, weight.sum(), {}

    def _known(self, labels: Array) -> Array:
        return (labels >= 0) & (labels < len(self.classes)) & (labels != self.field.fill)

    def _cross_entropy(self, logits: Array, labels: Array, known: Array) -> Array:
        logits = resize(logits, labels.shape[1:3])
        own = jnp.where(known > 0, labels, 0)
        if self.class_weights:
            known = known * jnp.array(self.class_weights)[own]
        return (optax.softmax_cross_entropy_with_integer_labels(logits, own) * known).sum()

    def rows(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Areas `b c` as of `targets.areas`, and of each image the loss over so many pixels."""
        labels = batch["labels"]
        known = self._known(labels)
        logits = resize(outputs[0], labels.shape[1:3])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
        found = areas(logits.argmax(-1), jnp.where(known, labels, -1), len(self.classes))
        return {
            **found,
            "loss": jnp.where(known, loss, 0.0).sum((1, 2)),
            "pixels": known.sum((1, 2)),
        }

    def judge(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> dict[str, Any]:
        """The areas of one image, `c` each, in its own pixels."""
        labels, found = example["stored"]["labels"], self.restored(answer, example)
        known, classes = np.asarray(self._known(labels)), len(self.classes)
        chosen = {"intersection": known & (labels == found), "labelled": known}
        count = {k: np.bincount(labels[v], minlength=classes) for k, v in chosen.items()}
        given = np.bincount(found[known], minlength=classes + 1)[:classes]
        return count | {"predicted": given}

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """`miou`, `macc`, `aacc` in percent, `loss`, `examples`, and `classes`: those of each one.

        Means are over the classes that are there; `aacc` is over pixels.
        """
        found = by_class(rows)
        labelled = max(int(rows["labelled"].sum(dtype=np.int64)), 1)
        pixels = max(int(rows["pixels"].sum(dtype=np.int64)), 1)
        right = int(rows["intersection"].sum(dtype=np.int64))
        percent = {
            name: {
                k: round(100 * float(v[n]), 4) for k, v in found.items() if np.isfinite(v[n])
            }
            for n, name in enumerate(self.classes)
        }  # fmt: skip
        return {
            "miou": 100 * _mean(found["iou"]),
            "macc": 100 * _mean(found["acc"]),
            "aacc": 100 * right / labelled,
            "loss": float(rows["loss"].astype(np.float64).sum()) / pixels,
            "examples": len(rows["loss"]),
            "classes": percent,
        }

    def answer(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """The scores of all classes, `b h w c` float16, at the head's own resolution."""
        return {"scores": jax.nn.log_softmax(outputs[0]).astype(jnp.float16)}

    def restored(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> np.ndarray:
        """The classes in the pixels of the image as stored, `h w`; `len(classes)` where unseen."""
        scores, frame, size = answer["scores"], example["frame"], example["size"]
        small = frames.compose(frame, frames.window(0, 0, *frame.size, scores.shape[:2]))
        unseen = Field("values", fill=1.0)  # logarithms of shares are at most 0
        # Strip by strip: all scores of a photograph would be gigabytes.
        step = max(1, (1 << 23) // (size[1] * scores.shape[2]))
        strips = []
        for top in range(0, size[0], step):
            matrix = small.matrix - np.array([[0, 0, 0], [0, 0, top]])
            part = frames.Frame(matrix, small.size, small.method)
            given = min(step, size[0] - top), size[1]
            found = frames.unwarp(scores.astype(np.float32), unseen, part, given, smooth=True)
            best = found.argmax(-1)
            strips.append(np.where(found[..., 0] > 0.5, len(self.classes), best))
        return np.concatenate(strips)

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File and the classes by their share of the picture; a palette PNG of the classes."""
        found = self.restored(answer, example)
        counts = np.bincount(found.ravel(), minlength=len(self.classes))[: len(self.classes)]
        order = [n for n in np.argsort(-counts, kind="stable") if counts[n]]
        shares = "; ".join(f"{self.classes[n]} {counts[n] / found.size:.4f}" for n in order[:10])
        values = {"file": example["name"], "classes": shares}
        if "labels" in example:
            truth = self._truth(example)
            right, known = (truth == found).sum(), (truth >= 0).sum()
            values["accuracy"] = round(100 * float(right) / max(int(known), 1), 4)
        return values, {".png": pictures.label_png(found, len(self.classes))}

    def _truth(self, example: dict[str, Any]) -> np.ndarray:
        """The known labels in the pixels of the image as stored; -1 where there are none."""
        labels = example["labels"]
        known = np.asarray(self._known(labels))
        field = Field("labels", fill=-1)
        return frames.unwarp(np.where(known, labels, -1), field, example["frame"], example["size"])

    def _maps(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Classes of the truth where it is known, and of the answer."""
        truth = {"truth": self._truth(example)} if "labels" in example else {}
        return {**truth, "answer": self.restored(answer, example)}

    def _colours(self) -> np.ndarray:
        """Of the classes, and black for what is of none."""
        colours = [pictures.palette(len(self.classes)), [[0, 0, 0]]]
        return np.vstack(colours).astype(np.uint8)

    def panels(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """The truth where it is known, and the answer."""
        return {k: self._colours()[m] for k, m in self._maps(answer, example).items()}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image, the truth where it is known, the answer, and the answer over the image."""
        maps, colours = self._maps(answer, example), self._colours()
        panels = {"image": image} | {k: colours[m] for k, m in maps.items()}
        panels["overlay"] = pictures.blended(image, panels["answer"])
        shown = np.concatenate([m[(m >= 0) & (m < len(self.classes))] for m in maps.values()])
        seen = np.bincount(shown, minlength=len(self.classes))
        order = [n for n in np.argsort(-seen, kind="stable") if seen[n]]
        names = [(self.classes[n], colours[n]) for n in order]
        return pictures.with_legend(pictures.beside(panels), names)


def _mean(values: np.ndarray) -> float:
    """The mean of all that is no NaN; 0 without any."""
    some = values[~np.isnan(values)]
    return float(some.mean()) if len(some) else 0.0
