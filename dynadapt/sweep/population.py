"""Many runs of one model in one program: seed, rates and scale are arguments, not constants.

The trained leaves and the optimizer's state of k cells have a leading axis; there is one copy of
the frozen half. Letters: `k` cells, `m` examples in memory, `b` batch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from dynadapt import evaluate, model, optim, sharding
from dynadapt.step import best, initial_state, pure_step

Array = jax.Array
# What differs between the cells of one program, besides the seed: values in `hyper`, `k` each.
TRACED = ("lr", "weight_decay", "drop_path", "scale", "steps", "classes")


class Population:
    """The programs that train and evaluate k cells of one method; compiled once for all cells.

    Args:
        config: of any of the cells, checked.
        task: with as many classes as the cell that has most.
        spec: shapes of a batch of one cell, as of `data.loader.spec`.
        bare: the backbone with its weights, which no cell changes; None for shapes alone.
        size: k; over several devices it is cut where they divide it.
        devices: those of this process where none are given.
    """

    def __init__(
        self,
        config: Any,
        task: Any,
        spec: model.Batch,
        bare: nnx.Module | None,
        size: int,
        devices: list[Any] | None = None,
    ):
        self.config, self.task, self.spec, self.size = config, task, spec, size
        self._bare, self._starts = bare, {}
        self.graph, train, stats, frozen = self._split(config.seed)
        self.shapes, self.moved = jax.eval_shape(lambda: (train, stats))
        mesh = sharding.make_mesh(devices=devices or jax.local_devices())
        axis = PartitionSpec(sharding.AXES) if size % mesh.size == 0 else PartitionSpec()
        self._cut, self._whole = NamedSharding(mesh, axis), NamedSharding(mesh, PartitionSpec())
        self.frozen = frozen if bare is None else jax.device_put(frozen, self._whole)
        train_one = pure_step(self.graph, task, self.optimizer, config)
        test_one = evaluate.pure_step(self.graph, task, config)

        def step(state, frozen, data, rows, key, hyper):
            ones = jnp.ones(rows.shape, jnp.float32)
            batch = {name: x[rows] for name, x in data.items()}
            return train_one(state, frozen, {**batch, "index": rows, "mask": ones}, key, hyper)

        def test(kept, frozen, batch, hyper):
            return test_one(kept, frozen, batch, hyper)[0]

        def start(train, stats, hyper):
            return initial_state(train, stats, self.optimizer(hyper), config)

        # One cell fills the products of a CPU; vmapped, its activations no longer fit the caches.
        platforms = {device.platform for device in mesh.devices.flat}
        several = _looped if mesh.size == 1 and platforms == {"cpu"} else jax.vmap
        # Answers lie as arguments do, so that each program is compiled once.
        lies = dict(out_shardings=self._cut)
        many = several(step, (0, None, None, 0, 0, 0))
        self.step_program = jax.jit(many, donate_argnums=0, **lies)
        self.test_program = jax.jit(several(test, (0, None, None, 0)), **lies)
        self._start = jax.vmap(start)

    def _split(self, seed: int) -> model.Parts:
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        if self._bare is None:
            return model.split(model.abstract(config, self.task, self.spec), config)
        return model.split(model.build(config, self.task, self.spec, self._bare), config)

    def optimizer(self, hyper: dict[str, Array]) -> Any:
        """The optimizer for the rate, the decay and the number of steps in `hyper`."""
        return optim.traced(self.config.optim, hyper, self.shapes, model.layers(self.config))

    def hyper(self, cells: Sequence[dict[str, float]]) -> dict[str, Array]:
        """The values of k cells, for the programs."""
        names = [name for name in TRACED if name in cells[0]]
        values = {n: np.array([c[n] for c in cells], np.float32) for n in names}
        return jax.device_put(values, self._cut)

    def keys(self, seeds: Sequence[int]) -> Array:
        """The random keys of k cells, those of `train` with these seeds."""
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), 3) for seed in seeds])
        return jax.device_put(keys, self._cut)

    def start(self, seeds: Sequence[int], hyper: dict[str, Array]) -> Any:
        """The state of k cells before their first step."""
        for seed in seeds:
            if seed not in self._starts:
                self._starts[seed] = self._split(seed)[1:3]
        starts = (self._starts[seed] for seed in seeds)
        train, stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        return self.put(self._start(train, stats, hyper))

    def arguments(self, names: Sequence[str], examples: int) -> tuple[Any, ...]:
        """Shapes of what `step_program` takes, in their places, to compile it without arrays.

        Args:
            names: of the values in `hyper`.
            examples: how many there are in memory.
        """
        k, like = self.size, jax.ShapeDtypeStruct
        kept = jax.tree.map(lambda x: like((k, *x.shape), x.dtype), (self.shapes, self.moved))
        hyper = {name: like((k,), jnp.float32) for name in names}
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), k))
        rows = like((k, self.config.input.batch_size), jnp.int32)
        data = {n: like((examples, *x.shape[1:]), x.dtype) for n, x in self.spec.items()}
        for name in ("index", "mask"):
            del data[name]
        places = (self._cut, self._whole, self._whole, *[self._cut] * 3)
        values = jax.eval_shape(self._start, *kept, hyper), self.frozen, data, rows, keys, hyper
        return tuple(
            jax.tree.map(lambda x, place=place: like(x.shape, x.dtype, sharding=place), value)
            for value, place in zip(values, places, strict=True)
        )

    def put(self, state: Any) -> Any:
        """A state of k cells on the devices."""
        return jax.device_put(state, self._cut)

    def put_data(self, data: dict[str, np.ndarray]) -> dict[str, Array]:
        """The fields of training examples, `m …` each, on every device."""
        return jax.device_put(data, self._whole)

    def step(
        self, state: Any, data: dict[str, Array], rows: np.ndarray, keys: Array, hyper: Any
    ) -> tuple[Any, dict[str, Array]]:
        """One step of every cell on its own examples `k b`: the states and logs `k`."""
        rows = jax.device_put(rows.astype(np.int32), self._cut)
        return self.step_program(state, self.frozen, data, rows, keys, hyper)

    def evaluate(self, state: Any, batches: Iterable[Any], hyper: Any) -> list[dict[str, float]]:
        """The metrics of each cell over all batches; the loss is NaN where features are."""
        parts, index, mask = [], [], []
        for batch in batches:
            placed = jax.device_put(batch, self._whole)
            parts.append(self.test_program(best(state), self.frozen, placed, hyper))
            index.append(batch["index"])
            mask.append(batch["mask"])
        index, mask, parts = np.concatenate(index), np.concatenate(mask), jax.device_get(parts)
        rows = {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}
        cells = []
        for i in range(self.size):
            own = evaluate.in_order({k: v[i] for k, v in rows.items()}, index, mask)
            fine = own.pop(model.FINITE).all()
            cells.append({**self.task.value(own), **({} if fine else {"loss": math.nan})})
        return cells


def _looped(fn: Callable[..., Any], in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """What `jax.vmap` answers, one cell after another in one program."""

    def run(*args: Any) -> Any:
        own = [arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0]

        def one(cell: list[Any]) -> Any:
            left = iter(cell)
            return fn(
                *(next(left) if a == 0 else arg for arg, a in zip(args, in_axes, strict=True))
            )

        return jax.lax.map(one, own)

    return run
