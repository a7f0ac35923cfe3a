"""Losses, gradients and metrics of several tasks at once, known by the outputs that a case has."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt.data import Info
from dynadapt.data.fields import Field
from dynadapt.tasks.several import KINDS, Task, delta_m

# Outputs, truths and expected names of the tasks, by our names.
CASES = {
    "semseg": ("semseg_logits", "semseg_gt", "semseg"),
    "human_parts": ("human_parts_logits", "human_parts_gt", "human_parts"),
    "saliency": ("sal_logits", "sal_gt", "sal"),
    "normals": ("normals_out", "normals_gt", "normals"),
    "depth": ("depth_out", "depth_gt", "depth"),
    "edges": ("edge_logits", "edge_gt", "edge"),
}
VOID = 255


def knows(meta):
    """Whether a case is one of these."""
    return {given for given, _, _ in CASES.values()} <= set(meta.get("inputs", ()))


def last(x):
    """`b c h w` as `b h w c`."""
    return np.moveaxis(x, 1, -1)


def read(folder):
    """The task, outputs and a batch."""
    inputs = dict(np.load(folder / "inputs.npz"))
    outputs = {name: (jnp.asarray(last(inputs[given])),) for name, (given, _, _) in CASES.items()}
    truths = {name: last(inputs[truth]) for name, (_, truth, _) in CASES.items()}
    fields, batch = {}, {"mask": jnp.ones(len(truths["depth"]))}
    for name, kind in KINDS.items():
        truth = truths[name]
        if name in ("normals", "depth"):  # nothing is known where all of it is void
            void = (truth == VOID).any(-1, keepdims=True)
            assert ((truth == VOID) == void).all()
            batch[kind.field] = jnp.asarray(np.where(void, 0, truth))
            fields[kind.field] = Field("vectors" if name == "normals" else "values")
            continue
        batch[kind.field] = jnp.asarray(truth, jnp.int32)
        count = max(outputs[name][0].shape[-1], 2)
        fields[kind.field] = Field("labels", fill=VOID, classes=tuple(map(str, range(count))))
    batch = {k: v[..., 0] if v.ndim == 4 and k != "normals" else v for k, v in batch.items()}
    return Task(Info("case", fields, {}, ""), tasks=tuple(CASES)), outputs, batch, inputs


def run(folder, meta, check):
    """Compares all that a case expects."""
    expected, atol = json.loads((folder / "expected.json").read_text()), meta["atol"]
    task, outputs, batch, inputs = read(folder)

    def total(outputs):
        loss, weight, logs = task.loss(outputs, batch)
        return loss / weight, logs

    slopes, logs = jax.jit(jax.grad(total, has_aux=True))(outputs)
    for name, (_, _, theirs) in CASES.items():
        check(f"loss {theirs}", logs[f"{name}/loss"], expected["losses"][theirs], atol)
        found, wanted = slopes[name][0] / KINDS[name].weight, last(inputs[f"grad_{theirs}"])
        # Slopes of means over pixels are smaller than what their case allows.
        check(f"grad_{theirs}", found, wanted, min(atol, 1e-4 * np.abs(wanted).max()))

    rows = jax.device_get(jax.jit(task.rows)(outputs, batch))
    values = task.value(rows)
    for name, wanted in figures(task, outputs, batch, values, expected):
        check(name, *wanted, atol)
    gain = expected["delta_m"]
    own, alone = ([v for t in gain[k].values() for v in t.values()] for k in
                  ("multi_task", "single_task"))  # fmt: skip
    better = ["lower" if "rmse" in t else "higher" for t in gain["single_task"].values()]
    check("delta_m", delta_m(own, alone, better) / 100, gain["value"], atol)


def figures(task, outputs, batch, values, expected):
    """Names, what is found, and what is wanted."""
    code, defined = expected["reference_code"], expected["definitions"]
    for name in ("semseg", "human_parts"):
        classes = [row.get("iou", 0) / 100 for row in values[f"{name}/classes"].values()]
        yield f"{name} by class", (classes, code[name]["jaccards_all_categs"])
        for wanted in (code[name], defined[name]):
            yield f"{name} mIoU", (values[f"{name}/miou"] / 100, wanted["mIoU"])
    for wanted in (code["sal"], defined["sal"]):
        yield "sal mIoU", (values["saliency/max_miou"] / 100, wanted["mIoU"])
        yield "sal maxF", (values["saliency/max_f"] / 100, wanted["maxF"])
    # It takes the sigmoid of what is one already.
    alone = task.each["saliency"]
    twice = (jax.nn.sigmoid(outputs["saliency"][0]),)
    found = alone.value(jax.device_get(alone.rows(twice, batch)))
    yield "sal Beta maxF", (found["max_f_beta"] / 100, code["sal"]["Beta maxF"])

    mean = values["normals/mean_deg"]
    for name in ("mean", "rmse", "mean_v2", "rmse_v2"):
        yield f"normals {name}", (mean, code["normals"][name])
    yield "normals mean", (mean, defined["normals"]["mean"])
    yield "normals rms", (values["normals/rmse_deg"], defined["normals"]["rms"])
    for limit in ("11.25", "22.5", "30"):
        found = values[f"normals/within_{limit}"]
        yield f"normals {limit}", (found, code["normals"][limit])
        yield f"normals within {limit}", (found / 100, defined["normals"][f"within_{limit}"])
    # The case's median is that of the pixels of all images: of one image as high as all.
    (vectors,), target = outputs["normals"], batch["normals"]
    one = [jnp.reshape(x, (1, -1, *x.shape[2:])) for x in (vectors, target)]
    alone = task.each["normals"]
    rows = jax.device_get(alone.rows((one[0],), {"normals": one[1]}))
    yield "normals median", (alone.value(rows)["median_deg"], defined["normals"]["median"])

    yield "depth rmse", (values["depth/pooled/rmse"], code["depth"]["rmse"])
    yield "depth log_rmse", (values["depth/pooled/rmse_log"], code["depth"]["log_rmse"])
