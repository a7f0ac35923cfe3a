"""Grad-CAM (Selvaraju et al., arXiv 1610.02391): which patches speak for the predicted class.

    map = relu(sum_d mean_hw(dy / dA_hwd) A_hwd)     A: `h w d`, y: the class's logit

A is the map of patch tokens that enters the last block: behind it, a head that reads the class
token no longer depends on them.
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
    if not hasattr(run.task, "classes") or POOLED not in run.tape:
        return f"the task {run.config.task.name} predicts no class of an image; classification does"
    if "image" not in run.product.adapter.spec:
        return "its map is drawn over images, and the run is of point clouds"
    return ""


def maps(run: TrainedRun, examples: int) -> dict[str, np.ndarray]:
    """Of each example its `map` `h w`, the predicted `class` and its `probability`."""

    def look(state: Any, batch: Any) -> dict[str, Array]:
        def class_logits(added: Array | None) -> tuple[Array, tuple[Array, Array]]:
            network, ctx = run.network(state), Context()
            pile = getattr(network.backbone, "stages", [network.backbone])[-1].blocks
            pile[-1] = Tap(pile[-1], added)
            logits, _ = run.outputs(network, batch, ctx)
            return logits.max(-1).sum(), (logits, ctx.tape[MAP][0])

        _, (_, like) = jax.eval_shape(lambda: class_logits(None))
        slope, (logits, m) = jax.grad(class_logits, has_aux=True)(jnp.zeros(like.shape))
        sure = run.task.answer(logits, batch)["probabilities"].max(-1)
        return {"map": cam(m, slope), "class": logits.argmax(-1), "probability": sure}

    return run.rows(look, examples)


def draw(run: TrainedRun, path: Path, examples: int) -> dict[str, Any]:
    """Draws the maps over the pictures, each scaled to its largest value.

    Returns:
        `images`, each with its `label`, `prediction` and `probability`.
    """
    rows, classes = maps(run, examples), run.task.classes
    labels = run.titles(rows)
    found = [
        dict(label=label, prediction=str(classes[int(n)]), probability=float(p))
        for label, n, p in zip(labels, rows["class"], rows["probability"], strict=True)
    ]
    _draw(run, rows, found, path)
    return {"images": found}


def _draw(
    run: TrainedRun, rows: dict[str, np.ndarray], found: list[dict[str, Any]], path: Path
) -> None:
    """Pairs of rows: pictures, and below each its map."""
    count = len(found)
    wide = min(count, COLUMNS)
    pairs = -(-count // wide)
    title = f"Grad-CAM of {run.method} at the last block, for the predicted class"
    figure = canvas.blank(max(1.6 * wide + 1, 5), 0.7 + 3.5 * pairs, title)
    grid = figure.subplots(2 * pairs, wide, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, one in enumerate(found):
        pair, column = divmod(number, wide)
        above, below = grid[2 * pair, column], grid[2 * pair + 1, column]
        values = rows["map"][number]
        canvas.picture(above, rows["image"][number])
        drawn = canvas.overlay(
            below, rows["image"][number], values / (values.max() or 1.0), 0.0, 1.0
        )
        if one["label"]:
            above.set_title(f"label {canvas.short(one['label'], 14)}", fontsize=9)
        right = not one["label"] or one["label"] == one["prediction"]
        text = f"{canvas.short(one['prediction'], 14)}  {100 * one['probability']:.0f} %"
        below.set_title(text, fontsize=9, color="black" if right else "#D55E00")
    bar = figure.colorbar(drawn, ax=grid, location="right", shrink=0.6, aspect=25)
    bar.set_label("Grad-CAM over its largest value", fontsize=9)
    canvas.write(figure, path)


def cam(m: Array, slope: Array) -> Array:
    """The map `b h w` of patch tokens `b h w d` and the class's slope by them."""
    weight = slope.astype(jnp.float32).mean((1, 2))
    return jax.nn.relu(jnp.einsum("bhwd,bd->bhw", m.astype(jnp.float32), weight))
