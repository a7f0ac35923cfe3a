"""The losses that detectors are trained by, from their equations; those that the package has come
from it, and the others are here, where their case is all that needs them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynadapt.targets.boxes import area, centres, giou, iou
from dynadapt.targets.focal import ALPHA, GAMMA, focal
from dynadapt.targets.solo import dice

TINY = 1e-6


def knows(meta):
    """Whether a case is one of these."""
    return meta["source"] == "mmdet 3.3.0 losses"


def distance(one, other):
    """Squared distance of the centres over the squared diagonal of the box around both."""
    corner = jnp.minimum(one[:, :2], other[:, :2])
    sides = jnp.maximum(one[:, 2:], other[:, 2:]) - corner
    apart = jnp.square(centres(one) - centres(other)).sum(-1)
    return apart / (jnp.square(sides).sum(-1) + TINY)


def diou(one, other):
    return 1 - iou(one, other) + distance(one, other)


def ciou(one, other):
    """Also by the proportions, where boxes share at least a half."""
    angles = [jnp.arctan2(b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]) for b in (one, other)]
    shape = jnp.square(angles[1] - angles[0]) * 4 / np.pi**2
    shared = iou(one, other)
    share = jnp.where(shared > 0.5, shape / (1 - shared + shape), 0.0)
    return diou(one, other) + jax.lax.stop_gradient(share) * shape


def iou_log(one, other):
    return -jnp.log(jnp.maximum(iou(one, other), TINY))


def quality_focal(logits, labels, quality):
    """The wanted score of the own class is the box's quality."""
    wanted = jax.nn.one_hot(labels, logits.shape[-1]) * quality[:, None]
    cross = optax.losses.sigmoid_binary_cross_entropy(logits, wanted)
    return (cross * jnp.square(wanted - jax.nn.sigmoid(logits))).sum(-1)


def distribution_focal(logits, target):
    """Both neighbours of the target, by how near they are."""
    left = target.astype(int)
    logs, right = jax.nn.log_softmax(logits), target - left
    at = [jnp.take_along_axis(logs, (left + n)[:, None], 1)[:, 0] for n in (0, 1)]
    return -at[0] * (1 - right) - at[1] * right


def dice_naive(logits, masks):
    p = jax.nn.sigmoid(logits)
    both, own, theirs = (a.sum((1, 2)) for a in (p * masks, p, masks))
    return 1 - (2 * both + 1) / (own + theirs + 1)


def smooth_l1(found, wanted, beta):
    return optax.losses.huber_loss(found, wanted, delta=beta) / beta


def run(folder, meta, check):
    """Compares values and slopes of all losses."""
    inputs, expected = (dict(np.load(folder / f"{n}.npz")) for n in ("inputs", "expected"))
    given, config = {k: jnp.asarray(v) for k, v in inputs.items()}, meta["config"]
    own, other, weights = (given[k] for k in ("pred_boxes", "target_boxes", "weights"))
    assert (area(own) > 0).all() and config["focal"] == {"gamma": GAMMA, "alpha": ALPHA}
    logits, labels, masks = (given[k] for k in ("logits", "labels", "mask_targets"))
    beta = config["smooth_l1_beta"]
    functions = {
        "focal_none": (lambda x: focal(x, labels), logits),
        "quality_focal_none": (lambda x: quality_focal(x, labels, given["quality"]), logits),
        "distribution_focal_none": (
            lambda x: distribution_focal(x, given["dist_targets"]),
            given["dist_logits"],
        ),
        "dice_none": (lambda x: dice(x, masks), given["mask_logits"]),
        "dice_naive_eps1_none": (lambda x: dice_naive(x, masks), given["mask_logits"]),
        "smooth_l1_none": (lambda x: smooth_l1(x, other, beta), own),
        "focal_sum_over_avg_factor": (
            lambda x: focal(x, labels).sum() / config["avg_factor_focal"],
            logits,
        ),
    }
    boxes = dict(giou=lambda a, b: 1 - giou(a, b), ciou=ciou, diou=diou, iou_log=iou_log)
    for name, loss in boxes.items():
        functions[f"{name}_none"] = (lambda x, f=loss: f(x, other), own)
        functions[f"{name}_weighted_mean"] = (
            lambda x, f=loss: (weights * f(x, other)).sum() / config["avg_factor_boxes"],
            own,
        )

    def both(function, x):
        def total(x):
            value = function(x)
            return value.sum(), value

        slope, value = jax.grad(total, has_aux=True)(x)
        return value, slope

    found = jax.jit(lambda xs: {n: both(f, xs[n]) for n, (f, _) in functions.items()})(
        {name: x for name, (_, x) in functions.items()}
    )
    found = {n: v for n, (v, _) in found.items()} | {f"grad_{n}": s for n, (_, s) in found.items()}
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        check(name, found[name], wanted, meta["atol"])
