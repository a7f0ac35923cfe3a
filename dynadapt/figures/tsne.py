"""t-SNE of the features that the head sees, coloured by class (van der Maaten and Hinton, 2008)."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynadapt.context import Context
from dynadapt.errors import ConfigError, MachineError
from dynadapt.figures import canvas
from dynadapt.figures.trained import TrainedRun
from dynadapt.heads.linear import POOLED

EXAMPLES = 1000
LEAST = 3  # images
CLASSES = 20  # with a colour of their own


def unfit(run: TrainedRun) -> str:
    """Why it can't be drawn of a run; "" where it can."""
    if POOLED in run.tape:
        return ""
    return f"the head of {run.config.task.name} pools no features; that of classification does"


def draw(run: TrainedRun, path: Path, examples: int) -> dict[str, Any]:
    """Draws a point for each image; classes beyond the 20 most frequent share grey.

    Returns:
        `images`, `width` of the features, `perplexity`, and `neighbours`, the share of images whose
        nearest neighbour in the plane is of their class; None without classes.

    Raises:
        ConfigError: for fewer than 3 images.
        MachineError: if scikit-learn isn't installed.
    """
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError as error:
        raise MachineError("t-SNE needs scikit-learn: pip install 'dynadapt[viz]'") from error

    def look(state: Any, batch: Any) -> dict[str, jax.Array]:
        ctx = Context()
        run.outputs(run.network(state), batch, ctx)
        return {"features": ctx.tape[POOLED]}

    rows = run.rows(look, examples)
    features, names = rows["features"].astype(np.float64), np.array(run.titles(rows))
    count = len(features)
    if count < LEAST:
        raise ConfigError(f"t-SNE needs at least {LEAST} images, not {count}; give more --examples")
    perplexity = min(30.0, (count - 1) / 3)
    fit = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
    # Its threads wait for each other a thousand times; on two busy cores that takes tenfold.
    with threadpool_limits(1):
        places = fit.fit_transform(features)
    seen = "class tokens" if getattr(run.task, "pool", "") == "cls" else "pooled features"
    title = f"t-SNE of the {seen} of {run.method} on {run.config.backbone.name}, {count} images"
    figure = canvas.blank(7.5, 6, title)
    axes = figure.subplots()
    scatter(axes, places, names)
    axes.set_xlabel(f"t-SNE 1 (perplexity {perplexity:.3g})")
    axes.set_ylabel("t-SNE 2")
    canvas.bare(axes)
    canvas.write(figure, path)
    return {
        "images": count,
        "width": features.shape[1],
        "perplexity": perplexity,
        "neighbours": neighbours(places, names) if any(names) else None,
    }


def neighbours(places: np.ndarray, names: np.ndarray) -> float:
    """The share of points `n 2` whose nearest neighbour has their name."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1).fit(places).kneighbors(return_distance=False)[:, 0]
    return float((names[nearest] == names).mean())


def scatter(axes: Any, places: np.ndarray, names: np.ndarray) -> None:
    """Points by class, each with a legend; without classes in one colour."""
    found, counts = np.unique(names, return_counts=True)
    frequent = found[np.argsort(-counts, kind="stable")][:CLASSES]
    other = ~np.isin(names, frequent)
    if other.any():
        label = f"{len(found) - CLASSES} other classes"
        axes.scatter(*places[other].T, s=8, color="lightgray", label=label)
    for name, colour in zip(np.sort(frequent), canvas.colours(len(frequent)), strict=True):
        look = dict(s=12, color=colour, label=canvas.short(name), linewidths=0)
        axes.scatter(*places[names == name].T, **look)
    if any(names):
        axes.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, markerscale=2, title="class"
        )
