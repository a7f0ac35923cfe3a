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
from dynadapt.heads.atss import ATSS
from dynadapt.heads.necks import neck
from dynadapt.targets import atss, boxes, nms

# The function that runs a case, by what its `source` starts with.
RUNNERS = {
    "mmdet 3.3.0 mask_matrix_nms": "suppression",
    "mmdet 3.3.0 FPN": "pyramid",
    "mmdet 3.3.0 ATSSHead.forward": "network",
    "mmdet 3.3.0 ATSSHead": "assignment",
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


def objects(given, images):
    """Boxes `b g 4`, classes `b g` and which are there, padded to one number of rows."""
    found = [(given[f"gt_bboxes{i}"], given[f"gt_labels{i}"]) for i in range(images)]
    most = max(len(labels) for _, labels in found)
    padded = [
        (jnp.pad(box, ((0, most - len(box)), (0, 0))), jnp.pad(label, (0, most - len(label))))
        for box, label in found
    ]
    there = jnp.stack([jnp.arange(most) < len(labels) for _, labels in found])
    return *(jnp.stack(x) for x in zip(*padded, strict=True)), there


def flat(maps):
    """Outputs `b a n` of a level's maps `b n h w`."""
    return last(maps).reshape(len(maps), -1, maps.shape[1])


def assignment(meta, given):
    """Targets, losses by level, slopes, and, where a case has them, answers."""
    config = meta["config"]
    strides, classes = config["strides"], config["num_classes"]
    names = [f"{kind}{i}" for i in range(len(strides)) for kind in ("cls", "box", "ctr")]
    sizes = [given[f"cls{i}"].shape[2:] for i in range(len(strides))]
    levels = boxes.anchors(sizes, strides, config.get("octave_base_scale", 8))
    anchors, images = jnp.concatenate(levels), len(given["cls0"])
    canvas = config.get("image", given.get("pad_shapes"))
    extent = jnp.broadcast_to(jnp.asarray(canvas), (images, 2))
    known = jax.vmap(lambda size: atss.valid(sizes, strides, size))(extent)
    objects_of = objects(given, images)

    @jax.jit
    def targets(known, box, labels, there):
        owner = jax.vmap(lambda *x: atss.assign(levels, *x))(known, box, there)
        own = jnp.maximum(owner, 0)
        wanted = jnp.take_along_axis(box, own[..., None], 1)
        return owner, jnp.take_along_axis(labels, own, 1), wanted

    owner, label, wanted = targets(known, *objects_of)
    learns = (owner >= 0)[..., None]
    edges = np.cumsum([len(level) for level in levels])[:-1]

    def by_level(maps):
        return [tuple(flat(maps[f"{k}{i}"]) for k in ("cls", "box", "ctr")) for i in range(5)]

    @jax.jit
    @jax.value_and_grad
    def total(maps):
        return sum(x.sum() for x in terms(maps).values())

    def terms(maps):
        cls, box, ctr = (jnp.concatenate(x, 1) for x in zip(*by_level(maps), strict=True))
        box_of, labels, _ = objects_of
        found = jax.vmap(lambda o, *x: atss.losses(o, anchors, *x))(
            (cls, box, ctr[..., 0]), known, owner, box_of, labels
        )
        count, central = found["positive"].sum(), jnp.maximum(found["central"].sum(), 1)
        parts = {"class": count, "box": central, "centre": count}
        each = {k: (found[k] / n).sum(0) for k, n in parts.items()}
        return {k: jnp.stack([p.sum() for p in jnp.split(v, edges)]) for k, v in each.items()}

    maps = {name: given[name] for name in names}
    loss, slopes = total(maps)
    parts = jax.jit(terms)(maps)
    found = {
        "labels": jnp.where(learns[..., 0], label, classes),
        "bbox_targets": jnp.where(learns, wanted, 0.0),
        "avg_factor": jnp.maximum(learns.sum(1), 1).sum(),
        "loss_cls": parts["class"],
        "loss_bbox": parts["box"],
        "loss_centerness": parts["centre"],
        "loss_total": loss,
        **{f"grad_{name}": slope for name, slope in slopes.items()},
    }
    if "test" not in config:
        return found | {"valid": known, "label_weights": known}
    found |= {"anchors": anchors, "assigned_gt": owner + 1}
    found["bbox_weights"] = jnp.broadcast_to(learns, found["bbox_targets"].shape)
    test = config["test"]
    assert test["nms_pre"] == atss.CANDIDATES

    def answers(outputs, known, size):
        outputs = [(cls, box, ctr[:, 0]) for cls, box, ctr in outputs]
        settings = dict(least=test["score_thr"], threshold=test["iou_threshold"])
        return atss.detections(outputs, levels, known, size, **settings, most=test["max_per_img"])

    given = jax.jit(jax.vmap(answers))(by_level(maps), known, extent)
    theirs = {"boxes": "bboxes", "scores": "scores", "classes": "labels"}
    for i in range(images):
        found |= {f"pred{i}_{theirs[k]}": v[i] for k, v in given.items()}
    return found


PARTS = {
    "cls_convs": "of_class",
    "reg_convs": "of_box",
    "atss_cls": "classes",
    "atss_reg": "boxes",
    "atss_centerness": "centerness",
}


def network(meta, given, tensors):
    config = meta["config"]
    strides = [8 * 2**i for i in range(len(given))]
    scales = np.concatenate([tensors.pop(f"scales.{i}.scale") for i in range(len(strides))])

    def path(theirs):
        if theirs == "scale":
            return theirs
        part, *middle, leaf = theirs.split(".")
        if not middle:
            return f"{PARTS[part]}/{LEAVES[leaf]}"
        leaf = "kernel" if middle[1] == "conv" else {"weight": "scale", "bias": "bias"}[leaf]
        return f"{PARTS[part]}/{middle[0]}/{middle[1].replace('gn', 'norm')}/{leaf}"

    settings = dict(channels=config["feat_channels"], depth=config["stacked_convs"])
    head = ATSS(config["in_channels"], config["num_classes"], strides, **settings, rngs=nnx.Rngs(0))
    head = filled(head, tensors | {"scale": scales}, path)
    assert tree.size(nnx.state(head)) == meta["total_parameters"]
    levels = [last(given[f"x{i}"]) for i in range(len(strides))]
    found = jax.jit(lambda head, levels: head(levels, Context()))(head, levels)
    parts = {"cls": found.classes, "box": found.boxes, "ctr": found.centerness}
    return {f"{k}{i}": first(x) for k, maps in parts.items() for i, x in enumerate(maps)}
