"""Adapter-X's router: which experts the tokens of each block go to (its figure 4)."""

from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.figures import canvas
from dynadapt.figures.trained import TrainedRun

EXAMPLES = 1000
LOAD, CHANCE = "router/load", "router/probability"


def unfit(run: TrainedRun) -> str:
    """Why it can't be drawn of a run; "" where it can."""
    return "" if run.recorded(LOAD) else f"{run.method} has no router; adapter_x does"


def draw(run: TrainedRun, path: Path, examples: int) -> dict[str, Any]:
    """Draws the share of sub-tokens sent to each expert in each block, and the mean scores.

    Returns:
        `images`; `load` and `probability`, a list of experts for each block.
    """
    names = {kind: run.recorded(kind) for kind in (LOAD, CHANCE)}
    rows = run.tapes([n for found in names.values() for n in found], examples)
    load, chance = (
        np.concatenate([rows[n].astype(np.float64).mean(0) for n in names[kind]])
        for kind in (LOAD, CHANCE)
    )  # `l e`
    blocks, experts = load.shape
    most = max(load.max(), chance.max())
    count = len(rows[LOAD])
    title = f"Router of {run.method}: means over {count} images; an even share is {1 / experts:.2f}"
    figure = canvas.blank(2.5 + 0.55 * blocks, 1.6 + 0.7 * experts, title)
    grid = figure.subplots(2, 1, sharex=True)
    heads = ("share of tokens sent to an expert", "mean probability of an expert")
    for axes, values, text in zip(grid, (load, chance), heads, strict=True):
        drawn = canvas.numbered(axes, values.T, most)
        axes.set_title(text, fontsize=9)
        axes.set_ylabel("expert")
        axes.set_yticks(range(experts))
    grid[1].set_xticks(range(blocks))
    grid[1].set_xlabel("block")
    figure.colorbar(drawn, ax=list(grid), label="share")
    canvas.write(figure, path)
    return {"images": count, "load": load.tolist(), "probability": chance.tolist()}
