"""Batches for training and evaluation: sharded by process, shuffled, resumable (grain).

The stream of training examples is one for all processes: epoch after epoch, each epoch a new
permutation made of (seed, epoch). Batch `i` of process `p` of `P` takes the elements `p, p + P,
...`
of the `i`-th stretch of `P * batch_size`. So a batch may hold the end of one epoch and the start of
the next, no example is ever dropped, and a run may go on with another number of processes as long
as the global batch stays.
"""

import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from dynadapt.data import Source, transforms
from dynadapt.errors import ConfigError, DataError, DynadaptError

Transform = Callable[[dict, np.random.Generator | None], dict]
_MODES = ("stop", "skip")


class Batches:
    """An iterator over batches: dicts of numpy arrays, with a state to resume from.

    image uint8 `b h w 3`; label int32 `b`; index int32 `b`, the position in the split, -1 for
    padding; mask float32 `b`, 0 for padding and for images that were skipped.

    `steps` is the number of batches, None where it is endless. `skipped` maps the name of each
    broken image met so far to what is wrong with it; reading ahead may fill it early.
    """

    def __init__(
        self, dataset: grain.MapDataset, examples: "_Examples", threads: int, run: dict, steps
    ):
        self.steps: int | None = steps
        self.skipped: dict[str, str] = examples.skipped
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
    transform: str | Transform,
    *,
    batch_size: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
    threads: int | None = None,
    on_error: str = "stop",
) -> Batches:
    """Endless batches of `batch_size` for this `process` (index, count).

    Each epoch is shuffled anew by (seed, epoch) and random transforms draw from (seed, epoch,
    index), so neither threads, processes nor a resume change what is seen. A broken image raises
    DataError, or, with `on_error="skip"`, becomes zeros with mask 0.
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

    def load(position, _):  # position: in the endless stream
        epoch, place = divmod(position, size)
        index = int(order(seed, epoch, size)[place])
        return examples.load(index, [1, seed, epoch, index] if examples.random else None)

    # grain's own shuffle draws epoch e from seed + e, so that runs 0, 1, 2 would share epochs; it
    # is also slow on small sets
    stream = grain.MapDataset.range(size).repeat().map_with_index(load)
    batches = stream[index::count].batch(batch_size, batch_fn=examples.stack)
    run = {"seed": seed, "global_batch": batch_size * count, "examples": size}
    return Batches(batches, examples, _threads(source, threads), run, None)


@functools.lru_cache(maxsize=64)
def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order `size` of the examples in an epoch of training."""
    return np.random.default_rng([0, seed, epoch]).permutation(size)


def rows(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The examples `batch_size` of a training step (from 0), as `train_batches` draws them."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, size)
    return np.array([order(seed, int(e), size)[p] for e, p in zip(epochs, places, strict=True)])


def eval_batches(
    source: Source,
    transform: str | Transform,
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
    threads: int | None = None,
    on_error: str = "stop",
) -> Batches:
    """Every example once over all processes, in order; the rest of the last batches is padding.

    All processes yield the same number of batches. Random transforms are refused.
    """
    examples = _Examples(source, transform, on_error)
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

    def __init__(self, source: Source, transform: str | Transform, on_error: str):
        if on_error not in _MODES:
            raise ConfigError(f"on_error is {on_error!r} and must be 'stop' or 'skip'")
        if not len(source):
            raise DataError("the data set is empty")
        self.source, self.skip = source, on_error == "skip"
        self.transform = transforms.pipeline(transform) if isinstance(transform, str) else transform
        self.random = getattr(self.transform, "random", True)
        self.skipped: dict[str, str] = {}
        self._lock = threading.Lock()
        self._shape: tuple[int, ...] | None = None  # of any image, for zeros

    def load(self, index: int, rng: list[int] | None) -> dict[str, Any]:
        name = f"example {index}"
        try:
            example = self.source[index]
            name = example.get("name", name)
            classes = len(self.source.info.classes)
            if not 0 <= example["label"] < classes:
                raise DataError(f"{name} has label {example['label']} of {classes} classes")
            generator = None if rng is None else np.random.default_rng(rng)
            image = self.transform(example, generator)["image"]
        except DataError as error:
            if not self.skip:
                raise
            self._note(name, str(error))
            return {**self.padding(), "index": index}
        self._shape = image.shape
        return {"image": image, "label": example["label"], "index": index, "mask": 1.0}

    def padding(self) -> dict[str, Any]:
        return {"image": None, "label": 0, "index": -1, "mask": 0.0}

    def stack(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        shapes = {row["image"].shape for row in rows if row["image"] is not None}
        if len(shapes) > 1:
            raise ConfigError(
                f"images of one batch differ in shape, {' and '.join(map(str, sorted(shapes)[:2]))}"
                "; let the transform end in one size, such as resize(224)"
            )
        zeros = np.zeros(shapes.pop() if shapes else self._any_shape(), np.uint8)
        return {
            "image": np.stack([zeros if r["image"] is None else r["image"] for r in rows]),
            "label": np.array([r["label"] for r in rows], np.int32),
            "index": np.array([r["index"] for r in rows], np.int32),
            "mask": np.array([r["mask"] for r in rows], np.float32),
        }

    def _any_shape(self) -> tuple[int, ...]:
        """The shape of an image, for a batch that has none of its own."""
        for index in range(len(self.source)):
            if self._shape is not None:
                break
            self.load(index, [0])
        if self._shape is None:
            raise DataError(
                f"none of the {len(self.source)} images can be read, "
                f"the first for this reason: {next(iter(self.skipped.values()))}"
            )
        return self._shape

    def _note(self, name: str, message: str) -> None:
        with self._lock:
            new = name not in self.skipped
            self.skipped[name] = message
        if new:
            logging.getLogger(__name__).warning("skipped %s", message)


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
