"""Object detection with ATSS: a class and a box for each object, the average precision of COCO or
of PASCAL VOC."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import choices, pictures
from dynadapt.data import frames
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads.atss import Detector, Outputs
from dynadapt.targets import atss, coco, voc
from dynadapt.targets.boxes import anchors

Array = jax.Array
Batch = dict[str, Array]

METRICS = {"coco": "ap", "voc": "voc_ap50"}  # and their headlines
PADDED = 32  # pixels: anchors learn up to the next multiple of it beyond the picture
SHOWN = 0.3  # scores beyond which answers are drawn and counted
NAMED = 10  # answers that a line of the table has


class Task:
    """Objects of `info.fields["boxes"]`, of the classes of `box_classes`.

    Args:
        info: description of the data set.
        neck: name of a neck, of `heads.necks`; "" is "vfm", or "fpn" of several strides.
        strides: of the levels that objects are looked for in, each twice the one before; () for
            the neck's own.
        channels: width of neck and head.
        depth: convolutions of each of the head's two towers.
        scale: side of an anchor in strides of its level.
        least: probability of a class, beyond which there is an answer.
        overlap: intersection over union beyond which the worse of two answers of a class goes.
        best: answers to an image, at most.
        metric: "coco" for COCO's average precision, or "voc" for PASCAL VOC's.
    """

    headline, better, needs = "ap", "higher", ("boxes", "box_classes")
    stored = ("objects", "image_id")
    results = "detections.json"
    # Its parts are divided by counts of their own, over the whole batch.
    whole_batch = True

    def __init__(
        self,
        info: Any,
        *,
        neck: str = "",
        strides: tuple[float, ...] = (),
        channels: int = 256,
        depth: int = 4,
        scale: float = 8.0,
        least: float = 0.05,
        overlap: float = 0.6,
        best: int = 100,
        metric: str = "coco",
    ):
        if metric not in METRICS:
            raise UnknownName("metric", metric, METRICS)
        if metric == "coco":
            coco.required()
        self.field = info.fields["box_classes"] if "box_classes" in info.fields else Field("rows")
        self.classes = self.field.classes
        if not self.classes:
            raise ConfigError(f"detection needs classes; data set {info.name!r} has none")
        for name, value, interval in (
            ("channels", channels, "[1, 16384]"),
            ("depth", depth, "[1, 64]"),
            ("scale", scale, "(0, inf)"),
            ("least", least, "[0, 1)"),
            ("overlap", overlap, "[0, 1]"),
            ("best", best, "[1, 10000]"),
            *(("each of strides", stride, "(0, inf)") for stride in strides),
        ):
            if not choices.inside(value, interval):
                raise ConfigError(f"{name} must be {choices.words(interval)}, not {value!r}")
        self.given = dict(name=neck, strides=tuple(strides), channels=channels, depth=depth)
        self.scale, self.least, self.overlap, self.best = scale, least, overlap, best
        self.metric, self.headline = metric, METRICS[metric]

    def head(self, like: Any, *, rngs: nnx.Rngs) -> Detector:
        """The head for features like these; ConfigError where its neck can't serve them."""
        return Detector(like, len(self.classes), **self.given, rngs=rngs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """The batch as it is."""
        return batch

    def _levels(self, outputs: Outputs) -> tuple[list[tuple[int, int]], tuple[np.ndarray, ...]]:
        """Sizes (h, w) and anchors `hw 4` of each level."""
        sizes = [x.shape[1:3] for x in outputs.classes]
        return sizes, anchors(sizes, outputs.strides, self.scale)

    def targets(self, outputs: Outputs, batch: Batch) -> tuple[Array, Array]:
        """Which anchors have a loss, `b a`, and the object that each learns, -1 for none."""
        sizes, levels = self._levels(outputs)

        def one(extent: Array, boxes: Array, there: Array) -> tuple[Array, Array]:
            known = atss.valid(sizes, outputs.strides, -(-extent // PADDED) * PADDED)
            return known, atss.assign(levels, known, boxes, there)

        return jax.vmap(one)(_extent(batch), batch["boxes"], batch["boxes_mask"] > 0)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Array, dict]:
        """The loss of a batch for each of its images, and how many there are.

        Logs have its three parts, the anchors that learn an object, the objects, and those of them
        that no anchor learns.
        """
        every = jnp.concatenate(self._levels(outputs)[1])
        joined = [jnp.concatenate(x, axis=1) for x in zip(*_flat(outputs), strict=True)]

        def one(found: Any, known: Array, owner: Array, boxes: Array, classes: Array) -> Any:
            learned = (owner[None] == jnp.arange(len(boxes))[:, None]).any(1)
            return {"learned": learned} | atss.losses(found, every, known, owner, boxes, classes)

        known = self.targets(outputs, batch)
        found = jax.vmap(one)(joined, *known, batch["boxes"], batch["box_classes"])
        there = batch["boxes_mask"] > 0
        found |= {"objects": there, "unlearned": there & ~found.pop("learned")}
        mask = batch["mask"]
        # By the mask every image counts, and padding doesn't.
        total = {k: jnp.tensordot(mask, v.astype(jnp.float32), 1).sum() for k, v in found.items()}
        count, central = (jnp.maximum(total[k], 1.0) for k in ("positive", "central"))
        parts = {
            "class": total["class"] / count,
            "box": total["box"] / central,
            "centre": total["centre"] / count,
        }
        logs = parts | {"positives": total["positive"]}
        logs |= {k: total[k] for k in ("objects", "unlearned")}
        return sum(parts.values()) * mask.sum(), mask.sum(), logs

    def rows(self, outputs: Outputs, batch: Batch) -> dict[str, Array]:
        """Room for what `judge` finds."""
        blank = (coco if self.metric == "coco" else voc).blank(self.best, len(self.classes))
        count = len(batch["mask"])
        return {k: jnp.broadcast_to(v[None], (count, *v.shape)) for k, v in blank.items()}

    def judge(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> dict[str, Any]:
        """How the answers meet the objects of one image, in its own pixels."""
        found, objects = self.restored(answer, example), example["stored"]["objects"]
        if self.metric == "voc":
            return voc.matched(found, objects, len(self.classes))
        return coco.matched(found, objects, example["size"], len(self.classes))

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Metrics of COCO or VOC in percent, `examples`, and `classes`: those of each one."""
        summary = (coco if self.metric == "coco" else voc).summary
        return {**summary(rows, self.classes), "examples": len(rows["scores"])}

    def answer(self, outputs: Outputs, batch: Batch) -> dict[str, Array]:
        """The objects `b k` in pixels of the canvas, best first: `boxes`, `b k 4`, `scores`, 0 for
        none, and `classes`, -1 for none."""
        sizes, levels = self._levels(outputs)
        how = dict(least=self.least, threshold=self.overlap, most=self.best)

        def one(found: Any, extent: Array) -> dict[str, Array]:
            known = atss.valid(sizes, outputs.strides, extent)
            return atss.detections(found, levels, known, extent, **how)

        return jax.vmap(one)(_flat(outputs), _extent(batch))

    def restored(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> dict[str, Any]:
        """The objects of one image in its pixels as stored, clipped to it."""
        frame, size = example["frame"], example["size"]
        return {**answer, "boxes": frames.unwarp(answer["boxes"], Field("boxes"), frame, size)}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File, how many objects are rather sure, and the best by class and score; results in
        COCO's format."""
        found = self.restored(answer, example)
        names = self._names(found, 0.0, digits=4)
        image = example.get("stored", {}).get("image_id", example["name"])
        sure = int((found["scores"] > SHOWN).sum())
        values = {"file": example["name"], "objects": sure, "best": "; ".join(names[:NAMED])}
        return values | {"results": coco.results(found, image, self.field.ids)}, {}

    def _names(self, found: dict[str, Any], least: float, digits: int) -> list[str]:
        """Class and score of each answer whose score is above the least."""
        pairs = zip(found["classes"], found["scores"], strict=True)
        return [f"{self.classes[n]} {score:.{digits}f}" for n, score in pairs if score > least]

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image with the true boxes, where they are known, and with those of the answer."""
        found = self.restored(answer, example)
        shown = self._names(found, SHOWN, digits=2)
        panels = {"answer": self._drawn(image, found["boxes"], found["classes"], shown)}
        if "boxes" in example:
            some = example["boxes_mask"] > 0
            boxes, classes = (example[k][some] for k in ("boxes", "box_classes"))
            boxes = self.restored({"boxes": boxes}, example)["boxes"]
            names = [self.classes[n] for n in classes]
            panels = {"truth": self._drawn(image, boxes, classes, names), **panels}
        return pictures.beside(panels)

    def _drawn(
        self, image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, names: list[str]
    ) -> np.ndarray:
        colours = pictures.palette(len(self.classes))[classes[: len(names)]]
        return pictures.with_boxes(image, boxes[: len(names)], names, colours)


def _flat(outputs: Outputs) -> list[tuple[Array, Array, Array]]:
    """Of each level logits `b hw c`, deltas `b hw 4` and logits of the centerness `b hw`."""
    maps = zip(outputs.classes, outputs.boxes, outputs.centerness, strict=True)
    flat = [[x.reshape(x.shape[0], -1, x.shape[-1]) for x in level] for level in maps]
    return [(classes, boxes, centred[..., 0]) for classes, boxes, centred in flat]


def _extent(batch: Batch) -> Array:
    """(h, w) that each picture fills of its canvas, `b 2`: all of it where nothing is said."""
    size = jnp.asarray(batch["image"].shape[1:3])
    return batch.get("extent", jnp.broadcast_to(size[None], (batch["image"].shape[0], 2)))
