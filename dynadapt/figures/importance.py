"""Where VFM-Adapter's prompts look: the importance maps of its equation 6, over the pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.figures import canvas
from dynadapt.figures.trained import TrainedRun

EXAMPLES = 6
PROMPTS = 6  # shown, at most
MAPS = "importance"


def unfit(run: TrainedRun) -> str:
    """Why it can't be drawn of a run; "" where it can."""
    if run.recorded(MAPS):
        return ""
    return f"{run.method} makes no importance maps; vfm_adapter with kernels='input' does"


def draw(run: TrainedRun, path: Path, examples: int) -> dict[str, Any]:
    """Draws a row for each image: itself, the mean map over prompts, and those of some prompts.

    Shown is the block and branch whose maps are furthest from even, in multiples of an even share.

    Returns:
        `images`; of each `site` and `block` the `peak`, the mean over images and prompts of a map's
        largest value over an even share; `site`, `block` of what is shown; and `sum`, the mean over
        maps of their sum, which is 1.
    """
    names = run.recorded(MAPS)
    rows, sites = run.tapes(names, examples), run.sites(names)
    peaks = [
        dict(site=sites[name], block=block, peak=_peak(rows[name][:, block]))
        for name in names
        for block in range(rows[name].shape[1])
    ]
    best = max(peaks, key=lambda row: row["peak"])
    name = next(n for n in names if sites[n] == best["site"])
    maps = rows[name][:, best["block"]].astype(np.float64)  # `b h w t`
    b, h, w, t = maps.shape
    prompts = canvas.evenly(range(t), PROMPTS)
    shown = np.concatenate([maps.mean(-1, keepdims=True), maps[..., prompts]], axis=-1) * h * w
    title = (
        f"Importance maps of {run.method}, {best['site']} of block {best['block']}: "
        f"softmax over {h} x {w} positions of x . E, in multiples of an even share"
    )
    figure = canvas.blank(2.0 + 1.15 * (1 + shown.shape[-1]), 1.2 + 1.1 * b, title)
    grid = figure.subplots(b, 1 + shown.shape[-1], squeeze=False)
    low, high = float(shown.min()), float(shown.max())
    heads = ["image", "mean", *(f"prompt {n}" for n in prompts)]
    for axes, text in zip(grid[0], heads, strict=True):
        axes.set_title(text, fontsize=9)
    for line, image, name, some in zip(grid, rows["image"], run.titles(rows), shown, strict=True):
        canvas.picture(line[0], image, name)
        for number, axes in enumerate(line[1:]):
            drawn = canvas.overlay(axes, image, some[..., number], low, high)
    bar = figure.colorbar(drawn, ax=grid[:, 1:], location="right", shrink=0.6, aspect=30)
    bar.set_label("importance over an even share")
    canvas.write(figure, path)
    sums = float(maps.sum((1, 2)).mean())
    return {"images": b, "site": best["site"], "block": best["block"], "sum": sums, "peaks": peaks}


def _peak(maps: np.ndarray) -> float:
    """The largest value of a map `h w` over an even share, mean over `b` and `t`."""
    b, h, w, t = maps.shape
    return float(maps.max((1, 2)).mean()) * h * w
