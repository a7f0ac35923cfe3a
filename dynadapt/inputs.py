"""The inputs of a run: opened splits, their batches, and what is done to a batch on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt import config as configs
from dynadapt import data, model, sharding
from dynadapt.data import images, loader, transforms
from dynadapt.errors import DataError

Array = jax.Array


class Split(NamedTuple):
    """A split that is open: examples, what is done to each on the host, and shapes of a batch."""

    source: Any
    transform: transforms.Pipeline
    spec: dict[str, jax.ShapeDtypeStruct]


def open_split(config: Any, part: str, classes: tuple[str, ...] = ()) -> Split:
    """The split of `part`, "train" or "eval".

    Args:
        config: checked and resolved.
        part: which.
        classes: names of the classes that its labels are to count, where they are known.

    Raises:
        DataError: if it is not there, or none of its examples can be read.
        ConfigError: if its examples can't be of one shape.
    """
    source = data.from_config(config.data, config.input[f"{part}_split"], classes)
    transform = transforms.pipeline(config.input[part])
    size = config.input.batch_size if part == "train" else config.input.eval_batch_size
    split = Split(source, transform, loader.spec(source.info, transform, size))
    check_readable(config, split)
    return split


def check_readable(config: Any, split: Split) -> None:
    """Raises a DataError unless the first example, or the first whole one, can be read."""
    fault = DataError("the data set is empty")
    for index in range(len(split.source)):
        try:
            loader.example(split.source, split.transform, index, np.random.default_rng(0))
            return
        except DataError as error:
            fault = error
            if config.input.on_error == "stop":
                break
    raise fault


def described(config: Any, split: Split, like: Any) -> list[str]:
    """What the backbone sees, in a line, and a warning for each thing that it isn't made for.

    Args:
        config: resolved.
        split: of training.
        like: shapes of the backbone's features, as of `model.features`.
    """
    if "image" not in split.spec:
        return [f"clouds of {split.spec['points'].shape[1]} points"]
    h, w = split.spec["image"].shape[1:3]
    (size, normalise), given = configs.expected(config), config.input.normalise
    tokens = " x ".join(map(str, model.of_tasks(like)[0].maps[-1].shape[1:3]))
    name = config.backbone.name
    lines = [f"{name} sees images of {h} x {w} as {tokens} tokens, normalised as {given}"]
    if (h, w) != (size, size):
        lines.append(
            f"warning: {name} is made for images of {size} x {size}, not {h} x {w}; write {{size}} "
            f"in input.train and input.eval, or say --config.backbone.image_size={h}"
        )
    if given != normalise:
        lines.append(
            f"warning: weights of {name} expect images normalised as {normalise}, not {given}; "
            "leave input.normalise empty"
        )
    return lines


def train_batches(config: Any, split: Split) -> loader.Batches:
    """This process's part of the endless training batches."""
    count = jax.process_count()
    return loader.train_batches(
        split.source,
        split.transform,
        batch_size=config.input.batch_size // count,
        seed=config.seed,
        balance=config.data.balance,
        **_reading(config),
    )


def eval_batches(config: Any, split: Split, mesh: Any, task: Any = None) -> loader.Batches:
    """This process's part of the evaluation batches, with what the task wants to know besides."""
    size = eval_batch_size(config.input.eval_batch_size, split.source, mesh)
    return loader.eval_batches(
        split.source,
        split.transform,
        batch_size=size // jax.process_count(),
        stored=getattr(task, "stored", ()),
        **_reading(config),
    )


def eval_batch_size(asked: int, source: data.Source, mesh: Any) -> int:
    """A batch size of `asked`, or of all examples if they are fewer, that devices share evenly."""
    return -(-min(asked, len(source)) // mesh.size) * mesh.size


def _reading(config: Any) -> dict[str, Any]:
    return dict(
        process=(jax.process_index(), jax.process_count()),
        threads=None if config.input.threads < 0 else config.input.threads,
        on_error=config.input.on_error,
    )


def place(batch: Any, mesh: Any) -> Any:
    """A batch on the mesh; the copy does not wait."""
    return sharding.put(batch, sharding.batch(batch, mesh))


def normalised(batch: Any, config: Any) -> Any:
    """A batch from the loader with its images normalised, float32; on the device."""
    if "image" not in batch:
        return batch
    name = config.input.normalise or configs.expected(config)[1]
    image = images.normalise(batch["image"], name, jnp.float32)
    return {**batch, "image": image}


def prepared(task: Any, batch: Any, config: Any, key: Array | None, train: bool) -> Any:
    """A batch from the loader, its images normalised, prepared by the task; on the device."""
    return task.prepare(normalised(batch, config), key, train)
