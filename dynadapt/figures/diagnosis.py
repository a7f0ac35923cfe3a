"""Does an adapter use its input, and how hard does it push? Answers from a run's product.

The kernels of iConFormer and VFM-Adapter are made from each input. Of each block is told how much
they vary over images, and of the whole model what changes where all images get the mean kernels of
their batch: if nothing does, what the method makes from its input is of no use.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt import evaluate, inputs, model, tree
from dynadapt.context import Context
from dynadapt.figures import moments
from dynadapt.figures.trained import TrainedRun
from dynadapt.runs.journal import show_table
from dynadapt.runs.report import number_text
from dynadapt.step import mean

Array = jax.Array

MOVED = 0.01  # relative, of values that are no classes
SURE = 0.3  # probability from which a cell of a detector shows an object of its likeliest class


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
        the norm, on the first batch; `features_variance`; the task's `headline`, its value in an
        evaluation as `score` and as `score_with_means`, and `changed`, the percentage of answers
        (of pixels, where each has one) that are another class, or a value that moves by more than
        `MOVED`. Of detection and instances these are the cells of all levels that show an object in
        either case, of a probability of at least `SURE`: the percentage that come to show one of
        another class, or none.

    Raises:
        CheckpointError: for a damaged adapter or another backbone than it was trained on.
    """
    trained = TrainedRun(folder, weights)
    task, state = trained.task, trained.state

    @functools.partial(jax.jit, static_argnames="probe")
    def look(state: Any, batch: Any, probe: str) -> tuple[Any, Any, Any, Any, dict[str, Array]]:
        network, ctx = trained.network(state), Context(probe=probe)
        found, prepared = trained.outputs(network, batch, ctx)
        if hasattr(task, "look"):  # evaluated otherwise than recorded
            found, _ = trained.outputs(network, batch, ctx.replace(tape={}), look=True)
        answers = task.answer(found, prepared) if getattr(task, "stored", ()) else {}
        made = moments.of_batch(ctx.tape, batch["mask"])
        summed = _summed(ctx.tape, batch["mask"])
        return task.rows(found, prepared), answers, _said(found), made, summed

    @jax.jit
    def gradient(train: Any, rest: Any, batch: Any) -> Any:
        def loss(train: Any) -> Array:
            found, prepared = trained.outputs(trained.network((train, *rest)), batch, Context())
            return mean(*task.loss(found, prepared)[:2])

        return jax.grad(loss)(train)

    rows: dict[str, list[Any]] = {"branches": [], "mean": []}
    changed, answered, sums, norms, gathered = 0, 0, [], {}, moments.Gathered()
    batches = inputs.eval_batches(trained.config, trained.split, trained.mesh, task)
    with jax.set_mesh(trained.mesh):
        for batch in batches:
            placed, said = inputs.place(batch, trained.mesh), []
            for probe, parts in rows.items():
                own, answers, *found = look(state, placed, probe)
                parts.append(evaluate.whole_rows(task, batch, own, answers, batches.about))
                said.append([x[batch["mask"] > 0] for x in jax.device_get(found[0])])
                if probe == "branches":
                    made, summed = jax.device_get(found[1:])
            evaluate.forget(batch, batches.about)
            if not norms:
                norms = _norms(jax.device_get(gradient(state[0], state[1:], placed)))
            some = _changed(*said)
            changed, answered = changed + some.sum(), answered + len(some)
            sums.append(summed)
            gathered.add(made, float(batch["mask"].sum()))
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
        "score": _score(task, rows["branches"]),
        "score_with_means": _score(task, rows["mean"]),
        "changed": 100.0 * float(changed) / max(answered, 1),
    }


def _said(outputs: Any) -> tuple[Array, Array]:
    """The likeliest class, or the one value, of each example, pixel or cell, and whether that is an
    answer: `b …` both. A detector's cell answers where it shows an object; its class is -1 where it
    does not."""
    if hasattr(outputs, "classes"):
        logits = [x.reshape(len(x), -1, x.shape[-1]) for x in outputs.classes]
        logits = jnp.concatenate(logits, axis=1)
        shown = jax.nn.sigmoid(logits.max(-1)) >= SURE
        return jnp.where(shown, logits.argmax(-1), -1), shown
    first = jax.tree.leaves(outputs)[0]
    said = first.argmax(-1) if first.shape[-1] > 1 else first[..., 0]
    return said, jnp.ones_like(said, bool)


def _changed(said: Sequence[np.ndarray], then: Sequence[np.ndarray]) -> np.ndarray:
    """Whether each answer, as of `_said`, in either case is another one in the other."""
    (first, some), (second, others) = said, then
    whole = np.issubdtype(first.dtype, np.integer)
    same = first == second if whole else np.isclose(first, second, rtol=MOVED, atol=0)
    return ~same[some | others]


def _score(task: Any, parts: list[dict[str, np.ndarray]]) -> float:
    """The task's headline, from the rows of all batches."""
    rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    rows = evaluate.in_order(rows, rows.pop("batch/index"), rows.pop("batch/mask"))
    return task.value(rows)[task.headline]


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
