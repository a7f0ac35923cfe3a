"""TADFormer's attention of tasks over the pictures (its figure 5), at the end of each stage."""

from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.adapters.tadformer import ATTENTION
from dynadapt.figures import canvas
from dynadapt.figures.trained import Rows, TrainedRun

EXAMPLES = 3
ROW = 1.0  # inches, at most
GAP = 0.15  # between images, of a row


def unfit(run: TrainedRun) -> str:
    """Why it can't be drawn of a run; "" where it can."""
    if run.recorded(ATTENTION):
        return ""
    return f"{run.method} has no attention of tasks; tadformer with prompts does"


def draw(run: TrainedRun, path: Path, examples: int) -> dict[str, Any]:
    """Draws for each image a row for each task, with a map for each stage: means over heads.

    All maps of a stage share a scale, since raw scores grow from stage to stage.

    Returns:
        `images`, `tasks`, and `stages`: of each the `grid`, the `lowest` and `largest` value, and
        `apart`, the deviation of tasks from their mean as a share of all variation of the maps:
        0 where all tasks look alike.
    """
    names = run.recorded(ATTENTION)
    rows = run.tapes(names, examples)
    maps = [rows[name][:, 0].astype(np.float64) for name in names]  # `b h w t` each
    tasks = list(run.config.adapter.tasks) or [run.config.task.name]
    stages = [
        dict(grid=m.shape[1:3], lowest=float(m.min()), largest=float(m.max()), apart=_apart(m))
        for m in maps
    ]
    _draw(run, rows, maps, tasks, stages, path)
    return {"images": len(rows["image"]), "tasks": tasks, "stages": stages}


def _apart(maps: np.ndarray) -> float:
    """Of maps `b h w t`, the deviation from the mean over tasks as a share of all deviation."""
    own = maps - maps.mean(-1, keepdims=True)
    return float(own.std() / (maps.std() or 1.0))


def _draw(
    run: TrainedRun,
    rows: Rows,
    maps: list[np.ndarray],
    tasks: list[str],
    stages: list[dict[str, Any]],
    path: Path,
) -> None:
    """Groups of rows, one an image, which stands at their left."""
    count, deep = len(rows["image"]), len(tasks)
    height = min(ROW, 12.0 / (count * (deep + GAP)))
    title = (
        f"Attention of tasks, {run.method}: gelu of the raw scores between a task's prompt and the "
        "tokens in the last block of a stage, mean over heads"
    )
    figure = canvas.blank(2.6 + 1.15 * len(maps), 1.3 + height * count * (deep + GAP), title)
    ratios = dict(width_ratios=[1.3] + [1] * len(maps), height_ratios=([1] * deep + [GAP]) * count)
    grid = figure.add_gridspec(count * (deep + 1), 1 + len(maps), **ratios)
    maps = [
        (m - stage["lowest"]) / (stage["largest"] - stage["lowest"] or 1.0)
        for m, stage in zip(maps, stages, strict=True)
    ]
    shown = []
    for number, (image, name) in enumerate(zip(rows["image"], run.titles(rows), strict=True)):
        first = number * (deep + 1)
        canvas.picture(figure.add_subplot(grid[first : first + deep, 0]), image, name)
        for place, task in enumerate(tasks):
            for column, (m, stage) in enumerate(zip(maps, stages, strict=True), 1):
                axes = figure.add_subplot(grid[first + place, column])
                drawn = canvas.overlay(axes, image, m[number, ..., place], 0.0, 1.0)
                shown.append(axes)
                if column == 1:
                    axes.set_ylabel(
                        canvas.short(task), rotation=0, ha="right", va="center", fontsize=9
                    )
                if not first + place:
                    h, w = stage["grid"]
                    text = f"stage {column - 1}, {h} x {w}\n{stage['lowest']:.2g} to "
                    axes.set_title(f"{text}{stage['largest']:.2g}", fontsize=8)
    bar = figure.colorbar(drawn, ax=shown, location="right", shrink=0.6, aspect=30)
    bar.set_label("from a stage's lowest value to its largest", fontsize=9)
    canvas.write(figure, path)
