"""Grad-CAM (Selvaraju et al., arXiv 1610.02391): which patches speak for the predicted class.

    map = relu(sum_d mean_hw(dy / dA_hwd) A_hwd)     A: `h w d`, y: the class's logit

A is the map of patch tokens that enters the last block: behind it, a head that reads the class
token no longer depends on them. Of several tasks (TADFormer's figure 1) each has a map, of a y
summed over all pixels: the predicted class's logit, as Seg-Grad-CAM has it (Vinogradova et al.,
arXiv 2002.11434), the output where there is one, and the length of a vector.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt.context import Context, join_map, split_map
from dynadapt.figures import canvas
from dynadapt.figures.trained import TrainedRun
from dynadapt.heads.linear import POOLED

Array = jax.Array
EXAMPLES = 6
COLUMNS = 6
MAP = "gradcam/map"


class Tap(nnx.Module):
    """A block whose patch tokens, before it, are recorded after `added` `b h w d` joined them.

    Of a tree that goes from block to block, such as prompts and tokens, tokens are the last leaf.
    """

    def __init__(self, block: nnx.Module, added: Array | None):
        self.block, self.added = block, nnx.data(added)

    def __call__(self, x: Any, ctx: Context) -> Any:
        *others, tokens = jax.tree.leaves(x)
        leading, m = split_map(tokens, ctx)
        m = m if self.added is None else m + self.added.astype(m.dtype)
        ctx.record(MAP, m)
        given = jax.tree.unflatten(jax.tree.structure(x), [*others, join_map(leading, m)])
        return self.block(given, ctx)


def unfit(run: TrainedRun) -> str:
    """Why it can't be drawn of a run; "" where it can."""
    if "image" not in run.product.adapter.spec:
        return "its map is drawn over images, and the run is of point clouds"
    if hasattr(run.task, "tasks") or hasattr(run.task, "classes") and POOLED in run.tape:
        return ""
    return (
        f"the task {run.config.task.name} predicts no class of an image; classification does, and "
        "several has maps by task"
    )


def maps(run: TrainedRun, examples: int) -> dict[str, np.ndarray]:
    """Of each example its `map` `h w`, the predicted `class` and its `probability`; of several
    tasks a map each, under its name."""

    def look(state: Any, batch: Any) -> dict[str, Array]:
        def scores(added: Array | None) -> tuple[dict[str, Array], tuple[Any, Array]]:
            network, ctx = run.network(state), Context()
            pile = getattr(network.backbone, "stages", [network.backbone])[-1].blocks
            pile[-1] = Tap(pile[-1], added)
            outputs, _ = run.outputs(network, batch, ctx)
            return summed(run.task, outputs), (outputs, ctx.tape[MAP][0])

        _, (_, like) = jax.eval_shape(lambda: scores(None))
        slopes, (outputs, m) = jax.jacrev(scores, has_aux=True)(jnp.zeros(like.shape))
        found = {name: cam(m, slope) for name, slope in slopes.items()}
        if hasattr(run.task, "tasks"):
            return found
        sure = run.task.answer(outputs, batch)["probabilities"].max(-1)
        return {**found, "class": outputs.argmax(-1), "probability": sure}

    return run.rows(look, examples)


def summed(task: Any, outputs: Any) -> dict[str, Array]:
    """What maps are of, summed over examples and pixels: of `map`, or of each task."""
    if not hasattr(task, "tasks"):
        return {"map": outputs.max(-1).sum()}
    found = {}
    for name, own in task.each.items():
        x = outputs[name][0]
        vector = not hasattr(own, "classes") and x.shape[-1] > 1
        y = jnp.sqrt(jnp.square(x).sum(-1) + 1e-12) if vector else x.max(-1)
        found[name] = y.sum()
    return found


def draw(run: TrainedRun, path: Path, examples: int) -> dict[str, Any]:
    """Draws the maps over the pictures, each scaled to its largest value.

    Returns:
        `images`, each with its `label`, `prediction` and `probability`; or of several tasks how
        many, `tasks`, and `alike`, the mean over images and pairs of tasks of the cosine between
        their maps.
    """
    rows = maps(run, examples)
    labels = run.titles(rows)
    title = f"Grad-CAM of {run.method} at the last block"
    if hasattr(run.task, "tasks"):
        given = {name: rows[name] for name in run.task.tasks}
        _draw(rows["image"], labels, given, {}, f"{title}, by task", path)
        return {"images": len(labels), "tasks": list(given), "alike": _alike(list(given.values()))}
    found = [
        dict(label=label, prediction=str(run.task.classes[int(n)]), probability=float(p))
        for label, n, p in zip(labels, rows["class"], rows["probability"], strict=True)
    ]
    texts = {number: _text(one) for number, one in enumerate(found)}
    names = [f"label {canvas.short(label, 14)}" if label else "" for label in labels]
    title += ", for the predicted class"
    _draw(rows["image"], names, {"": rows["map"]}, texts, title, path)
    return {"images": found}


def _alike(given: list[np.ndarray]) -> float:
    """The mean cosine between the maps `b h w` of pairs of tasks; 1 for one task."""
    flat = np.stack([m.reshape(len(m), -1).astype(np.float64) for m in given])
    flat /= np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-30)
    pairs = np.triu_indices(len(given), 1)
    return float(np.einsum("tbn,ubn->tub", flat, flat)[pairs].mean()) if len(given) > 1 else 1.0


def _text(one: dict[str, Any]) -> tuple[str, str]:
    """What was predicted, and the colour to say it in."""
    right = not one["label"] or one["label"] == one["prediction"]
    text = f"{canvas.short(one['prediction'], 14)}  {100 * one['probability']:.0f} %"
    return text, "black" if right else "#D55E00"


def _draw(
    images: np.ndarray,
    names: list[str],
    given: dict[str, np.ndarray],
    texts: dict[int, tuple[str, str]],
    title: str,
    path: Path,
) -> None:
    """Groups of rows: pictures with their names, and below each its maps, one a task."""
    wide, deep = min(len(images), COLUMNS), 1 + len(given)
    groups = -(-len(images) // wide)
    figure = canvas.blank(max(1.6 * wide + 1, 5), 0.7 + 1.75 * deep * groups, title)
    grid = figure.subplots(deep * groups, wide, squeeze=False)
    for axes in grid.flat:
        axes.set_frame_on(False)
        canvas.bare(axes)
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        group, column = divmod(number, wide)
        above, *below = grid[deep * group : deep * (group + 1), column]
        canvas.picture(above, image)
        if name:
            above.set_title(name, fontsize=9)
        for axes, (task, maps) in zip(below, given.items(), strict=True):
            values = maps[number]
            drawn = canvas.overlay(axes, image, values / (values.max() or 1.0), 0.0, 1.0)
            if task and not column:
                axes.set_ylabel(task, fontsize=9)
        if number in texts:
            text, colour = texts[number]
            below[0].set_title(text, fontsize=9, color=colour)
    bar = figure.colorbar(drawn, ax=grid, location="right", shrink=0.6, aspect=25)
    bar.set_label("Grad-CAM over its largest value", fontsize=9)
    canvas.write(figure, path)


def cam(m: Array, slope: Array) -> Array:
    """The map `b h w` of patch tokens `b h w d` and the class's slope by them."""
    weight = slope.astype(jnp.float32).mean((1, 2))
    return jax.nn.relu(jnp.einsum("bhwd,bd->bhw", m.astype(jnp.float32), weight))
