"""Does an adapter use its input, and how hard does it push? Answers from a run's product.

The kernels of iConFormer and VFM-Adapter are made from each input. Of each block is told how much
they vary over images, and of the whole model what changes where all images get the mean kernels of
their batch: if nothing does, what the method makes from its input is of no use.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynadapt import evaluate, model, tree
from dynadapt.context import Context
from dynadapt.figures import moments
from dynadapt.figures.trained import TrainedRun
from dynadapt.runs.journal import show_table
from dynadapt.runs.report import number_text
from dynadapt.step import mean

Array = jax.Array

MOVED = 0.01  # relative; classes differ by more, being whole numbers


def run(folder: Path, weights: str = "") -> dict[str, Any]:
    """Diagnoses the product of a run on its evaluation split.

    Args:
        folder: `adapter/` of a run.
        weights: where the backbone's weights lie now, if not where they lay in training.

    Returns:
        `made`, of each thing that is made from inputs and each block: `name`, `block`, `size` (root
        mean square) and `varies`, its variance over images as a share of its mean square;
        `branches`, of each site: `name`, `block` and `ratio`, the root mean square of what the
        adapter adds over that of what it adds to; `gradients`, of each group of trained leaves:
        the norm, on the first batch; `features_variance`; the task's `headline`, its value as
        `score` and as `score_with_means`, and `changed`, the percentage of answers (of pixels,
        where each has one) that are another class, or a value that moves by more than `MOVED`.

    Raises:
        CheckpointError: for a damaged adapter or another backbone than it was trained on.
    """
    trained = TrainedRun(folder, weights)
    task, state = trained.task, trained.state

    @functools.partial(jax.jit, static_argnames="probe")
    def look(state: Any, batch: Any, probe: str) -> tuple[Any, Array, Any, dict[str, Array]]:
        ctx = Context(probe=probe)
        found, batch = trained.outputs(trained.network(state), batch, ctx)
        made = moments.of_batch(ctx.tape, batch["mask"])
        return task.rows(found, batch), _said(found), made, _summed(ctx.tape, batch["mask"])

    @jax.jit
    def gradient(train: Any, rest: Any, batch: Any) -> Any:
        def loss(train: Any) -> Array:
            found, prepared = trained.outputs(trained.network((train, *rest)), batch, Context())
            return mean(*task.loss(found, prepared)[:2])

        return jax.grad(loss)(train)

    rows: dict[str, list[Any]] = {"branches": [], "mean": []}
    kept, changed, sums, norms, gathered = [], [], [], {}, moments.Gathered()
    with jax.set_mesh(trained.mesh):
        for batch, placed in trained.batches():
            own, said, made, found = jax.device_get(look(state, placed, "branches"))
            other, said_then, *_ = jax.device_get(look(state, placed, "mean"))
            if not norms:
                norms = _norms(jax.device_get(gradient(state[0], state[1:], placed)))
            rows["branches"].append(own)
            rows["mean"].append(other)
            same = np.isclose(said, said_then, rtol=MOVED, atol=0).reshape(len(said), -1).mean(1)
            changed.append(1.0 - same[batch["mask"] > 0])
            kept.append({k: batch[k] for k in ("index", "mask")})
            sums.append(found)
            gathered.add(made, float(batch["mask"].sum()))
    index, mask = (np.concatenate([b[k] for b in kept]) for k in ("index", "mask"))
    values = {
        probe: task.value(evaluate.in_order(_joined(parts), index, mask))[task.headline]
        for probe, parts in rows.items()
    }
    total = {k: sum(np.asarray(s[k], np.float64) for s in sums) / gathered.count for k in sums[0]}
    return {
        "method": trained.method,
        "backbone": trained.config.backbone.name,
        "images": int(gathered.count),
        "made": moments.rows(gathered.moments),
        "branches": _branches(total),
        "gradients": norms,
        "features_variance": float(total[model.VARIANCE]),
        "headline": task.headline,
        "score": values["branches"],
        "score_with_means": values["mean"],
        "changed": 100.0 * float(np.concatenate(changed).mean()),
    }


def _said(outputs: Any) -> Array:
    """The likeliest class, or the one value, of each example or pixel: `b …`."""
    first = jax.tree.leaves(outputs)[0]
    return first.argmax(-1) if first.shape[-1] > 1 else first[..., 0]


def _joined(parts: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def _summed(tape: Mapping[str, Array], mask: Array) -> dict[str, Array]:
    """What is recorded of branches and features, times the images."""
    names = [n for n in tape if n.startswith("branch/") or n == model.VARIANCE]
    return {name: tape[name] * mask.sum() for name in names}


def _branches(total: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"name": name.removeprefix("branch/"), "block": block, "ratio": float(ratio)}
        for name, ratios in total.items()
        if name.startswith("branch/")
        for block, ratio in enumerate(np.atleast_1d(ratios))
    ]


def _norms(gradient: Any) -> dict[str, float]:
    """Norms by group of leaves (`tree.group`)."""
    squares: dict[str, float] = {}
    for path, g in tree.leaves(gradient).items():
        group = tree.group(path)
        squares[group] = squares.get(group, 0.0) + float(np.square(np.asarray(g, np.float64)).sum())
    return {group: square**0.5 for group, square in squares.items()}


def show(result: dict[str, Any]) -> None:
    """Prints the tables, and what replacing does in a sentence."""
    title = f"{result['method']} on {result['backbone']}, {result['images']} images"
    if result["made"]:
        rows = [
            [r["name"], r["block"], _digits(r["size"]), f"{100 * r['varies']:.2f} %"]
            for r in result["made"]
        ]
        show_table(f"{title}: made from inputs", ["what", "block", "size", "varies"], rows)
    rows = [[r["name"], r["block"], _digits(r["ratio"])] for r in result["branches"]]
    show_table("what adapters add, over what they add to", ["site", "block", "ratio"], rows)
    rows = [[group, _digits(norm)] for group, norm in result["gradients"].items()]
    show_table("gradients", ["leaves", "norm"], rows)
    print(f"variance of features over images, relative: {_digits(result['features_variance'])}")
    if result["made"]:
        print(
            f"with their mean in place of each image's own, {result['changed']:.1f} % of answers "
            f"change, and {result['headline']} goes from {number_text(result['score'])} to "
            f"{number_text(result['score_with_means'])}"
        )


def _digits(value: float) -> str:
    return f"{value:.3g}"
