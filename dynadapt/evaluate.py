"""Evaluation: a task's metrics over a split, exact on any number of devices and any batch size."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dynadapt import choices, inputs, model, processes, sharding
from dynadapt.context import Context
from dynadapt.errors import ConfigError, MissingSplit, TrainingError
from dynadapt.model import FINITE
from dynadapt.runs import product
from dynadapt.runs.predictions import Predictions

Array = jax.Array
Record = Callable[[Mapping[str, np.ndarray], dict[str, Any]], None]


def make_step(graph: Any, task: Any, config: Any) -> Any:
    """The jitted `step(kept, frozen, batch) -> (rows, answers)`."""
    return jax.jit(pure_step(graph, task, config))


def pure_step(graph: Any, task: Any, config: Any) -> Any:
    """The function `step(kept, frozen, batch, hyper=None) -> (rows, answers)`.

    `kept` is what `step.best` gives; rows and answers are those of the task, `b …` each. Rows say
    besides whether an example's features are finite.
    """

    def step(
        kept: Any, frozen: Any, batch: Any, hyper: model.Hyper | None = None
    ) -> tuple[Any, Any]:
        batch = inputs.prepared(task, batch, config, None, False)
        network = nnx.merge(graph, kept["train"], kept["stats"], frozen)
        ctx = Context()
        outputs = model.outputs(network, batch, ctx, task, config, hyper or {}, look=True)
        rows = {**task.rows(outputs, batch), FINITE: ctx.tape[FINITE]}
        return rows, task.answer(outputs, batch)

    return step


def evaluate(
    step: Any,
    task: Any,
    kept: Any,
    frozen: Any,
    batches: Iterable[Any],
    mesh: Any,
    record: Record | None = None,
    about: dict[int, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Metrics over all batches of all processes.

    Args:
        step: as of `make_step`.
        task: whose metrics.
        kept: trained leaves and statistics.
        frozen: all else.
        batches: this process's; every process has equally many.
        mesh: of the devices.
        record: gets the answer to each example of this process, and its row of the batch.
        about: what is known of each example, as `loader.Batches` has it, for a task that judges
            its answers on the host.

    Raises:
        TrainingError: for features or a metric that are not finite.
    """
    parts = []
    for batch in batches:
        rows, answers = step(kept, frozen, inputs.place(batch, mesh))
        parts.append(whole_rows(task, batch, rows, answers, about, record))
        forget(batch, about)
    every = processes.gather_rows({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    every = in_order(every, every.pop("batch/index"), every.pop("batch/mask"))
    fine = every.pop(FINITE)
    if not fine.all():
        raise TrainingError(
            f"the features of {np.sum(~fine)} of {len(fine)} examples are not finite, the first of "
            f"them example {np.argmin(fine)}: the model is of no use"
        )
    found = task.value(every)
    for name, value in found.items():
        if not isinstance(value, Mapping) and not np.isfinite(value):
            raise TrainingError(f"the evaluation's {name} is not finite: the model is of no use")
    return found


def whole_rows(
    task: Any,
    batch: Mapping[str, np.ndarray],
    rows: Mapping[str, Array],
    answers: Mapping[str, Array],
    about: Mapping[int, dict[str, Any]] | None = None,
    record: Record | None = None,
) -> dict[str, np.ndarray]:
    """The rows of this process's examples of a batch, on the host: all that metrics need.

    Where the task judges, what `judge` finds takes the place of the device's rows.

    Args:
        task: whose rows and answers these are.
        batch: as it comes from the loader.
        rows: of the task, `b …`.
        answers: of the task, `b …`.
        about: as of `evaluate`.
        record: as of `evaluate`.

    Returns:
        The rows, and `index` and `mask` of the batch under `batch/…`.
    """
    judged = bool(getattr(task, "stored", ())) and about is not None
    found = {k: sharding.local(v) for k, v in rows.items()}
    if judged:
        found = {k: v.copy() for k, v in found.items()}
    if judged or record is not None:
        answers = {k: sharding.local(v) for k, v in answers.items()}
        for i in np.flatnonzero(batch["mask"]):
            answer, row = ({k: v[i] for k, v in given.items()} for given in (answers, batch))
            if judged:
                known = about[int(row["index"])]
                for name, value in task.judge(answer, {**row, **known}).items():
                    found[name][i] = value
            if record is not None:
                record(answer, row)
    return {**found, **{f"batch/{k}": batch[k] for k in ("index", "mask")}}


def forget(batch: Mapping[str, np.ndarray], about: Mapping[int, dict[str, Any]] | None) -> None:
    """Drops what is stored of a batch's examples, once they are judged: of all examples it is as
    large as the split."""
    for index in batch["index"] if about else ():
        about.get(int(index), {}).pop("stored", None)


def in_order(
    rows: Mapping[str, np.ndarray], index: np.ndarray, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """The rows of unpadded examples in the order of their indices."""
    order = np.argsort(index, kind="stable")
    order = order[mask[order] > 0]
    return {k: v[order] for k, v in rows.items()}


def _opened(config: Any, classes: tuple[str, ...], whole: bool) -> inputs.Split:
    """The split to evaluate; where `whole`, data without it are taken whole, as `train`."""
    try:
        return inputs.open_split(config, "eval", classes)
    except MissingSplit:
        if not whole:
            raise
        config.input.eval_split = "train"
        return inputs.open_split(config, "eval", classes)


def run(folder: Path, out: Path | None = None, data: str = "", weights: str = "") -> dict[str, Any]:
    """Evaluates an adapter in a fresh process, from its folder and the backbone's weights alone.

    Args:
        folder: `adapter/` of a run.
        out: folder for records and pictures, or None.
        data: another place of data of the same kind; its classes are found by name.
        weights: where the backbone's weights lie now, if not where they lay in training.

    Returns:
        The metrics, and what was evaluated.

    Raises:
        CheckpointError: for a damaged adapter or another backbone than it was trained on.
        DataError: for classes that the adapter does not know.
        ConfigError: for data that lie in no place of one's own.
    """
    processes.start()
    trained = product.load(folder, weights)
    config, task, parts = trained.config, trained.task, trained.parts
    if data:
        if "path" not in config.data:
            raise ConfigError(f"--data is for data sets with a path, not for {config.data.name!r}")
        config.data.path = data
    split = _opened(config, trained.adapter.info.classes, whole=bool(data))
    mesh = sharding.make_mesh()
    kept = {"train": parts.train, "stats": parts.stats}
    kept = sharding.put_whole(kept, sharding.replicated(kept, mesh))
    frozen = sharding.put_whole(parts.frozen, sharding.frozen(parts.frozen, mesh))
    with jax.set_mesh(mesh):
        step = make_step(parts.graph, task, config)
        batches = inputs.eval_batches(config, split, mesh, task)
        records = Predictions(out, task, split.source, batches.about) if out else None
        record = records.add if records else None
        values = evaluate(step, task, kept, frozen, batches, mesh, record, batches.about)
        if records:
            records.finish(values)
    return {
        "method": choices.title(config.adapter.name),
        "backbone": config.backbone.name,
        "data": config.data.name,
        "split": config.input.eval_split,
        **values,
    }
