"""How much the generated kernels vary over images, block by block."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynadapt.context import Context
from dynadapt.figures import canvas, moments
from dynadapt.figures.trained import TrainedRun

EXAMPLES = 1000


def unfit(run: TrainedRun) -> str:
    """Why it can't be drawn of a run; "" where it can."""
    if run.recorded(moments.MADE):
        return ""
    return f"{run.method} generates no kernels; iconformer and vfm_adapter do"


def gathered(run: TrainedRun, examples: int = EXAMPLES) -> moments.Gathered:
    """Moments over images of all kernels that a run generates."""

    @jax.jit
    def look(state: Any, batch: Any) -> Any:
        ctx = Context()
        _, batch = run.outputs(run.network(state), batch, ctx)
        return moments.of_batch(ctx.tape, batch["mask"])

    found = moments.Gathered()
    with jax.set_mesh(run.mesh):
        for batch, placed in run.batches(examples):
            found.add(jax.device_get(look(run.state, placed)), float(batch["mask"].sum()))
    return found


def draw(run: TrainedRun, path: Path, examples: int) -> dict[str, Any]:
    """Draws the standard deviation of kernels over images as a share of their root mean square.

    Returns:
        `images`, and for each `site` and `block` that share, `spread`, with the `size` in the
        root mean square.
    """
    over = gathered(run, examples)
    sites = run.sites(run.recorded(moments.MADE))
    found = [
        dict(site=sites[r["name"]], block=r["block"], size=r["size"], spread=r["varies"] ** 0.5)
        for r in moments.rows(over.moments)
    ]
    title = f"How much the kernels of {run.method} vary over {int(over.count)} images"
    figure = canvas.blank(7, 4, title)
    axes = figure.subplots()
    names = list(dict.fromkeys(row["site"] for row in found))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        rows = [row for row in found if row["site"] == name]
        places = np.array([r["block"] for r in rows]) + (number - (len(names) - 1) / 2) * width
        heights = [100 * r["spread"] for r in rows]
        colour = canvas.COLOURS[number % len(canvas.COLOURS)]
        axes.bar(places, heights, 0.9 * width, label=name, color=colour)
    axes.set_xticks(range(1 + max(row["block"] for row in found)))
    axes.set_xlabel("block")
    axes.set_ylabel("standard deviation over images,\n% of the root mean square")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    canvas.write(figure, path)
    return {"images": int(over.count), "blocks": found}
