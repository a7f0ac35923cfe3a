"""Singular values of what tuning adds to matrices, tuned - pretrained (VFM-Adapter's figure 2)."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dynadapt import model, tree
from dynadapt.convert import merged
from dynadapt.errors import ConfigError, NotMergeable
from dynadapt.figures import canvas
from dynadapt.figures.trained import TrainedRun

EXAMPLES = 0  # no image is looked at
FLOOR = 1e-4  # of the largest value, below which nothing is drawn
ENERGY = 0.9
COLUMNS = 2
_KERNEL = re.compile(r"(?:stages/(\d+)/)?blocks/(\d+)/(.+)/kernel")


def unfit(run: TrainedRun) -> str:
    """Why it can't be drawn of a run; "" where it can."""
    try:
        if run.kept(differences):
            return ""
    except NotMergeable:
        pass
    return f"{run.method} tunes no matrices of the backbone; full does, and methods that merge"


def differences(run: TrainedRun) -> dict[str, np.ndarray]:
    """Tuned - pretrained of all matrices of blocks that changed, `d_in d_out`, by path, float64.

    Raises:
        NotMergeable: for a method that doesn't fold into the matrices.
    """
    tuned = merged.of_run(run.folder, base=run.weights).found.values
    start = tree.leaves(nnx.state(model.loaded_backbone(run.config)))
    pairs = {
        path: (np.asarray(value, np.float64), np.asarray(start[path], np.float64))
        for path, value in tuned.items()
        if _KERNEL.fullmatch(path) and value.ndim == 2
    }
    return {path: new - old for path, (new, old) in pairs.items() if (new != old).any()}


def curves(matrices: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Of each layer and group of blocks, a third of them or a stage: normalised singular values.

    Returns:
        `layer`, `blocks` in words, `largest`, the mean over blocks of the largest singular value,
        `rank`, how many singular values hold 90 % of the sum of squares, and `values`, the mean
        over blocks of singular values over the largest.
    """
    groups: dict[tuple[str, str], list[np.ndarray]] = {}
    depth = 1 + max(int(_KERNEL.fullmatch(path)[2]) for path in matrices)
    for path, matrix in matrices.items():
        stage, block, layer = _KERNEL.fullmatch(path).groups()
        name = f"stage {stage}" if stage else _third(int(block), depth)
        groups.setdefault((layer, name), []).append(np.linalg.svd(matrix, compute_uv=False))
    found = []
    for (layer, name), values in sorted(groups.items()):
        mean = np.mean([v / v[0] for v in values], axis=0)
        squares = np.cumsum(np.square(values), axis=1)
        ranks = (squares < ENERGY * squares[:, -1:]).sum(1) + 1
        largest, rank = float(np.mean([v[0] for v in values])), float(ranks.mean())
        row = dict(layer=layer, blocks=name, largest=largest, rank=rank, values=mean.tolist())
        found.append(row)
    return found


def _third(block: int, depth: int) -> str:
    """The blocks that share a curve with this one, such as "blocks 04 to 07"."""
    ends = [-(-depth * third // 3) for third in range(4)]
    first, last = next((a, b - 1) for a, b in zip(ends, ends[1:], strict=False) if a <= block < b)
    digits = len(str(depth - 1))
    return f"blocks {first:0{digits}} to {last:0{digits}}"


def draw(
    run: TrainedRun, path: Path, examples: int, beside: TrainedRun | None = None
) -> dict[str, Any]:
    """Draws a panel for each layer, a curve for each group of blocks; those of a run beside dashed.

    Returns:
        `curves` without their values, and `beside`, those of the other run.

    Raises:
        ConfigError: for a run beside that tunes no layer of the same name.
    """
    found = [curves(run.kept(differences))]
    if beside is not None:
        found.append(_beside(beside, {row["layer"] for row in found[0]}))
    layers = list(dict.fromkeys(row["layer"] for row in found[0]))
    names = [_name(one) for one in (run, beside) if one is not None]
    title = "Singular values of tuned - pretrained: " + " and, dashed, ".join(names)
    wide = min(len(layers), COLUMNS)
    high = -(-len(layers) // wide)
    figure = canvas.blank(4.2 * wide + 1.5, 0.8 + 3.0 * high, title)
    grid = figure.subplots(high, wide, squeeze=False, sharey=True)
    for axes in grid.flat[len(layers) :]:
        axes.set_axis_off()
    drawn = np.concatenate([row["values"] for rows in found for row in rows])
    bottom = 10 ** np.floor(np.log10(drawn[drawn > FLOOR].min()) - 1e-9)  # whole decades
    for axes, layer in zip(grid.flat, layers, strict=False):
        for rows, style in zip(found, ("-", "--"), strict=False):
            here = [row for row in rows if row["layer"] == layer]
            for number, row in enumerate(here):
                _line(axes, row, canvas.COLOURS[number % len(canvas.COLOURS)], style)
        axes.set_title(layer, fontsize=9)
        axes.set_yscale("log")
        axes.set_ylim(bottom, 1.5)
        axes.set_xlabel("number of the singular value")
        axes.legend(fontsize=7, title="rank for 90 % of the energy", title_fontsize=7)
    for axes in grid[:, 0]:
        axes.set_ylabel("over the largest")
    canvas.write(figure, path)
    plain = [[{k: v for k, v in r.items() if k != "values"} for r in rows] for rows in found]
    return {"curves": plain[0], **({"beside": plain[1]} if beside is not None else {})}


def _beside(run: TrainedRun, layers: set[str]) -> list[dict[str, Any]]:
    """The curves of the run beside, in layers that the first run tunes too."""
    if reason := unfit(run):
        raise ConfigError(f"--beside: {reason}")
    rows = curves(run.kept(differences))
    if not any(row["layer"] in layers for row in rows):
        own = ", ".join(dict.fromkeys(row["layer"] for row in rows))
        raise ConfigError(f"--beside: that run tunes {own}, and this one {', '.join(layers)}")
    return rows


def _name(run: TrainedRun) -> str:
    return f"{run.method}, {run.config.task.name} of {run.product.adapter.info.name}"


def _line(axes: Any, row: dict[str, Any], colour: str, style: str) -> None:
    values = np.array(row["values"])
    values = values[values > FLOOR]
    label = f"{row['blocks']}: {row['rank']:.3g}"
    axes.plot(np.arange(1, 1 + len(values)), values, style, color=colour, label=label)
