"""Detection: losses, suppression, assignment and heads as in mmdetection; known by the `source`.

Maps lie as `b c h w` in the cases, and a head's weights as `o i h w`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt.targets import nms

# The function that runs a case, by what its `source` starts with.
RUNNERS = {
    "mmdet 3.3.0 mask_matrix_nms": "suppression",
}


def kind(meta):
    """The name of the function that runs a case, or ""."""
    return next((name for mark, name in RUNNERS.items() if meta["source"].startswith(mark)), "")


def knows(meta):
    """Whether a case is one of these."""
    return bool(kind(meta))


def run(folder, meta, check):
    """Compares all that a case expects."""
    inputs, expected = (dict(np.load(folder / f"{n}.npz")) for n in ("inputs", "expected"))
    found = globals()[kind(meta)](meta, {k: jnp.asarray(v) for k, v in inputs.items()})
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        allowed = meta["atol"] if isinstance(meta["atol"], float) else None
        check(name, found[name], wanted, allowed)


def suppression(meta, given):
    config, found = meta["config"], {}
    scores, labels = given["scores"], given["labels"]
    for kernel in nms.KERNELS:
        decayed = jax.jit(nms.matrix, static_argnames=("kernel", "sigma"))(
            given["masks"], scores, labels, kernel=kernel, sigma=config["sigma"]
        )
        order = np.argsort(-np.asarray(decayed), kind="stable")[: config["max_num"]]
        kept = order[np.asarray(decayed)[order] >= config["filter_thr"]]
        named = {"scores": decayed[kept], "labels": labels[kept], "keep": kept}
        found |= {f"{kernel}_{name}": value for name, value in named.items()}
    boxes, scores = given["boxes"], given["box_scores"]
    kept, kept_scores = jax.jit(nms.greedy, static_argnames=("threshold", "most"))(
        boxes, scores, given["box_labels"], threshold=config["box_iou_threshold"], most=len(boxes)
    )
    found["box_nms_keep"] = kept[kept_scores > 0]
    return found
