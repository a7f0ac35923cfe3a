"""Evaluation: a task's metrics over a split, exact on any number of devices and any batch size."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import adapters, data, files, model, sharding, tasks, tree, weights
from dynadapt import config as configs
from dynadapt.context import Context
from dynadapt.data import images, loader, transforms
from dynadapt.errors import CheckpointError, DataError
from dynadapt.runs import checkpoint

Array = jax.Array


def open_split(config: Any, part: str) -> tuple[Any, Any]:
    """The source and the transform of `part`, "train" or "eval"; DataError if it is not there."""
    source = data.from_config(config.data, config.input[f"{part}_split"])
    transform = transforms.pipeline(config.input[part])
    return source, transform


def example_shape(config: Any, source: Any, transform: Any) -> tuple[int, ...]:
    """Shape `h w 3` of the first example, or first whole one, after its transforms."""
    fault = DataError("the data set is empty")
    for index in range(len(source)):
        try:
            return transform(source[index], np.random.default_rng(0))["image"].shape
        except DataError as error:
            fault = error
            if config.input.on_error == "stop":
                break
    raise fault


def prepared(task: Any, batch: Any, config: Any, key: Array | None, train: bool) -> Any:
    """A batch from the loader, normalised and prepared by the task, on the device."""
    pixels = images.normalise(batch["image"], config.input.normalise, jnp.float32)
    return task.prepare({**batch, "image": pixels}, key, train)


def outputs(
    network: Any, pixels: Array, ctx: Context, task: Any, hyper: Mapping[str, Array]
) -> Any:
    """What a model answers, with the scale of its adapters and the number of classes in `hyper`."""
    if "scale" in hyper:
        adapters.rescale(network.backbone, hyper["scale"].astype(pixels.dtype))
    answer = network(pixels, ctx)
    return task.within(answer, hyper["classes"]) if "classes" in hyper else answer


def make_step(graph: Any, task: Any, config: Any) -> Any:
    """The jitted `step(train, frozen, sums, batch) -> (sums, predictions)`."""
    return jax.jit(pure_step(graph, task, config))


def pure_step(graph: Any, task: Any, config: Any) -> Any:
    """The function `step(train, frozen, sums, batch, hyper=None) -> (sums, predictions)`."""

    def step(
        train: Any, frozen: Any, sums: Any, batch: Any, hyper: Mapping[str, Array] | None = None
    ) -> tuple[Any, Any]:
        batch = prepared(task, batch, config, None, False)
        network = nnx.merge(graph, train, frozen)
        pixels = batch["image"].astype(config.compute.dtype)
        answer = outputs(network, pixels, Context(), task, hyper or {})
        return sharding.whole(task.add(sums, answer, batch)), task.predict(answer)

    return step


def batches(config: Any, source: Any, transform: Any) -> Any:
    """This process's part of the evaluation batches."""
    count = jax.process_count()
    return loader.eval_batches(
        source,
        transform,
        batch_size=config.input.eval_batch_size // count,
        process=(jax.process_index(), count),
        threads=None if config.input.threads < 0 else config.input.threads,
        on_error=config.input.on_error,
    )


def evaluate(
    step: Any, task: Any, train: Any, frozen: Any, batches: Iterable[Any], mesh: Any
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics over all batches, and the predictions for the unpadded examples of all processes.

    Predictions are arrays of equal length, ordered by `index`: `index`, `label` and what the task
    predicts.
    """
    zero = task.zero()
    sums = sharding.put_whole(zero, sharding.replicated(zero, mesh))
    rows = []
    for batch in batches:
        sums, predicted = step(
            train, frozen, sums, sharding.put(batch, sharding.batch(batch, mesh))
        )
        local = {k: sharding.local(v) for k, v in predicted.items()}
        rows.append({**{k: batch[k] for k in ("index", "label", "mask")}, **local})
    every = sharding.gather_rows({k: np.concatenate([r[k] for r in rows]) for k in rows[0]})
    order = np.argsort(every["index"], kind="stable")
    order = order[every.pop("mask")[order] > 0]
    return task.value(jax.device_get(sums)), {k: v[order] for k, v in every.items()}


def write_predictions(path: Path, predictions: dict[str, np.ndarray]) -> None:
    """Writes a CSV file, one line an example; the final name appears only when it is whole."""
    with files.whole(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(predictions)
        writer.writerows(zip(*(v.tolist() for v in predictions.values()), strict=True))


def run(folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Evaluates an adapter in a fresh process, from its folder and the backbone's weights alone.

    Args:
        folder: `adapter/` of a run.
        out: file for the predictions (CSV), or None.

    Returns:
        The metrics, and what was evaluated.

    Raises:
        CheckpointError: for a damaged adapter or another backbone than it was trained on.
    """
    config, task, source, transform, network = load(folder)
    mesh = sharding.make_mesh()
    config.input.eval_batch_size = fitting(config.input.eval_batch_size, mesh)
    graph, train, frozen = model.split(network, config)
    train = sharding.put_whole(train, sharding.replicated(train, mesh))
    frozen = sharding.put_whole(frozen, sharding.frozen(frozen, mesh))
    with jax.set_mesh(mesh):
        step = make_step(graph, task, config)
        values, predictions = evaluate(
            step, task, train, frozen, batches(config, source, transform), mesh
        )
    if out is not None:
        write_predictions(out, predictions)
    return {
        "method": config.adapter.name,
        "backbone": config.backbone.name,
        "data": config.data.name,
        "split": config.input.eval_split,
        **values,
    }


def fitting(batch: int, mesh: Any) -> int:
    """The batch size, rounded up so that the devices share it evenly."""
    return -(-batch // mesh.size) * mesh.size


def load(folder: Path) -> tuple[Any, Any, Any, Any, Any]:
    """Config, task, evaluation data, its transform and the trained model of an adapter folder."""
    leaves, card = checkpoint.load_adapter(folder)
    config = configs.from_plain(card["config"])
    configs.check(config)
    check_backbone(config, card)
    source, transform = open_split(config, "eval")
    task = tasks.from_config(config.task, source.info)
    network = model.build(config, task)
    expected = nnx.state(network, adapters.trainable(model.patterns(config)))
    nnx.update(network, filled(expected, leaves, folder))
    return config, task, source, transform, network


def filled(expected: Any, leaves: dict[str, Any], folder: Path) -> Any:
    """The tree of trained leaves with the values of an adapter's folder, which must fit."""
    own = tree.leaves(expected)
    wrong = [k for k in {*own, *leaves} if k not in own or k not in leaves]
    wrong += [k for k in own if k in leaves and own[k].shape != leaves[k].shape]
    if wrong:
        raise CheckpointError(f"the adapter in {folder} does not fit its model at {sorted(wrong)}")
    return tree.replace(expected, {k: jnp.asarray(v) for k, v in leaves.items()})


def check_backbone(config: Any, card: dict[str, Any]) -> None:
    """Raises a CheckpointError unless the backbone's weights are those of the training."""
    if not config.backbone.weights:
        return
    file = weights.locate(config.backbone.weights)
    if weights.digest(file) != card["weights_sha256"]:
        raise CheckpointError(
            f"the backbone weights {config.backbone.weights!r} are not those that the adapter was "
            f"trained on (SHA-256 {card['weights_sha256'][:12]}…)"
        )
