"""SOLO as in mmdetection: targets, losses, their slopes; known by the `source`.

Maps lie as `b c h w` in the cases, and a head's weights as `o i h w`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt.targets import solo

# The function that runs a case, by what its `source` says.
RUNNERS = {"mmdet 3.3.0 SOLOHead": "targets", "mmdet 3.3.0 SOLOHead targets and loss": "targets"}
MOST, POSITIVES = 8, 40  # objects of an image and positive cells of a level, at most
DICE = 3.0


def kind(meta):
    """The name of the function that runs a case, or ""."""
    return RUNNERS.get(meta["source"].partition(";")[0], "")


def knows(meta):
    """Whether a case is one of these."""
    return bool(kind(meta))


def run(folder, meta, check):
    """Compares all that a case expects."""
    inputs, expected = (dict(np.load(folder / f"{n}.npz")) for n in ("inputs", "expected"))
    found = globals()[kind(meta)](folder, meta, inputs)
    allowed = meta["atol"] if isinstance(meta["atol"], float) else None
    for name, wanted in expected.items():
        check(name, found[name], wanted, allowed)


def levels(inputs, name):
    """The inputs of each level, float32."""
    count = sum(key.startswith(name) for key in inputs)
    return [jnp.asarray(inputs[f"{name}{i}"], jnp.float32) for i in range(count)]


def targets(folder, meta, inputs):
    config = meta["config"]
    images = sum(key.startswith("gt_labels") for key in inputs)
    sizes = [tuple(size) for size in config["mask_map_sizes"]]
    strides = [s / 2 for s in config["strides"]]
    covered = tuple(int(n * strides[0]) for n in sizes[0])

    def padded(name):
        given = [inputs[f"{name}{i}"] for i in range(images)]
        rows = [np.pad(x, [(0, MOST - len(x)), *[(0, 0)] * (x.ndim - 1)]) for x in given]
        return np.stack(rows)

    there = np.stack([np.arange(MOST) < len(inputs[f"gt_labels{i}"]) for i in range(images)])
    given = padded("gt_masks") > 0, padded("gt_bboxes").astype(np.float32), there
    classes = jnp.asarray(padded("gt_labels"), jnp.int32)

    def wanted(masks, boxes, there, classes):
        objects = solo.objects(masks, boxes, there)
        found = []
        for size, stride, cells, scales in zip(
            sizes, strides, config["num_grids"], config["scale_ranges"], strict=True
        ):
            rows, columns, weights = solo.taps(size, masks.shape[1:], stride)
            small = solo.halves(masks[:, rows, columns], weights)
            how = dict(cells=cells, scales=scales, size=covered, most=POSITIVES)
            found.append(solo.targets(objects, classes, small, **how))
        return found

    def losses(logits, wanted):
        cls, masks = logits
        drawn = [
            jnp.take_along_axis(m, t.cells[:, :, None, None], 1)
            for m, t in zip(masks, wanted, strict=True)
        ]
        last = [x.transpose(0, 2, 3, 1) for x in cls]
        mask, cls = solo.losses(last, drawn, wanted, jnp.ones(images))
        return DICE * mask + cls, {"loss_mask": DICE * mask, "loss_cls": cls}

    @jax.jit
    def everything(logits):
        each = jax.vmap(wanted)(*given, classes)
        return each, *jax.grad(losses, has_aux=True)(logits, each)

    logits = levels(inputs, "cls_logits"), levels(inputs, "mask_logits")
    each, (cls, masks), found = jax.device_get(everything(logits))
    for n, level in enumerate(each):
        found[f"grad_cls{n}"] = cls[n]
        found[f"gradsum_mask{n}"] = np.abs(masks[n]).sum((2, 3))
        assert not level.left_out.any()
        for i in range(images):
            labels = level.classes[i]
            found[f"img{i}_labels{n}"] = np.where(labels < 0, config["num_classes"], labels)
            found[f"img{i}_pos{n}"] = labels.ravel() >= 0
            found[f"img{i}_mask_targets{n}"] = level.masks[i][level.some[i]]
    return found
