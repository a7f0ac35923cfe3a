"""The frozen prefix: tokens that enter the first block with anything to train, once an example.

What lies below that block answers the same to an image at every step. Where the transforms draw
nothing, its answers are kept: in memory, or above `IN_MEMORY` bytes in a file of the run's folder
that is used again only with the hash of all that made it.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dynadapt import config as configs
from dynadapt import inputs, model, sharding
from dynadapt.context import Context, split_map
from dynadapt.data import Info, loader, transforms
from dynadapt.data.fields import Field
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.files import read_json, sha256, whole, write_json, writing

IN_MEMORY = 1 << 30
# Of a run's folder: what is kept, and what it was made from.
TOKENS, ORIGIN = "prefix.bin", "prefix.json"
# Kinds of fields that a transform does not move.
_STILL = ("number", "rows")


def check(config: Any, split: inputs.Split, task: Any, network: model.Model) -> None:
    """Raises a ConfigError that lists why the prefix answers not the same at every step, or why it
    can't be kept."""
    backbone, info = network.backbone, split.source.info
    others = [n for n, f in info.fields.items() if n != "image" and f.kind not in _STILL]
    blocks = model.untouched(network, config)
    lowest = min(getattr(backbone, "levels", (blocks,)))
    reasons = {
        f"{config.backbone.name} is no plain ViT": not hasattr(backbone, "below"),
        "no block is frozen; say adapter.layers=k, for the last k": blocks == 0,
        f"the backbone answers a map of block {lowest}, which is frozen": lowest < blocks,
        f"input.train {config.input.train!r} draws at random": split.transform.random,
        "optim.drop_path drops branches below, too": config.optim.drop_path > 0,
        "the task mixes or changes images": not _leaves_images(config, split, task),
        f"the examples have {', '.join(others)} besides": bool(others),
        "input.on_error=skip may leave images out": config.input.on_error != "stop",
        "the run has several processes": jax.process_count() > 1,
    }
    if found := [why for why, holds in reasons.items() if holds]:
        raise ConfigError(*(f"input.keep_prefix can't be served: {why}" for why in found))


def _leaves_images(config: Any, split: inputs.Split, task: Any) -> bool:
    """Whether a training batch has its images as they were once the task prepared it."""
    same = False

    def look(batch: Any, key: Any) -> Any:
        nonlocal same
        same = task.prepare(batch, key, True).get("image") is batch.get("image")
        return 0

    jax.eval_shape(look, split.spec, jax.eval_shape(lambda: jax.random.key(0)))
    return same


def info_of(info: Info, shapes: dict[str, jax.ShapeDtypeStruct]) -> Info:
    """What the data are where arrays of these names, `b …`, stand in the place of images."""
    fields = {name: field for name, field in info.fields.items() if name != "image"}
    fields |= {n: Field("features", str(x.dtype), size=x.shape[1:]) for n, x in shapes.items()}
    return dataclasses.replace(info, fields=fields)


def make_look(graph: Any, config: Any) -> Any:
    """The function `look(train, stats, frozen, batch)` to `leading`, `b p d`, and `patches`,
    `b h w d`."""

    def look(train: Any, stats: Any, frozen: Any, batch: Any) -> dict[str, Any]:
        network = nnx.merge(graph, train, stats, frozen)
        images = inputs.normalised(batch, config)["image"].astype(config.compute.dtype)
        ctx = Context(train=True, frozen=model.untouched(network, config))
        leading, patches = split_map(*network.backbone.below(images, ctx))
        return {"leading": leading, "patches": patches}

    return look


def kept(
    config: Any, split: inputs.Split, graph: Any, state: Any, frozen: Any, mesh: Any, folder: Path,
    origin: dict[str, str],
) -> inputs.Split:  # fmt: skip
    """The split with what enters the first trained block in the place of images.

    Args:
        config: checked by `check`, too.
        split: of training.
        graph: of the model.
        state: of the run, with `train` and `stats`.
        frozen: all else of the model.
        mesh: of the devices.
        folder: of the run.
        origin: hashes of weights and data.
    """
    look, leaves = make_look(graph, config), (state["train"], state["stats"], frozen)
    shapes = jax.eval_shape(look, *leaves, split.spec)
    sizes = [math.prod(x.shape[1:]) for x in shapes.values()]
    dtype, count = next(iter(shapes.values())).dtype, len(split.source)
    rows = (count, sum(sizes))
    file = folder / TOKENS if math.prod(rows) * dtype.itemsize > IN_MEMORY else None

    def fill(tokens: np.ndarray) -> None:
        run, size = jax.jit(look), config.input.batch_size
        batches = loader.eval_batches(split.source, split.transform, batch_size=size)
        for batch in batches:
            answer = run(*leaves, inputs.place(batch, mesh))
            flat = [sharding.local(v).reshape(size, -1) for v in answer.values()]
            real = batch["mask"] > 0
            tokens[batch["index"][real]] = np.concatenate(flat, axis=1)[real]

    if file is None:
        tokens = np.empty(rows, dtype)
        fill(tokens)
    else:
        made = {**origin, "config": configs.digest(config), "jax": jax.__version__}
        key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        if not _is_whole(folder, key):
            with writing(folder), whole(file) as partial:
                fill(np.memmap(partial, dtype, "w+", shape=rows))
            write_json(folder / ORIGIN, {"made_from": key, "sha256": sha256(file)})
        tokens = np.memmap(file, dtype, "r", shape=rows)
    source = KeptPrefix(split.source, tokens, shapes)
    still = transforms.pipeline("")
    return inputs.Split(source, still, loader.spec(source.info, still, config.input.batch_size))


def drop(folder: Path) -> None:
    """Removes what a run kept; a finished one has no use for it."""
    for name in (TOKENS, ORIGIN):
        (folder / name).unlink(missing_ok=True)


def _is_whole(folder: Path, key: str) -> bool:
    """Whether the file of a folder was made from the same, and is as it was written."""
    try:
        known = read_json(folder / ORIGIN)
        return known == {"made_from": key, "sha256": sha256(folder / TOKENS)}
    except (CheckpointError, OSError):
        return False


class KeptPrefix:
    """A source whose examples have `leading` and `patches` in the place of `image`.

    All else of an example is read once and held in memory.
    """

    in_memory = True

    def __init__(self, source: Any, tokens: np.ndarray, shapes: dict[str, Any]):
        self._source, self._tokens, self._shapes = source, tokens, shapes
        self._others: dict[int, dict[str, Any]] = {}
        self.info = info_of(source.info, shapes)
        self.labels = getattr(source, "labels", None)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._others:
            given = self._source[index]
            self._others[index] = {k: v for k, v in given.items() if k != "image"}
        found, start = dict(self._others[index]), 0
        for name, x in self._shapes.items():
            size = math.prod(x.shape[1:])
            found[name] = self._tokens[index, start : start + size].reshape(x.shape[1:])
            start += size
        return found
