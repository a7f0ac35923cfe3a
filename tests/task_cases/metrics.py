"""Metrics, losses and windows of segmentation and depth; cases are known by what they hold."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt import files
from dynadapt.data import Info
from dynadapt.data.fields import Field
from dynadapt.targets.areas import areas, by_class
from dynadapt.targets.depths import errors, sums
from dynadapt.tasks import depth, segmentation

MARKS = {"num_classes": "label_maps", "min_depth": "depth_maps"}
CONFIG_MARKS = {"lambda_": "silog", "crop_size": "windows", "crop": "eigen_crop"}


def kind(meta):
    """The name of the function that runs a case, or ""."""
    found = [name for mark, name in MARKS.items() if mark in meta]
    config = meta.get("config", {})
    found += [name for mark, name in CONFIG_MARKS.items() if mark in config]
    return found[0] if found else ""


def knows(meta):
    """Whether a case is one of these."""
    return bool(kind(meta))


def run(folder, meta, check):
    """Compares all that a case expects."""
    globals()[kind(meta)](folder, meta, check)


def read(folder, name):
    path = folder / name
    return json.loads(path.read_text()) if name.endswith("json") else dict(np.load(path))


def label_maps(folder, meta, check):
    inputs, expected = read(folder, "inputs.npz"), read(folder, "expected.json")
    pred, gt = (inputs[k].astype(np.int32) for k in ("pred", "gt"))
    gt = np.where(gt == meta["ignore_index"], -1, gt)
    rows = jax.device_get(areas(jnp.asarray(pred), jnp.asarray(gt), meta["num_classes"]))
    found = by_class(rows)
    known = rows["labelled"].sum()
    ours = {
        "mIoU": np.nanmean(found["iou"]),
        "mAcc": np.nanmean(found["acc"]),
        "aAcc": rows["intersection"].sum() / known,
    }
    for name, value in ours.items():
        check(name, np.array(value), expected[name], meta["atol"])
    for name, values in (("IoU", found["iou"]), ("Acc", found["acc"])):
        wanted = np.array([np.nan if v is None else v for v in expected[name]])
        assert np.array_equal(np.isnan(values), np.isnan(wanted))
        check(name, np.nan_to_num(values), np.nan_to_num(wanted), meta["atol"])


def both_ways(rows, images, pooled, check, atol):
    """Errors as means over images, and over all pixels, against expected ones by name."""
    rows = jax.tree.map(lambda x: np.asarray(x, np.float64), rows)
    means = {k: v.mean() for k, v in errors(rows).items()}
    whole = errors({k: v.sum() for k, v in rows.items()})
    for found, wanted in ((means, images), (whole, pooled)):
        for name, value in wanted.items():
            check(name, np.array(found[name]), value, atol)


def depth_maps(folder, meta, check):
    inputs, expected = read(folder, "inputs.npz"), read(folder, "expected.json")
    pred, gt = (jnp.asarray(inputs[k], jnp.float32) for k in ("pred", "gt"))
    rows = jax.jit(sums)(pred, gt, (gt > meta["min_depth"]) & (gt < meta["max_depth"]))
    given = expected["mean_over_images"], expected["pooled_over_pixels"]
    both_ways(rows, *given, check, meta["atol"])


def task_of(**settings):
    fields = {"image": Field("pixels"), "depth": Field("values")}
    return depth.Task(Info("case", fields, {}, ""), head="fused", **settings)


def eigen_crop(folder, meta, check):
    inputs, expected = read(folder, "inputs.npz"), read(folder, "expected.json")
    config = meta["config"]
    # Divided by numpy: XLA multiplies by the inverse, which is off in the last bit.
    metres = {k: jnp.asarray(np.float32(v) / np.float32(1000)) for k, v in inputs.items()}
    task = task_of(crop="eigen", most=config["max_depth"], least=config["min_depth"])
    # Whatever the head gives, this is the depth.
    task.metres = lambda outputs: sum(outputs) / len(outputs)
    plain, mirrored = metres["pred_mm"], metres["pred_flipped_mm"][:, :, ::-1]
    for name, outputs in (("plain", (plain,)), ("flip", (plain, mirrored))):
        rows = jax.jit(task.rows)(outputs, {"depth": metres["gt_mm"]})
        assert np.asarray(rows["pixels"]).tolist() == expected[name]["pixels"]
        given = expected[name]["mean_of_images"], expected[name]["pooled"]
        both_ways(rows, *given, check, meta["atol"])


def silog(folder, meta, check):
    inputs, expected = read(folder, "inputs.npz"), read(folder, "expected.npz")
    config, target = meta["config"], jnp.asarray(inputs["target"])
    batch = {"depth": target, "mask": jnp.ones(len(target))}
    for name, loss in (("pooled", "silog"), ("per_image", "silog_image")):
        task = task_of(loss=loss, most=config["max_depth"], variance=config["lambda_"])

        def mean(logits, task=task):
            total, weight, _ = task.loss((logits[..., None],), batch)
            return total / weight

        value, slope = jax.jit(jax.value_and_grad(mean))(jnp.asarray(inputs["logits"]))
        check(name, value, expected[name])
        check(f"grad_{name}", slope, expected[f"grad_{name}"])


def windows(folder, meta, check):
    inputs, expected = read(folder, "inputs.npz"), read(folder, "expected.npz")
    tensors = files.read_tensors(folder / meta["checkpoint"])
    layers = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in (0, 2)]

    def network(x):
        for number, (kernel, bias) in enumerate(layers):
            x = jax.nn.relu(x) if number else x
            form = ("NHWC", "OIHW", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=form)
            x = x + bias[None, None, None]
        return x

    x = jnp.asarray(inputs["x"]).transpose(0, 2, 3, 1)
    size, stride = (tuple(meta["config"][k]) for k in ("crop_size", "stride"))
    found = {
        "logits": jax.jit(lambda x: segmentation.slide(network, x, size, stride))(x),
        "whole": network(x),
    }
    for name, value in found.items():
        check(name, value.transpose(0, 3, 1, 2), expected[name])
