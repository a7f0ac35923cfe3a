"""Instance segmentation with SOLO: a class and a mask for each object, COCO's average precision."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import choices, pictures
from dynadapt.data import frames
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError
from dynadapt.heads.necks import neck
from dynadapt.heads.pyramid import has_strides
from dynadapt.heads.solo import EACH, SOLO, Cells, effective, mask_logits
from dynadapt.targets import coco, solo
from dynadapt.targets.instances import INSIDE, Found, instances

Array = jax.Array
Batch = dict[str, Array]

SHOWN = 0.3  # scores beyond which instances are drawn and counted
NAMED = 10  # instances that a line of the table has
MASKS = 3.0  # weight of the masks' loss
WIDEST = 256  # channels of the neck's levels, at most
# As published, of pictures of about 800 x 1333 pixels.
STRIDES, GRIDS = (4, 8, 16, 32, 64), (40, 36, 24, 16, 12)
RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))


class Task:
    """Instances of `info.fields["instances"]`: their masks, and the classes of their boxes.

    Args:
        info: description of the data set.
        neck: name of a neck, of `heads.necks`; "" is "vitdet", or "fpn_pool" of several strides.
        channels: of the head; the neck's levels have as many, or 256 if that is less.
        depth: convolutions of each of the head's two towers.
        strides: pixels between the entries of each of the neck's levels; the head halves the first
            level and brings the last one to the size of the one before.
        grids: cells on a side of each level's grid.
        ranges: least and greatest root of width times height, in pixels, of each level's objects.
        positives: cells of a level of an image that learn to draw, at most; `left_out` of the logs
            counts those that don't.
        candidates: classes of cells that an evaluation looks at, at most; `missed` of the metrics
            counts those that were good enough besides.
        best: instances that are answered, at most.
    """

    headline, better = "ap", "higher"
    needs = ("instances", "box_ids", "boxes", "box_classes")
    stored = ("objects", "image_id", "instances")
    results = "instances.json"
    # Masks and classes are divided by counts of their own, over the whole batch.
    whole_batch = True

    def __init__(
        self,
        info: Any,
        *,
        neck: str = "",
        channels: int = 256,
        depth: int = 7,
        strides: tuple[float, ...] = STRIDES,
        grids: tuple[int, ...] = GRIDS,
        ranges: tuple[tuple[float, float], ...] = RANGES,
        positives: int = 256,
        candidates: int = 500,
        best: int = 100,
    ):
        coco.required()
        self.field = info.fields["box_classes"] if "box_classes" in info.fields else Field("rows")
        self.classes = self.field.classes
        if not self.classes:
            raise ConfigError(f"instances need classes; data set {info.name!r} has none")
        for name, value, interval in (
            ("channels", channels, "[1, 16384]"),
            ("depth", depth, "[1, 64]"),
            *((n, v, "[1, 100000]") for n, v in (("positives", positives), ("best", best))),
            ("candidates", candidates, "[1, 100000]"),
            *(("each of grids", g, "[1, 1000]") for g in grids),
        ):
            if not isinstance(value, int) or not choices.inside(value, interval):
                raise ConfigError(
                    f"{name} must be a whole number, {choices.words(interval)}, not {value!r}"
                )
        for stride in strides:
            if not choices.inside(stride, "(0, inf)"):
                raise ConfigError(f"each of strides must be above 0, not {stride}")
        if not len(strides) == len(grids) == len(ranges) > 0:
            raise ConfigError(
                f"strides, grids and ranges must have an entry a level each, and have "
                f"{len(strides)}, {len(grids)} and {len(ranges)}"
            )
        for pair in ranges:
            both = isinstance(pair, tuple | list) and len(pair) == 2
            if (
                not both
                or not all(choices.inside(x, "[0, inf)") for x in pair)
                or pair[0] > pair[1]
            ):
                raise ConfigError(f"ranges must be pairs of pixels such as (1, 96), not {pair!r}")
        self.neck, self.channels, self.depth = neck, channels, depth
        self.strides, self.grids, self.ranges = strides, grids, ranges
        self.positives, self.best, self.candidates = positives, best, candidates

    def head(self, like: Any, *, rngs: nnx.Rngs) -> SOLO:
        """The head for features like these; ConfigError where the neck can't have such strides."""
        name = self.neck or ("fpn_pool" if has_strides(like) else "vitdet")
        levels = neck(name, like, min(self.channels, WIDEST), self.strides, rngs=rngs)
        given = dict(grids=self.grids, channels=self.channels, depth=self.depth)
        return SOLO(levels, len(self.classes), **given, rngs=rngs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """The batch as it is."""
        return batch

    def _targets(self, outputs: Cells, batch: Batch) -> list[solo.Targets]:
        """The targets of each level, `b …`."""
        sizes = [tuple(2 * n for n in x.shape[1:3]) for x in outputs.features]

        def one(numbers: Array, ids: Array, boxes: Array, classes: Array, there: Array) -> Any:
            own = numbers[None] == ids[:, None, None]
            objects, found = solo.objects(own, boxes, there), []
            whole = numbers.shape
            for cells, scales, size in zip(self.grids, self.ranges, sizes, strict=True):
                rows, columns, weights = solo.taps(size, whole)
                near = numbers[rows, columns][None] == ids[:, None, None, None]
                how = dict(cells=cells, scales=scales, size=whole)
                how["most"] = min(self.positives, cells**2, solo.PER_OBJECT * len(ids))
                small = solo.halves(near, weights)
                found.append(solo.targets(objects, classes, small, **how))
            return found

        names = ("instances", "box_ids", "boxes", "box_classes", "boxes_mask")
        return jax.vmap(one)(*(batch[name] for name in names))

    def loss(self, outputs: Cells, batch: Batch) -> tuple[Array, Array, dict]:
        """Dice of masks and focal loss of classes for each image, and how many images there are.

        Logs have both, the cells that have an object, and those of them that did not learn to draw.
        """
        wanted, mask = self._targets(outputs, batch), batch["mask"]
        levels = zip(outputs.features, outputs.kernels, outputs.biases, wanted, strict=True)
        draw = jax.vmap(mask_logits, (0, None, None, 0))
        drawn = [draw(x, kernel, bias, level.cells) for x, kernel, bias, level in levels]
        masks, classes = solo.losses(outputs.classes, drawn, wanted, mask)
        there = (mask > 0).astype(jnp.float32)
        some = [(level.classes >= 0).sum((1, 2)) for level in wanted]
        logs = {
            "masks": masks,
            "classes": classes,
            "positives": (sum(some) * there).sum(),
            "left_out": (sum(level.left_out for level in wanted) * there).sum(),
        }
        return (MASKS * masks + classes) * there.sum(), there.sum(), logs

    def _instances(self, outputs: Cells) -> Found:
        how = dict(candidates=self.candidates, most=self.best)
        strides = effective(self.strides)
        return jax.vmap(lambda one: instances(one, strides, **how), (EACH,))(outputs)

    def rows(self, outputs: Cells, batch: Batch) -> dict[str, Array]:
        """Room for what `judge` finds, and how many good classes of cells were not looked at."""
        found = self._instances(outputs)
        count, most = found.scores.shape
        blank = coco.blank(most, len(self.classes))
        room = {k: jnp.broadcast_to(v[None], (count, *v.shape)) for k, v in blank.items()}
        return room | {"missed": found.missed}

    def judge(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> dict[str, Any]:
        """How the answers meet the objects of one image, in its own pixels."""
        stored, size = example["stored"], example["size"]
        found, numbers = self.restored(answer, example), stored["instances"]
        return coco.matched(
            found, stored["objects"], size, len(self.classes), "segm", instances=numbers
        )

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """COCO's metrics of masks in percent, `missed`, `examples`, and those of each class."""
        missed = rows["missed"]
        found = coco.summary({k: v for k, v in rows.items() if k != "missed"}, self.classes)
        return found | {"missed": int(missed.sum(dtype=np.int64)), "examples": len(missed)}

    def answer(self, outputs: Cells, batch: Batch) -> dict[str, Array]:
        """The instances `b k`, best first: masks, probabilities `b k h w` of the first level's
        resolution in float16; scores, 0 for none; classes, -1 for none."""
        found = self._instances(outputs)
        masks = found.masks.astype(jnp.float16)
        return {"masks": masks, "scores": found.scores, "classes": found.classes}

    def restored(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> dict[str, Any]:
        """The instances of one image in its pixels as stored: `masks` as RLEs, `boxes` `n 4` around
        them, and `scores` and `classes` `k`, of which the first n are some."""
        frame, size = example["frame"], example["size"]
        masks, boxes = [], np.zeros((int((answer["classes"] >= 0).sum()), 4), np.float32)
        for number in range(len(boxes)):
            mask = answer["masks"][number].astype(np.float32)
            whole, boxes[number] = _whole(mask, frame, size)
            masks.append(coco.encoded(whole))
        return {**answer, "masks": masks, "boxes": boxes}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File, how many instances are rather sure, and the best by class and score; results in
        COCO's format."""
        found = self.restored(answer, example)
        named = [
            f"{self.classes[kind]} {score:.4f}"
            for kind, score in zip(found["classes"], found["scores"], strict=True)
            if kind >= 0
        ]
        image = example.get("stored", {}).get("image_id", example["name"])
        results = coco.results(found, image, self.field.ids)
        sure = int((found["scores"] > SHOWN).sum())
        values = {"file": example["name"], "objects": sure, "best": "; ".join(named[:NAMED])}
        return values | {"results": results}, {}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image, the truth where it is known, and the answers that are rather sure."""
        frame, size = example["frame"], example["size"]
        panels = {}
        if "instances" in example:
            some = example["boxes_mask"] > 0
            boxes, numbers = (example[k][some] for k in ("boxes", "box_ids"))
            there = frames.unwarp(example["instances"], Field("masks"), frame, size)
            boxes = frames.unwarp(boxes, Field("boxes"), frame, size)
            masks = [there == number for number in numbers]
            panels["truth"] = self._drawn(image, masks, boxes, example["box_classes"][some])
        scores = answer["scores"][answer["scores"] > SHOWN]
        shown = answer["masks"][: len(scores)]
        found = [_whole(mask.astype(np.float32), frame, size) for mask in shown]
        masks, boxes = zip(*found, strict=True) if found else ((), ())
        kinds = answer["classes"][: len(scores)]
        panels["answer"] = self._drawn(image, masks, np.array(boxes), kinds, scores)
        return pictures.beside(panels)

    def _drawn(
        self,
        image: np.ndarray,
        masks: Sequence[np.ndarray],
        boxes: np.ndarray,
        kinds: np.ndarray,
        scores: Sequence[float] = (),
    ) -> np.ndarray:
        """The image with instances, named by class and, where there are any, score."""
        names = [self.classes[kind] for kind in kinds]
        named = [f"{n} {s:.2f}" for n, s in zip(names, scores, strict=False)] or names
        colours = pictures.palette(len(self.classes))[kinds]
        masked = pictures.with_masks(image, masks, colours)
        return pictures.with_boxes(masked, boxes, named, colours)


def _whole(
    mask: np.ndarray, frame: frames.Frame, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A mask in the pixels of an image as stored.

    Args:
        mask: probabilities `h w` over the output of the frame.
        frame: from the stored image.
        size: (H, W) of the stored image.

    Returns:
        `H W` bool, and the box around it, 4.
    """
    whole, box = np.zeros(size, bool), np.zeros(4, np.float32)
    ys, xs = np.nonzero(mask > INSIDE)
    if not len(ys):
        return whole, box
    small = frames.compose(frame, frames.window(0, 0, *frame.size, mask.shape))
    # Between pixels it is no more than the larger one: all that it can cover is next to these.
    edges = [(x, y, 1) for x in (xs.min() - 1, xs.max() + 2) for y in (ys.min() - 1, ys.max() + 2)]
    corners = np.array(edges) @ small.matrix.T
    left, top = np.floor(corners.min(0)).astype(int).clip(0, size[::-1])
    right, bottom = np.ceil(corners.max(0)).astype(int).clip(0, size[::-1])
    part = frames.Frame(
        small.matrix - np.array([[0, 0, left], [0, 0, top]]), small.size, small.method
    )
    given = int(bottom - top), int(right - left)
    inside = frames.unwarp(mask, Field("values"), part, given, smooth=True) > INSIDE
    whole[top:bottom, left:right] = inside
    ys, xs = np.nonzero(inside)
    if len(ys):
        box[:] = left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1
    return whole, box
