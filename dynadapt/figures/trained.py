"""A trained run, open on its evaluation split: what its model records of each image."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dynadapt import choices, data, inputs, model, sharding
from dynadapt.adapters.tadformer import FilteredLinear
from dynadapt.attach import adapted
from dynadapt.context import Context
from dynadapt.errors import DataError
from dynadapt.runs import product

Rows = dict[str, np.ndarray]
# Of a batch, what figures show beside what they look at.
SHOWN = ("image", "label")


class Spaced:
    """At most so many examples of a source, evenly spaced: of all classes where these have an
    order."""

    def __init__(self, source: data.Source, most: int):
        count = min(most, len(source))
        self.source, self.info = source, source.info
        self.places = np.linspace(0, len(source) - 1, count).round().astype(int)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.places[index])]


class TrainedRun:
    """The model of a run, and batches of its evaluation split; nothing is read before it is used.

    Args:
        folder: `adapter/` of the run.
        weights: where the backbone's weights lie now, if not where they lay in training.

    Raises:
        CheckpointError: for a damaged adapter, or another backbone than it was trained on.
        DataError: for a split that is not there.

    Attributes:
        kept: `kept(find)` is `find(run)`, computed once.
    """

    def __init__(self, folder: Path, weights: str = ""):
        self.folder, self.weights = folder, weights
        self.product = product.load(folder, weights)
        self.config, self.task = self.product.config, self.product.task
        self.mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
        self.kept = functools.cache(lambda find: find(self))

    @property
    def method(self) -> str:
        """Its name."""
        return choices.title(self.config.adapter.name)

    @property
    def state(self) -> tuple[Any, ...]:
        """What trained, statistics, and what is frozen."""
        return tuple(self.product.parts[1:])

    @functools.cached_property
    def split(self) -> inputs.Split:
        """The evaluation split."""
        return inputs.open_split(self.config, "eval", self.product.adapter.info.classes)

    def network(self, state: Any) -> model.Model:
        """The model with these values."""
        return nnx.merge(self.product.parts.graph, *state)

    def outputs(
        self, network: model.Model, batch: Any, ctx: Context, look: bool = False
    ) -> tuple[Any, dict[str, jax.Array]]:
        """What a model answers to a batch from the loader, and the batch as the task prepares it;
        on the device. `look` is that of `model.outputs`."""
        batch = inputs.prepared(self.task, batch, self.config, None, False)
        ctx = ctx.replace(mask=batch["mask"])
        return model.outputs(network, batch, ctx, self.task, self.config, {}, look=look), batch

    @functools.cached_property
    def tape(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of what the model records of one image, in that order."""
        order: list[str] = []  # a tree of shapes has its names sorted

        def look(state: Any, batch: Any) -> dict[str, jax.Array]:
            ctx = Context()
            self.outputs(self.network(state), batch, ctx)
            order.extend(ctx.tape)
            return dict(ctx.tape)

        found = jax.eval_shape(look, self.state, self.product.adapter.spec)
        return {name: found[name] for name in order}

    def recorded(self, name: str) -> list[str]:
        """What is recorded under this name, by several sites or stages: `name`, `name.2`, …"""
        return [n for n in self.tape if n.split(".")[0] == name]

    def sites(self, names: list[str]) -> dict[str, str]:
        """Which branch each of these records of blocks is of, as "attn", with its stage if several.

        Blocks record in the order of their branches, and stage after stage. Where tasks part, it is
        the layers that they part at.
        """
        backbone = self.network(self.state).backbone
        found = adapted(backbone)
        parting = [one for one in found if isinstance(one[1].adapter, FilteredLinear)]
        paths = [path.split("/") for path, _ in parting or found]
        hosts = list(dict.fromkeys(p[-1] for p in paths if "blocks" in p[:-2]))
        if not hosts or len(names) % len(hosts):
            return {name: name for name in names}
        part = "stage" if hasattr(backbone, "stages") else "part"
        parts = len(names) // len(hosts)
        prefix = [f"{part} {i} " if parts > 1 else "" for i in range(parts)]
        return dict(zip(names, (p + h for p in prefix for h in hosts), strict=True))

    def batches(self, most: int) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
        """Batches of at most so many examples, evenly spaced: on the host, and on the device."""
        split = self.split._replace(source=Spaced(self.split.source, most))
        for batch in inputs.eval_batches(self.config, split, self.mesh):
            yield batch, inputs.place(batch, self.mesh)

    def rows(self, look: Callable[[Any, Any], dict[str, jax.Array]], most: int) -> Rows:
        """What `look(state, batch)` tells of each example, `b …`, with its fields in `SHOWN`.

        Raises:
            DataError: where none of the examples can be read.
        """
        look, found = jax.jit(look), []
        with jax.set_mesh(self.mesh):
            for batch, placed in self.batches(most):
                there = batch["mask"] > 0
                values = jax.device_get(look(self.state, placed))
                values |= {k: batch[k] for k in SHOWN if k in batch}
                found.append({k: v[there] for k, v in values.items()})
        rows = {k: np.concatenate([f[k] for f in found]) for k in found[0]}
        if not len(next(iter(rows.values()))):
            raise DataError(f"none of the {most} examples can be read")
        return rows

    def tapes(self, names: list[str], most: int) -> Rows:
        """What is recorded under these names, of each example: `b l …`."""

        def look(state: Any, batch: Any) -> dict[str, jax.Array]:
            ctx = Context()
            self.outputs(self.network(state), batch, ctx)
            return {name: ctx.tape[name].swapaxes(0, 1) for name in names}

        return self.rows(look, most)

    def titles(self, rows: Rows) -> list[str]:
        """The class of each row, "" where there is none."""
        label, classes = rows.get("label"), self.product.adapter.info.classes
        if label is None or label.ndim > 1 or not classes:
            return [""] * len(next(iter(rows.values())))
        return [str(classes[int(n)]) for n in label]
