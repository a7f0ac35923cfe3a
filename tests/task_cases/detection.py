"""Detection: losses, suppression, assignment and heads as in mmdetection; known by the `source`.

Maps lie as `b c h w` in the cases, and a head's weights as `o i h w`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import files, tree
from dynadapt.backbones import Features
from dynadapt.context import Context
from dynadapt.heads.necks import neck
from dynadapt.targets import nms

# The function that runs a case, by what its `source` starts with.
RUNNERS = {
    "mmdet 3.3.0 mask_matrix_nms": "suppression",
    "mmdet 3.3.0 FPN": "pyramid",
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
    given = {k: jnp.asarray(v) for k, v in inputs.items()}
    more = [files.read_tensors(folder / meta["checkpoint"])] if "checkpoint" in meta else []
    found = globals()[kind(meta)](meta, given, *more)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        allowed = meta["atol"] if isinstance(meta["atol"], float) else None
        check(name, found[name], wanted, allowed)


def last(x):
    """Maps `b c h w` as `b h w c`."""
    return x.transpose(0, 2, 3, 1)


def first(x):
    """Maps `b h w c` as `b c h w`."""
    return np.asarray(x).transpose(0, 3, 1, 2)


def filled(network, tensors, path):
    """The network with published tensors, each at our `path` of its name."""
    state = nnx.state(network)
    leaves = tree.leaves(state)
    given = {path(k): v for k, v in tensors.items()}
    assert given.keys() == leaves.keys()
    for name, value in given.items():
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        given[name] = jnp.asarray(value.reshape(leaves[name].shape))
    nnx.update(network, tree.replace(state, given))
    return network


LEAVES = {"weight": "kernel", "bias": "bias"}


def pyramid(meta, given, tensors):
    config = meta["config"]
    maps = tuple(last(given[f"x{i}"]) for i in range(len(config["in_channels"])))
    strides = tuple(4 * 2**i for i in range(len(maps)))
    like = Features(maps, jnp.zeros((len(maps[0]), 0, 1)), strides=strides)
    name = "fpn" if "add_extra_convs" in config else "fpn_pool"
    made = neck(name, like, config["out_channels"], rngs=nnx.Rngs(0))
    count = len(made.lateral)
    assert made.strides[0] == 4 * 2 ** config.get("start_level", 0)
    assert len(made.strides) == config["num_outs"]

    def path(theirs):
        convs, number, _, leaf = theirs.split(".")
        number = int(number)
        if convs == "lateral_convs":
            return f"lateral/{number}/{LEAVES[leaf]}"
        ours = f"smooth/{number}" if number < count else f"down/{number - count}"
        return f"{ours}/{LEAVES[leaf]}"

    made = filled(made, tensors, path)
    assert tree.size(nnx.state(made)) == meta["total_parameters"]
    levels = jax.jit(lambda made, like: made(like, Context()))(made, like)
    return {f"p{i}": first(x) for i, x in enumerate(levels)}


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
