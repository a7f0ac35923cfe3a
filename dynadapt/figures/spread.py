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
    return f"{run.method} generates no kernels; iconformer, tadformer and vfm_adapter do"


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
    over = run.kept(gathered) if examples == EXAMPLES else gathered(run, examples)
    sites = run.sites(run.recorded(moments.MADE))
    found = [
        dict(site=sites[r["name"]], block=r["block"], size=r["size"], spread=r["varies"] ** 0.5)
        for r in moments.rows(over.moments)
    ]
    title = f"How much the kernels of {run.method} vary over {int(over.count)} images"
    # A branch is the last word of a site; before it stands a stage, where there are several.
    places = list(dict.fromkeys((r["site"].rpartition(" ")[0], r["block"]) for r in found))
    figure = canvas.blank(min(max(3 + 0.6 * len(places), 6), 14), 4, title)
    axes = figure.subplots()
    branches = list(dict.fromkeys(r["site"].split(" ")[-1] for r in found))
    width = 0.8 / len(branches)
    for number, branch in enumerate(branches):
        rows = [r for r in found if r["site"].split(" ")[-1] == branch]
        where = [places.index((r["site"].rpartition(" ")[0], r["block"])) for r in rows]
        left = np.array(where) + (number - (len(branches) - 1) / 2) * width
        colour = canvas.COLOURS[number % len(canvas.COLOURS)]
        axes.bar(left, [100 * r["spread"] for r in rows], 0.9 * width, label=branch, color=colour)
    several = any(part for part, _ in places)
    ticks = [f"{part.split()[-1]}.{block}" if part else str(block) for part, block in places]
    axes.set_xticks(range(len(places)), ticks)
    axes.set_xlabel(f"{places[0][0].split()[0]}.block" if several else "block")
    axes.set_ylabel("standard deviation over images,\n% of the root mean square")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    canvas.write(figure, path)
    return {"images": int(over.count), "blocks": found}
