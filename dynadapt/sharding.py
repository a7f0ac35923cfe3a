"""Device meshes, and where each array lives on them.

The batch is cut over both mesh axes; frozen block weights are cut over `fsdp` and gathered block by
block when they are used; what trains is on every device. So the only thing that crosses the data
axis in a training step is the gradient of the trained leaves.
"""

import functools
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dynadapt import tree
from dynadapt.errors import ConfigError

AXES = ("data", "fsdp")
DATA = types.SimpleNamespace(data=-1, fsdp=1)  # every device has all weights
BATCH = P(AXES)

# Ordered (path pattern, axis or None): the largest divisible dimension is cut over the axis.
FROZEN = (
    (r"(.*/)?blocks/\d+/.*", "fsdp"),
    (r".*", None),
)


# What a step changes is whole on every device, but for the numbers of a bad step's examples: to
# gather them would cost a small adapter a good part of its all-reduce.
STATE = (
    (r"bad/index", BATCH),
    (r".*", P()),
)


def shape(mesh: Any, devices: int) -> tuple[int, int]:
    """Sizes of the mesh axes on this number of devices; -1 takes what is left.

    Raises:
        ConfigError: if the product is not the number of devices.
    """
    sizes = [mesh.data, mesh.fsdp]
    if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
        raise ConfigError(
            f"mesh sizes must be positive, or -1 for one of them, not data={sizes[0]}, "
            f"fsdp={sizes[1]}"
        )
    if -1 in sizes and devices % -math.prod(sizes) == 0:
        sizes[sizes.index(-1)] = devices // -math.prod(sizes)
    if math.prod(sizes) != devices:
        raise ConfigError(
            f"mesh data={mesh.data}, fsdp={mesh.fsdp} does not fit {devices} "
            f"device{'s' if devices > 1 else ''}; use data=-1 for all that are left"
        )
    return sizes[0], sizes[1]


def make_mesh(mesh: Any = DATA, devices: list[Any] | None = None) -> Mesh:
    """The mesh of a config, or for data alone, over these devices (all of them by default)."""
    devices = jax.devices() if devices is None else devices
    grid = np.asarray(devices).reshape(shape(mesh, len(devices)))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(batch: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises a ConfigError if a batch, or a part of it, can't be cut evenly over the mesh."""
    devices = mesh.size
    if batch % (devices * accumulate):
        parts = f" x {accumulate} parts" if accumulate > 1 else ""
        raise ConfigError(
            f"batch size {batch} is not divisible by {devices} devices{parts}; "
            f"the nearest is {max(round(batch / (devices * accumulate)), 1) * devices * accumulate}"
        )


def check_dtype(dtype: str, mesh: Mesh) -> None:
    """Raises a ConfigError for a compute dtype that these devices have no products in."""
    if dtype == "float16" and mesh.devices.flat[0].platform == "cpu":
        raise ConfigError("a CPU does not compute in float16; use float32 or bfloat16")


def frozen(leaves: Any, mesh: Mesh, rules: tree.Rules = FROZEN) -> Any:
    """A sharding for each frozen leaf; packed matrices are cut and gathered as they are packed."""
    axes = {p: _first(rules, p) for p in tree.leaves(leaves)}

    def place(path: str, x: Any) -> NamedSharding:
        return NamedSharding(mesh, _cut(x.shape, axes[path], mesh))

    return tree.map_leaves(place, leaves)


def _first(rules: tree.Rules, path: str) -> Any:
    for pattern, axis in rules:
        if tree.matches(pattern, path):
            return axis
    raise ConfigError(f"no sharding rule covers {path!r}")


def _cut(shape: tuple[int, ...], axis: str | None, mesh: Mesh) -> P:
    """Cuts the largest dimension that the axis divides; small leaves stay whole."""
    parts = mesh.shape[axis] if axis else 1
    fitting = [n for n in shape if n % parts == 0]
    if parts == 1 or len(shape) < 2 or not fitting:
        return P()
    largest = shape.index(max(fitting))
    return P(*(axis if n == largest else None for n in range(len(shape))))


def replicated(leaves: Any, mesh: Mesh) -> Any:
    """The whole of each leaf on every device."""
    return jax.tree.map(lambda _: NamedSharding(mesh, P()), leaves)


def state(leaves: Any, mesh: Mesh) -> Any:
    """A sharding for each leaf of what a training step changes."""
    return tree.map_leaves(lambda path, _: NamedSharding(mesh, _first(STATE, path)), leaves)


def batch(leaves: Any, mesh: Mesh) -> Any:
    """Each leaf cut over both axes on its first dimension."""
    return jax.tree.map(lambda _: NamedSharding(mesh, BATCH), leaves)


def whole(values: Any) -> Any:
    """Inside a compiled function: the values whole on every device of the current mesh, if any.

    On sharded weights just before their use, this gathers them.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return values
    return jax.lax.with_sharding_constraint(values, P())


def copies(values: Any) -> Any:
    """Inside a compiled function: a copy for each device on a leading axis; None on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return None

    def each(x: Any) -> Any:
        x = jnp.broadcast_to(x[None], (mesh.size, *x.shape))
        return jax.lax.with_sharding_constraint(x, BATCH)

    return jax.tree.map(each, values)


def each_part(function: Callable[..., Any], copies: Any, *inputs: Any) -> Any:
    """`function(copy, *inputs)` of each device's own copy and its own part of inputs `b ...`."""
    parts = len(jax.tree.leaves(copies)[0])
    constrain = functools.partial(jax.lax.with_sharding_constraint, shardings=BATCH)
    inputs = [constrain(x.reshape(parts, -1, *x.shape[1:])) for x in inputs]
    found = jax.vmap(function)(copies, *inputs)
    return jax.tree.map(lambda y: constrain(constrain(y).reshape(-1, *y.shape[2:])), found)


def settled(values: Any) -> Any:
    """Inside a compiled function: the state that a step returns, where the next step wants it."""
    if jax.sharding.get_abstract_mesh().empty:
        return values
    constrain = jax.lax.with_sharding_constraint
    return tree.map_leaves(lambda path, x: constrain(x, _first(STATE, path)), values)


def put(values: Any, shardings: Any) -> Any:
    """Host arrays to the mesh; on several hosts each gives its own part of a batch."""
    if jax.process_count() == 1:
        return jax.device_put(values, shardings)
    return jax.tree.map(jax.make_array_from_process_local_data, shardings, values)


def put_whole(values: Any, shardings: Any) -> Any:
    """Arrays that every host has in full, to the mesh."""
    if jax.process_count() == 1:
        return jax.device_put(values, shardings)

    def place(x: Any, s: NamedSharding) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x), s))
        return jax.make_array_from_callback(x.shape, s, lambda i: np.asarray(x)[i])

    return jax.tree.map(place, values, shardings)


def local(x: jax.Array) -> np.ndarray:
    """This process's rows of an array that is cut on its first dimension."""
    if x.is_fully_addressable:
        return jax.device_get(x)
    shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
    return np.concatenate([s.data for s in shards])
