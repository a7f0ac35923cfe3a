"""What papers draw of a trained run: each figure a PNG file, and its numbers.

A figure is a module with `unfit(run)`, which says why it can't be drawn of a run, `EXAMPLES`, how
many images it looks at, and `draw(run, path, examples)`, which writes it and gives its numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dynadapt import files
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.figures import (
    attention,
    canvas,
    gradcam,
    importance,
    kernels,
    router,
    singular,
    spread,
    tsne,
)
from dynadapt.figures.trained import TrainedRun

FIGURES: Mapping[str, ModuleType] = {
    "kernels": kernels,
    "spread": spread,
    "importance": importance,
    "attention": attention,
    "singular": singular,
    "router": router,
    "tsne": tsne,
    "gradcam": gradcam,
}
ALL = "all"


def run(
    workdir: Path,
    what: Sequence[str] = (ALL,),
    out: Path | None = None,
    examples: int | None = None,
    beside: Path | None = None,
    weights: str = "",
) -> dict[str, Any]:
    """Draws figures of a run from its evaluation split.

    Args:
        workdir: folder of the run.
        what: names in `FIGURES`, or "all" for those that serve the run's method and task.
        out: folder of the files; `figures/` of the run where none is given.
        examples: images to look at, evenly spaced over the split; by default 6 for grids of images
            and at most 1,000 for statistics.
        beside: folder of a run whose singular values join this one's.
        weights: where the backbone's weights lie now, if not where they lay in training.

    Returns:
        `method`, `backbone`; `figures`, each with `name`, `file` and its numbers; and `left_out`,
        the reason by name.

    Raises:
        UnknownName: for a figure that does not exist.
        ConfigError: for one that does not serve the run.
        MachineError: if matplotlib isn't installed.
    """
    names = _chosen(what)
    if beside is not None and "singular" not in names:
        raise ConfigError("--beside goes with the figure singular, in --what")
    canvas.blank(1, 1)
    trained = TrainedRun(workdir / "adapter", weights)
    reasons = {name: FIGURES[name].unfit(trained) for name in names}
    left = {name: reason for name, reason in reasons.items() if reason}
    if left and ALL not in what or len(left) == len(names):
        raise ConfigError("; ".join(f"no figure {name}: {reason}" for name, reason in left.items()))
    if beside is not None and "singular" in left:
        raise ConfigError(f"--beside would change nothing: {left['singular']}")
    other = TrainedRun(beside / "adapter") if beside is not None else None
    out = workdir / "figures" if out is None else out
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name in names:
        if name in left:
            continue
        figure, path = FIGURES[name], out / f"{name}.png"
        more = {"beside": other} if name == "singular" else {}
        numbers = figure.draw(trained, path, examples or figure.EXAMPLES, **more)
        drawn.append({"name": name, "file": str(path), **numbers})
    backbone = trained.config.backbone.name
    return {"method": trained.method, "backbone": backbone, "figures": drawn, "left_out": left}


def _chosen(what: Sequence[str]) -> list[str]:
    """The names in `what`, each once, in the order of `FIGURES`."""
    for name in what:
        if name not in (*FIGURES, ALL):
            raise UnknownName("figure", name, (*FIGURES, ALL))
    return [name for name in FIGURES if name in what or ALL in what]


def show(result: Mapping[str, Any]) -> None:
    """Prints a line for each figure, and for each that was left out."""
    for figure in result["figures"]:
        print(f"{figure['name']}: {figure['file']}")
    for name, reason in result["left_out"].items():
        print(f"{name} is left out: {reason}")
