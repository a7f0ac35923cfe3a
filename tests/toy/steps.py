"""Training steps of the toy on meshes; prints one JSON document.

NPROC=32 XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.toy.steps
"""

import json
import sys

import jax
from ml_collections import ConfigDict

from dynadapt import config as configs
from dynadapt import inputs, model, optim, sharding, tasks, tree
from dynadapt.commands.config_file import read_config
from dynadapt.step import best, initial_state, make_step
from tests.toy import command

CONFIG = str(command.HERE / "config.py")
MESHES = {"1": (1, 1), "8x1": (8, 1), "4x2": (4, 2)}


def taken(config, count, sizes=(1, 1)):
    """Some steps of a config on a mesh: losses, and what is kept at the end."""
    configs.check(config)
    axes = ConfigDict(dict(zip(("data", "fsdp"), sizes, strict=True)))
    mesh = sharding.make_mesh(axes, jax.devices()[: sizes[0] * sizes[1]])
    sharding.check_batch(config.input.batch_size, mesh, config.optim.accumulate)
    split = inputs.open_split(config, "train")
    task = tasks.from_config(config.task, split.source.info)
    network = model.build(config, task, split.spec)
    graph, train, stats, frozen = model.split(network, config)
    optimizer = optim.make(config.optim, count, train, model.layers(config))
    state = initial_state(train, stats, optimizer, config)
    state = sharding.put_whole(state, sharding.state(state, mesh))
    frozen = sharding.put_whole(frozen, sharding.frozen(frozen, mesh))
    key = jax.random.key(1)
    key = sharding.put_whole(key, sharding.replicated(key, mesh))
    step, losses = make_step(graph, task, optimizer, config), []
    stream = inputs.train_batches(config, split)
    with jax.set_mesh(mesh):
        for _ in range(count):
            state, logs = step(state, frozen, inputs.place(next(stream), mesh), key)
            losses.append(float(logs["loss"]))
    return losses, tree.leaves(jax.device_get(best(state)))


def on_meshes():
    """Losses and statistics on one and on eight devices, some examples broken."""
    found = {"devices": jax.device_count()}
    for name, sizes in MESHES.items():
        for norm in (True, False):
            config = read_config(CONFIG, f"broken=5,norm={norm}")
            losses, kept = taken(config, 6, sizes)
            moved = {p: x.tolist() for p, x in kept.items() if p.startswith("stats/")}
            found[f"{name} {norm}"] = {"losses": losses, "moved": moved}
    return found


if __name__ == "__main__":
    document, sys.stdout = sys.stdout, sys.stderr
    with command.registered():
        json.dump(on_meshes(), document)
