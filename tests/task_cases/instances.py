"""SOLO as in mmdetection: targets, losses, their slopes, the head and its answers; known by the
`source`. Maps lie as `b c h w` in the cases, and a head's weights as `o i h w`.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import files, tree
from dynadapt.context import Context
from dynadapt.heads.solo import EACH, SOLO, effective, mask_logits
from dynadapt.layers import SameKey
from dynadapt.layers.resample import resize
from dynadapt.targets import instances, solo

# The function that runs a case, by what its `source` says.
RUNNERS = {
    "mmdet 3.3.0 SOLOHead": "targets",
    "mmdet 3.3.0 SOLOHead targets and loss": "targets",
    "mmdet 3.3.0 SOLOHead forward (both modes) and predict_by_feat": "network",
}
MOST, POSITIVES = 8, 40  # objects of an image and positive cells of a level, at most
DICE = 3.0
PIXELS, AREAS = 1e-3, 1e-3  # parts of a mask that may differ
SIZES = ((90, 62), (135, 93)), ((96, 64), (96, 64))  # of the case's images, as seen and as stored
LAYERS = (
    (r"mask_convs\.(\d+)", "mask_tower/{}"),
    (r"cls_convs\.(\d+)", "class_tower/{}"),
    (r"conv_mask_list\.(\d+)", "masks/{}"),
    (r"conv_cls", "out"),
)
LEAVES = {
    **{"conv.weight": "conv/kernel", "gn.weight": "norm/scale", "gn.bias": "norm/bias"},
    **{"weight": "kernel", "bias": "bias"},
}


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
        if name.startswith("pred") and name.endswith("masks"):
            width = found[name].shape[-1]
            wanted = np.unpackbits(wanted, axis=-1)[..., :width]
            differ = (found[name] != wanted).mean((1, 2))
            check(name, differ, 0 * differ, PIXELS)
        elif name.endswith("area"):
            check(name, found[name] / wanted, np.ones(len(wanted)), AREAS)
        else:
            check(name, found[name], wanted, allowed)


def levels(inputs, name):
    """The inputs of each level, float32."""
    count = sum(key.startswith(name) for key in inputs)
    return [jnp.asarray(inputs[f"{name}{i}"], jnp.float32) for i in range(count)]


def targets(folder, meta, inputs):
    config = meta["config"]
    images = sum(key.startswith("gt_labels") for key in inputs)
    sizes = [tuple(size) for size in config["mask_map_sizes"]]

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
        for size, cells, scales in zip(
            sizes, config["num_grids"], config["scale_ranges"], strict=True
        ):
            rows, columns, weights = solo.taps(size, masks.shape[1:])
            small = solo.halves(masks[:, rows, columns], weights)
            how = dict(cells=cells, scales=scales, size=masks.shape[1:], most=POSITIVES)
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


class Given(nnx.Module):
    """A neck that hands on the maps."""

    def __init__(self, dim):
        self.dims = (dim,)

    def __call__(self, features, ctx):
        return features


def path(name):
    """Our path of a tensor."""
    for pattern, ours in LAYERS:
        if found := re.fullmatch(rf"{pattern}\.(.+)", name):
            *number, leaf = found.groups()
            return f"{ours.format(*number)}/{LEAVES[leaf]}"
    raise KeyError(name)


def made(folder, config):
    """Our head with the case's weights."""
    head = nnx.eval_shape(
        lambda: SOLO(
            Given(config["in_channels"]),
            config["num_classes"],
            grids=tuple(config["num_grids"]),
            channels=config["feat_channels"],
            depth=config["stacked_convs"],
            rngs=SameKey(),
        )
    )
    graph, state = nnx.split(head)
    leaves = tree.leaves(state)
    given = {}
    for name, value in files.read_tensors(folder / "checkpoint.safetensors").items():
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        given[path(name)] = jnp.asarray(value.reshape(leaves[path(name)].shape))
    assert given.keys() == leaves.keys()
    return nnx.merge(graph, tree.replace(state, given))


def network(folder, meta, inputs):
    config = meta["config"]
    head, strides = made(folder, config), tuple(config["strides"])
    assert effective((4, 8, 16, 32, 64)) == strides
    settings = config["test_cfg"]
    how = dict(candidates=settings["nms_pre"], most=settings["max_per_img"])

    @jax.jit
    def everything(maps):
        cells, found = head(maps, Context()), {}
        for n, (logits, grid) in enumerate(zip(cells.classes, head.grids, strict=True)):
            every = jnp.arange(grid**2)
            given = cells.features[n], cells.kernels[n], cells.biases[n]
            found[f"mask_logits{n}"] = jax.vmap(mask_logits, (0, None, None, None))(*given, every)
            found[f"cls_logits{n}"] = logits.transpose(0, 3, 1, 2)
            scores = jax.vmap(instances.peaks)(jax.nn.sigmoid(logits))
            found[f"test_scores{n}"] = scores.transpose(0, 3, 1, 2)
            found[f"test_masks{n}"] = jax.vmap(
                lambda one, n=n, every=every: instances.drawn(one, n, every), (EACH,)
            )(cells)
        return found, jax.vmap(lambda one: instances.instances(one, strides, **how), (EACH,))(cells)

    found, answer = everything(tuple(x.transpose(0, 2, 3, 1) for x in levels(inputs, "x")))
    assert not answer.missed.any()
    for i, (seen, stored) in enumerate(SIZES):
        found |= {f"pred{i}_scores": answer.scores[i], f"pred{i}_labels": answer.classes[i]}
        whole = resize(answer.masks[i][..., None], (96, 64))[:, : seen[0], : seen[1]]
        masks = np.asarray(resize(whole, stored)[..., 0] > instances.INSIDE)
        found |= {f"pred{i}_masks": masks, f"pred{i}_area": masks.sum((1, 2))}
    return found
