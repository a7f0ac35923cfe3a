"""Device meshes, and where each array lives on them.

The batch is cut over both mesh axes; frozen block weights are cut over `fsdp` and gathered block by
block when they are used; what trains is on every device. So the only thing that crosses the data
axis in a training step is the gradient of the trained leaves.
"""

import contextlib
import json
import math
import os
import re
import socket
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dynadapt import tree
from dynadapt.errors import ConfigError, MachineError

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


def frozen(leaves: Any, mesh: Mesh, rules: tree.Rules = FROZEN) -> Any:
    """A sharding for each frozen leaf."""
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


def start_processes() -> None:
    """Joins the processes of a pod or cluster where `DYNADAPT_DISTRIBUTED` is set; else does
    nothing.

    `DYNADAPT_DISTRIBUTED=1` lets JAX find the others (TPU pods, Slurm, Kubernetes);
    `DYNADAPT_DISTRIBUTED=host:port,count,number` names them. `DYNADAPT_TIMEOUT` is how long one
    waits for the others, in seconds (300).

    Raises:
        MachineError: if not all processes report in time.
    """
    text = os.environ.get("DYNADAPT_DISTRIBUTED", "")
    if text in ("", "0") or jax.distributed.is_initialized():
        return
    timeout = os.environ.get("DYNADAPT_TIMEOUT", "300")
    if not timeout.isdecimal():
        raise MachineError(f"DYNADAPT_TIMEOUT must be whole seconds, not {timeout!r}")
    given: dict[str, Any] = {}
    if text != "1":
        found = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", text)
        if not found:
            raise MachineError(
                f"DYNADAPT_DISTRIBUTED must be 1 or host:port,count,number, not {text!r}"
            )
        given = dict(
            coordinator_address=found[1],
            num_processes=int(found[2]),
            process_id=int(found[3]),
        )
        meet(found[1], int(found[2]), int(found[3]), int(timeout))
    # Without it, the processes of CPU machines can't talk to each other.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(initialization_timeout=int(timeout), **given)
    except Exception as error:
        raise MachineError(
            f"not all hosts reported within {timeout} s; start the same command on every one "
            f"(--worker=all): {str(error).splitlines()[0]}"
        ) from error


def meet(address: str, count: int, number: int, timeout: int) -> None:
    """Waits for all processes; JAX itself would end a process that waits in vain without a word.

    Raises:
        MachineError: that names the processes that are missing after `timeout` seconds.
    """
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + timeout
    try:
        if number == 0:
            missing = _receive(int(port), count, deadline)
        else:
            missing = _report(host, int(port), number, deadline, timeout)
    except OSError as error:
        raise MachineError(f"the processes cannot meet at {address}: {error}") from error
    if missing:
        raise MachineError(
            f"processes {missing} did not report within {timeout} s; start the same command on "
            "every host (--worker=all)"
        )


def _receive(port: int, count: int, deadline: float) -> list[int]:
    """Process 0: collects the others, and tells them and the caller which are missing."""
    guests: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        while len(guests) < count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError, ValueError):
                guest = stack.enter_context(server.accept()[0])
                guest.settimeout(left)
                guests[int(guest.recv(16))] = guest
        missing = sorted({*range(1, count)} - {*guests})
        for guest in guests.values():
            guest.sendall(json.dumps(missing).encode())
            guest.recv(1)  # the guest closes first, so that this port is free at once
    return missing


def _report(host: str, port: int, number: int, deadline: float, timeout: int) -> list[int]:
    """Another process: reports to process 0 and hears which ones are missing."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.settimeout(timeout)
                connection.sendall(str(number).encode())
                if answer := connection.recv(4096):
                    return json.loads(answer)
        except OSError:
            time.sleep(0.1)
    return [0]


def local(x: jax.Array) -> np.ndarray:
    """This process's rows of an array that is cut on its first dimension."""
    if x.is_fully_addressable:
        return jax.device_get(x)
    shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
    return np.concatenate([s.data for s in shards])


def gather_rows(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of all processes, which must have equally many."""
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    every = multihost_utils.process_allgather(rows)
    return {k: v.reshape(-1, *v.shape[2:]) for k, v in every.items()}


def any_process(flag: bool) -> bool:
    """Whether the flag is set in one process at least; all must ask."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def agree(text: str) -> None:
    """Raises a MachineError unless every process holds the same text (a config's digest)."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    own = np.frombuffer(bytes.fromhex(text), np.uint8)
    everyone = multihost_utils.process_allgather(own)
    strangers = [i for i, other in enumerate(everyone) if (other != everyone[0]).any()]
    if strangers:
        raise MachineError(f"processes {strangers} run another config than process 0")
