"""Batches for training and evaluation: sharded by process, shuffled, resumable (grain).

The stream of training examples is one for all processes: epoch after epoch, each epoch a new
permutation made of (seed, epoch). Batch `i` of process `p` of `P` takes the elements `p, p + P,
...`
of the `i`-th stretch of `P * batch_size`. So a batch may hold the end of one epoch and the start of
the next, no example is ever dropped, and a run may go on with another number of processes as long
as the global batch stays.

`spec` says what a batch is; nothing else does.
"""

import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from dynadapt.data import Info, Source, transforms
from dynadapt.data.fields import DENSE
from dynadapt.errors import ConfigError, DataError, DynadaptError

_MODES = ("stop", "skip")
BALANCES = ("", "sampler", "weights")
ENDLESS = 1 << 60  # examples; more than any training sees, and no length overflows


def spec(
    info: Info, transform: transforms.Pipeline, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch `b`: the fields of the examples after the transform, `index` and `mask`.

    Dense fields are `b h w` or `b h w 3`; ragged ones `b most …`, with a mask `b most` beside them.
    `index` is int32 `b`, the position in the split, -1 for padding; `mask` float32 `b`, 0 for
    padding and for examples that were skipped.

    Raises:
        ConfigError: where the transform leaves pictures of several sizes.
    """
    dense = [field for field in info.fields.values() if field.kind in DENSE]
    size = transform.size(dense[0].size) if dense else ()
    if size is None:
        raise ConfigError(
            f"the images of {info.name!r} are not of one size after {transform.text!r}; let the "
            "transforms end in one, such as resize(224)"
        )
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
    for name, field in info.fields.items():
        deep = (3,) if field.kind in ("pixels", "vectors") else ()
        own = (4,) if field.kind == "boxes" else field.size
        shape = (*size, *deep) if field.kind in DENSE else own
        ragged = (field.most,) if field.most else ()
        shapes[name] = ((*ragged, *shape), field.dtype)
        if ragged:
            shapes[f"{name}_mask"] = (ragged, "float32")
    shapes |= {"index": ((), "int32"), "mask": ((), "float32")}
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), np.dtype(dtype))
        for name, (shape, dtype) in shapes.items()
    }


def example(
    source: Source,
    transform: transforms.Pipeline,
    index: int,
    rng: np.random.Generator | None,
    stored: tuple[str, ...] = (),
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """An example of a source, transformed and padded as `spec` says, and what is known of it.

    What is known: its `name`, the `size` `(h, w)` of its picture as stored, the `frame` that led
    from there to here, and `stored`: the fields of these names as they were.

    Raises:
        DataError: for an example that can't be read or is not what the source's fields say.
    """
    given = source[index]
    name = given.get("name", f"example {index}")
    changed = transform(given, rng, fields=source.info.fields)
    values: dict[str, np.ndarray] = {}
    for key, field in source.info.fields.items():
        value = np.asarray(changed[key], field.dtype)
        count = len(field.classes)
        if field.kind == "number" and count and not ((value >= 0) & (value < count)).all():
            raise DataError(f"{name} has label {value} of {count} classes")
        if field.most:
            if len(value) > field.most:
                raise DataError(f"{name} has {len(value)} {key}, more than {field.most}")
            mask = np.zeros(field.most, np.float32)
            mask[: len(value)] = 1
            padded = np.full((field.most, *value.shape[1:]), field.fill, field.dtype)
            padded[: len(value)] = value
            value, values[f"{key}_mask"] = padded, mask
        values[key] = value
    about = {"name": name, **{k: changed.get(k) for k in ("size", "frame")}}
    return values, about | ({"stored": {k: given[k] for k in stored}} if stored else {})


class Batches:
    """An iterator over batches as of `spec`, dicts of numpy arrays, with a state to resume from.

    `steps` is the number of batches, None where it is endless. `skipped` maps the name of each
    broken example met so far to what is wrong with it; reading ahead may fill it early. `about` has
    what is known of each example by its index, in an evaluation alone.
    """

    def __init__(
        self, dataset: grain.MapDataset, examples: "_Examples", threads: int, run: dict, steps
    ):
        self.steps: int | None = steps
        self.skipped: dict[str, str] = examples.skipped
        self.about: dict[int, dict[str, Any]] = examples.about
        self._run = run
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        self._iterator = iter(dataset.to_iter_dataset(options))

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def get_state(self) -> dict[str, int]:
        """Where the stream stands, in plain numbers fit for JSON."""
        return {"batches": self._iterator.get_state()["next_index"], **self._run}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues from `get_state()`; DataError where that was another stream."""
        for key, value in self._run.items():
            if state.get(key) != value:
                raise DataError(
                    f"the saved position in the data has {key} {state.get(key)} and this run has "
                    f"{value}; start anew or restore that setting"
                )
        self._iterator.set_state({"next_index": int(state["batches"])})


def train_batches(
    source: Source,
    transform: str | transforms.Pipeline,
    *,
    batch_size: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
    threads: int | None = None,
    on_error: str = "stop",
    balance: str = "",
) -> Batches:
    """Endless batches of `batch_size` for this `process` (index, count).

    Each epoch is shuffled anew by (seed, epoch) and random transforms draw from (seed, epoch,
    index), so neither threads, processes nor a resume change what is seen. A broken image raises
    DataError, or, with `on_error="skip"`, becomes zeros with mask 0.

    With `balance="sampler"` an epoch draws every class as often as any other, with repetitions;
    with "weights" the mask of an example is the mean size of a class over that of its own.
    """
    examples = _Examples(source, transform, on_error)
    size = len(source)
    index, count = _check(batch_size, process)
    if seed < 0:
        raise ConfigError(f"the seed is {seed} and cannot be negative")
    if batch_size * count > size:
        raise ConfigError(
            f"the global batch of {batch_size * count} is larger than the {size} training "
            f"examples; choose a batch of at most {size // count} for each process"
        )

    weights = class_weights(source) if balance else None
    shares = weights if balance == "sampler" else None
    orders = functools.lru_cache(maxsize=64)(lambda epoch: order(seed, epoch, size, shares))

    def load(position):  # in the endless stream
        epoch, place = divmod(position, size)
        index = int(orders(epoch)[place])
        row = examples.load(index, [1, seed, epoch, index] if examples.random else None)
        if balance == "weights":
            row = {**row, "mask": row["mask"] * weights[index]}
        return row

    # grain's own shuffle draws epoch e from seed + e, so that runs 0, 1, 2 would share epochs; it
    # is also slow on small sets
    stream = grain.MapDataset.range(ENDLESS).map(load)
    batches = stream[index::count].batch(batch_size, batch_fn=examples.stack)
    run = {"seed": seed, "global_batch": batch_size * count, "examples": size}
    return Batches(batches, examples, _threads(source, threads), run, None)


def order(seed: int, epoch: int, size: int, shares: np.ndarray | None = None) -> np.ndarray:
    """The examples `size` of an epoch of training: each once, or drawn in proportion to shares."""
    rng = np.random.default_rng([0, seed, epoch])
    if shares is None:
        return rng.permutation(size)
    return rng.choice(size, size, p=shares / shares.sum(dtype=np.float64))


def class_weights(source: Source) -> np.ndarray:
    """Of each example the mean size of a class over that of its own, float32.

    Raises:
        ConfigError: for a source whose labels are not known before its examples are read.
    """
    labels = getattr(source, "labels", None)
    if labels is None:
        raise ConfigError(
            "data.balance needs one label an image, known beforehand, which "
            f"{source.info.name!r} does not have"
        )
    counts = np.bincount(labels, minlength=1)
    return (len(labels) / np.count_nonzero(counts) / counts[labels]).astype(np.float32)


def rows(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The examples `batch_size` of a training step (from 0), as `train_batches` draws them."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, size)
    drawn = {int(e): order(seed, int(e), size) for e in np.unique(epochs)}
    return np.array([drawn[int(e)][p] for e, p in zip(epochs, places, strict=True)])


def eval_batches(
    source: Source,
    transform: str | transforms.Pipeline,
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
    threads: int | None = None,
    on_error: str = "stop",
    stored: tuple[str, ...] = (),
) -> Batches:
    """Every example once over all processes, in order; the rest of the last batches is padding.

    All processes yield the same number of batches. Random transforms are refused. The fields
    `stored` are told in `about` too, as they were before the transform.
    """
    examples = _Examples(source, transform, on_error, about=True, stored=stored)
    if examples.random:
        raise ConfigError(f"{transform!r} draws at random, which an evaluation must not")
    size = len(source)
    index, count = _check(batch_size, process)
    steps = -(-size // (batch_size * count))

    def load(position):
        return examples.load(position, None) if position < size else examples.padding()

    padded = grain.MapDataset.range(steps * batch_size * count).map(load)
    batches = padded[index::count].batch(batch_size, batch_fn=examples.stack)
    run = {"global_batch": batch_size * count, "examples": size}
    return Batches(batches, examples, _threads(source, threads), run, steps)


def prefetch(
    iterator: Iterator[dict], put: Callable[[dict], Any], depth: int = 2
) -> Iterator[tuple[Any, dict | None]]:
    """Yields (put(batch), the state after that batch), with up to `depth` batches put ahead.

    `put` moves a batch to the devices and should not wait for it. The state belongs to the batch
    it comes with, not to those read ahead, so that it may be saved after that batch's step. An
    error in reading is raised after the batches before it were given out.
    """
    if depth < 1:
        raise ConfigError(f"the prefetch depth is {depth} and must be at least 1")
    state = getattr(iterator, "get_state", lambda: None)
    ahead, error, more = deque(), None, True
    while True:
        while more and len(ahead) < depth:
            try:
                ahead.append((put(next(iterator)), state()))
            except StopIteration:
                more = False
            except DynadaptError as broken:
                more, error = False, broken
        if not ahead:
            break
        yield ahead.popleft()
    if error is not None:
        raise error


class _Examples:
    """Loads single examples and stacks them; keeps account of the broken ones."""

    def __init__(
        self,
        source: Source,
        transform: str | transforms.Pipeline,
        on_error: str,
        about: bool = False,
        stored: tuple[str, ...] = (),
    ):
        if on_error not in _MODES:
            raise ConfigError(f"on_error is {on_error!r} and must be 'stop' or 'skip'")
        if not len(source):
            raise DataError("the data set is empty")
        self.source, self.skip = source, on_error == "skip"
        self.transform = transforms.pipeline(transform) if isinstance(transform, str) else transform
        self.random = self.transform.random
        self.skipped: dict[str, str] = {}
        self.about: dict[int, dict[str, Any]] = {}
        self._tells, self._stored, self._lock = about, stored, threading.Lock()
        shapes = spec(source.info, self.transform, 1)
        self._shapes = {name: x.shape[1:] for name, x in shapes.items()}
        fills = {name: field.fill for name, field in source.info.fields.items()} | {"index": -1}
        self._blank = {
            name: np.full(x.shape[1:], fills.get(name, 0), x.dtype) for name, x in shapes.items()
        }

    def load(self, index: int, rng: list[int] | None) -> dict[str, np.ndarray]:
        generator = None if rng is None else np.random.default_rng(rng)
        number = {"index": np.int32(index)}
        try:
            values, about = example(self.source, self.transform, index, generator, self._stored)
            for name, value in values.items():
                if value.shape != self._shapes[name]:
                    raise DataError(
                        f"{about['name']} has {name} of shape {value.shape}, where "
                        f"{self.source.info.name!r} promised {self._shapes[name]}"
                    )
        except DataError as error:
            if not self.skip:
                raise
            self._note(index, str(error))
            return self._blank | number
        if self._tells:
            self.about[index] = about
        return values | number | {"mask": np.float32(1)}

    def padding(self) -> dict[str, np.ndarray]:
        return self._blank

    def stack(self, rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.stack([row[name] for row in rows]) for name in self._blank}

    def _note(self, index: int, message: str) -> None:
        try:
            name = self.source[index].get("name", f"example {index}")
        except DataError:
            name = f"example {index}"
        with self._lock:
            new = name not in self.skipped
            self.skipped[name] = message
        if new:
            logging.getLogger(__name__).warning("skipped %s: %s", name, message)


def _check(batch_size: int, process: tuple[int, int]) -> tuple[int, int]:
    index, count = process
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size} and must be at least 1")
    if not 0 <= index < count:
        raise ConfigError(f"process {index} is not one of {count}, counted from 0")
    return index, count


def _threads(source: Source, threads: int | None) -> int:
    """What was asked for; else none for arrays in memory, where threads only contend."""
    if threads is None:
        return 0 if getattr(source, "in_memory", False) else min(16, os.cpu_count() or 1)
    if threads < 0:
        raise ConfigError(f"the number of threads is {threads} and cannot be negative")
    return threads
