"""What all figures are drawn on; matplotlib is imported where the first is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynadapt import files
from dynadapt.errors import MachineError

# Colours that stay apart for most eyes, after Okabe and Ito.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
DPI = 100


def blank(width: float, height: float, title: str = "") -> Any:
    """An empty matplotlib figure of so many inches, with a title that is wrapped.

    Raises:
        MachineError: if matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MachineError("plots need matplotlib: pip install 'dynadapt[viz]'") from error

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    if title:
        figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def write(figure: Any, path: Path) -> None:
    """Writes a PNG file, whole."""
    with files.writing(path), files.whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)


def bare(axes: Any) -> None:
    """Takes ticks away, as pictures have none."""
    axes.set_xticks([])
    axes.set_yticks([])


def picture(axes: Any, image: np.ndarray, name: str = "") -> None:
    """Shows a picture `h w 3`, uint8, with its class at its left."""
    axes.imshow(image, interpolation="nearest")
    bare(axes)
    if name:
        axes.set_ylabel(short(name), rotation=0, ha="right", va="center", fontsize=9)


def overlay(axes: Any, image: np.ndarray, values: np.ndarray, low: float, high: float) -> Any:
    """Shows a map `h w` of values over a picture in grey; returns what a colour bar is made of."""
    size = image.shape[1], image.shape[0]
    wide = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    look = dict(cmap="turbo", alpha=0.5, vmin=low, vmax=high, interpolation="nearest")
    shown = axes.imshow(np.asarray(wide), **look)
    bare(axes)
    return shown


def numbered(axes: Any, values: np.ndarray, most: float) -> Any:
    """A heat map `rows columns` of values from 0 to `most` with a number in each cell."""
    shown = axes.imshow(values, cmap="viridis", vmin=0.0, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.6 * most else "white"
        text = f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return shown


def colours(count: int) -> list[Any]:
    """So many colours for classes, at most 20."""
    from matplotlib import colormaps

    return list(colormaps["tab10" if count <= 10 else "tab20"].colors[:count])


def short(name: str, most: int = 18) -> str:
    """A name in at most so many letters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def evenly(choices: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the choices, the first and the last among them."""
    places = np.linspace(0, len(choices) - 1, min(most, len(choices)))
    return [choices[i] for i in places.round().astype(int)]
