"""The kernels that are generated for several images, and how each differs from the mean over
images."""

from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.figures import canvas, moments, spread
from dynadapt.figures.trained import TrainedRun

EXAMPLES = 6
BLOCKS = 4  # shown, at most
STILL = 1e-10  # share of the mean square below which a variance is of rounding

unfit = spread.unfit


def draw(run: TrainedRun, path: Path, examples: int) -> dict[str, Any]:
    """Draws a row for each image: itself, its kernels in some blocks, their differences.

    Shown are blocks whose kernels vary. Of depth-wise kernels `k k r` the channel is shown whose
    taps vary most over images, of full ones `k k r r` the mean over the diagonal.

    Returns:
        `size`, the root mean square of all kernels, and `varies`, their standard deviation over
        images as a share of it, both of the shown blocks; `largest` difference of a shown tap.
    """
    over, names = run.kept(spread.gathered), run.recorded(moments.MADE)
    places = run.sites(names)
    shown = {(r["name"], r["block"]): r for r in moments.rows(over.moments)}
    # A last block whose patches no head sees keeps its first kernels.
    moving = [site for site, row in shown.items() if row["varies"] > STILL]
    sites = canvas.evenly(moving or list(shown), BLOCKS)
    rows = run.tapes(list({name for name, _ in sites}), examples)
    titles, columns = [], []
    for name, block in sites:
        mean, variance = (x[block] for x in over.moments[name])
        reduce, what = _reduction(variance)
        kernels = np.stack([reduce(k) for k in rows[name][:, block].astype(np.float64)])
        titles.append(f"{places[name]}\nblock {block}\n{what}")
        columns.append((kernels, kernels - reduce(mean)[None]))
    size = float(np.sqrt(np.mean([shown[s]["size"] ** 2 for s in sites])))
    squares = [shown[s]["varies"] * shown[s]["size"] ** 2 for s in sites]
    varies = float(np.sqrt(np.mean(squares)) / size) if size else 0.0
    largest = max(float(np.abs(d).max()) for _, d in columns)
    title = (
        f"Kernels that {run.method} generates: over {int(over.count)} images they vary by "
        f"{100 * varies:.2g} % of their size (root mean square). "
        "Right: the difference from their mean over images, on a scale of its own"
    )
    _draw(run, rows, titles, columns, title, path)
    return {"images": len(rows["image"]), "size": size, "varies": varies, "largest": largest}


def _reduction(variance: np.ndarray) -> tuple[Any, str]:
    """What brings a kernel to `k k`, and its name, chosen by the variance over images."""
    if variance.ndim == 4:
        return lambda kernel: np.einsum("ijrr->ij", kernel) / kernel.shape[-1], "mean diagonal"
    channel = int(variance.sum((0, 1)).argmax())
    return lambda kernel: kernel[..., channel], f"channel {channel}"


def _draw(
    run: TrainedRun,
    rows: dict[str, np.ndarray],
    titles: list[str],
    columns: list[tuple[np.ndarray, np.ndarray]],
    title: str,
    path: Path,
) -> None:
    count, wide = len(rows["image"]), len(columns)
    figure = canvas.blank(2.2 + 2.1 * wide, 1.6 + 1.0 * count, title)
    grid = figure.subplots(count, 1 + 2 * wide, squeeze=False)
    bars = []
    for half in range(2):
        limit = max(np.abs(column[half]).max() for column in columns) or 1.0
        look = dict(cmap="RdBu_r", vmin=-limit, vmax=limit)
        first = 1 + half * wide
        for place, (text, column) in enumerate(zip(titles, columns, strict=True), first):
            grid[0, place].set_title(text, fontsize=8)
            for axes, kernel in zip(grid[:, place], column[half], strict=True):
                shown = axes.imshow(kernel, **look)
                canvas.bare(axes)
        bars.append((shown, grid[:, first : first + wide]))
    for (shown, axes), label in zip(bars, ("tap", "tap - mean over images"), strict=True):
        bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.7, aspect=40, pad=0.02)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.ax.locator_params(nbins=5)
    for axes, image, name in zip(grid[:, 0], rows["image"], run.titles(rows), strict=True):
        canvas.picture(axes, image, name)
    canvas.write(figure, path)
