"""What `test_sharding.py` asks of a process with 8 CPU devices; prints one JSON document.

NPROC=32 XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.eight_devices JOB FOLDER
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dynadapt import config as configs
from dynadapt import evaluate, inputs, model, optim, sharding, step, tasks, train, tree
from dynadapt.commands.config_file import read_config
from dynadapt.main import main
from dynadapt.plans import compiled
from dynadapt.runs import product, workdir
from tests import stepping

TINY = str(Path(__file__).with_name("configs_tiny.py"))
STEPS = 20
MESHES = {"1": (1, 1), "8x1": (8, 1), "4x2": (4, 2), "1x8": (1, 8)}


def tiny(method="iconformer", **backbone):
    config = read_config(TINY, f"method={method},steps={STEPS}")
    config.backbone.update(dict(dim=64, heads=4, **backbone))
    if "rank" in config.adapter:
        config.adapter.rank = 16
    configs.check(config)
    return config


def run_steps(config, sizes):
    """Twenty real steps on a mesh: losses, what was moved, where the frozen leaves lie."""
    data, fsdp = sizes
    mesh = sharding.make_mesh(ConfigDict(dict(data=data, fsdp=fsdp)), jax.devices()[: data * fsdp])
    sharding.check_batch(config.input.batch_size, mesh, config.optim.accumulate)
    split = inputs.open_split(config, "train")
    task = tasks.from_config(config.task, split.source.info)
    parts = model.split(model.build(config, task, split.spec), config)
    graph, trained, stats, frozen = parts
    before = jax.device_get(frozen)
    nbytes = workdir.counts(trained, frozen)["trained_bytes"]
    optimizer = optim.make(config.optim, STEPS, trained, model.layers(config))
    state = step.initial_state(trained, stats, optimizer, config)
    state = sharding.put_whole(state, sharding.state(state, mesh))
    frozen = sharding.put_whole(frozen, sharding.frozen(frozen, mesh))
    key = jax.random.key(1)
    key = sharding.put_whole(key, sharding.replicated(key, mesh))
    stream = inputs.train_batches(config, split)
    losses = []
    with jax.set_mesh(mesh):
        first = inputs.place(next(stream), mesh)
        program = step.make_step(graph, task, optimizer, config)
        program = program.lower(state, frozen, first, key).compile()
        for _ in range(STEPS):
            state, logs = program(state, frozen, first, key)
            losses.append(float(logs["loss"]))
            first = inputs.place(next(stream), mesh)
    after = jax.device_get(frozen)
    shards = {p: [list(x.shape), list(x.addressable_shards[0].data.shape)]
              for p, x in tree.leaves(frozen).items()}  # fmt: skip
    return {
        "losses": losses,
        "moved": compiled.collectives(program.as_text()),
        "trained_bytes": nbytes,
        "frozen_bytes": tree.nbytes(before),
        "frozen_kept": all(
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
        ),
        "shards": shards,
        "trained_whole": all(
            x.sharding.is_fully_replicated for x in jax.tree.leaves(state["train"])
        ),
    }  # fmt: skip


def evaluations(folder):
    """Metrics and predictions of an adapter for several batch sizes, on all devices."""
    answers = {}
    for size in (1, 7, 64, 100):
        trained = product.load(folder)
        config, task, parts = trained.config, trained.task, trained.parts
        mesh = sharding.make_mesh(ConfigDict(dict(data=4, fsdp=2)))
        config.input.eval_batch_size = size
        split = inputs.open_split(config, "eval")
        kept = {"train": parts.train, "stats": parts.stats}
        kept = sharding.put_whole(kept, sharding.replicated(kept, mesh))
        frozen = sharding.put_whole(parts.frozen, sharding.frozen(parts.frozen, mesh))
        predicted = []

        def record(answer, row, predicted=predicted):
            predicted.append([int(row["index"]), int(answer["classes"][0])])

        with jax.set_mesh(mesh):
            values = evaluate.evaluate(
                evaluate.make_step(parts.graph, task, config), task, kept, frozen,
                inputs.eval_batches(config, split, mesh), mesh, record,
            )  # fmt: skip
        answers[size] = {"values": values, "predicted": predicted}
    return answers


def mistakes():
    """Exit codes and sentences of runs that do not fit 8 devices."""
    import contextlib
    import io

    answers = {}
    for name, options in {
        "batch": ["--config.input.batch_size=12"],
        "parts": ["--config.optim.accumulate=4"],
        "mesh": ["--config.mesh.data=3"],
        "remainder": ["--config.mesh.fsdp=3"],
    }.items():
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            code = main(["train", f"--config={TINY}", "--workdir=never", *options])
        answers[name] = [code, err.getvalue()]
    return answers


def stop_after(number):
    """Makes the run of this process end, as SIGTERM does, after so many steps."""
    real = train.make_step
    train.make_step = stepping.watched(real, stepping.killed_at(number))
    return real


def tasks_apart():
    """Loss and gradients of methods of several tasks on 8 devices and on one: the largest gap."""
    from flax import nnx

    from dynadapt import adapters
    from dynadapt.context import Context
    from tests import task_streams

    answers = {}
    for method in task_streams.METHODS:
        network = task_streams.network("swin", method)
        pick = adapters.trainable(adapters.trains(method))
        graph, *leaves = nnx.split(network, pick, nnx.BatchStat, ...)
        x = task_streams.images("swin", 8)

        def loss(trained, stats, frozen, x, graph=graph):
            outputs = nnx.merge(graph, trained, stats, frozen)(x, Context())
            return sum(jax.numpy.square(o).mean() for (o,) in outputs.values())

        gradient, found = jax.jit(jax.value_and_grad(loss)), []
        for count in (1, 8):
            mesh = sharding.make_mesh(devices=jax.devices()[:count])
            trained, stats, frozen = leaves
            given = [jax.device_put(v, sharding.replicated(v, mesh)) for v in (trained, stats)]
            given.append(jax.device_put(frozen, sharding.frozen(frozen, mesh)))
            with jax.set_mesh(mesh):
                found.append(gradient(*given, jax.device_put(x, sharding.batch(x, mesh))))
        one, eight = (jax.tree.leaves(jax.device_get(f)) for f in found)
        pairs = zip(one, eight, strict=True)
        answers[method] = max(float(abs(a - b).max() / max(abs(a).max(), 1e-3)) for a, b in pairs)
    return answers


def lent_matrix():
    """Gradients of a matrix that scanned layers are lent, on 8 devices and on one, and traffic."""
    import jax.numpy as jnp
    from flax import nnx

    from dynadapt.attach import Shared, each_device, lent
    from dynadapt.context import Context, fold

    class Layer(nnx.Module):
        def __init__(self, value):
            self.scale = nnx.Param(jnp.full(32, value))

        def __call__(self, x, ctx):
            y = each_device(ctx, lent(ctx, nnx.Linear), lambda shared, x: x @ shared.kernel[...], x)
            return x + jnp.tanh(self.scale[...].reshape(1, 1, -1) * y)

    class Layers(nnx.Module):
        def __init__(self):
            self.blocks = nnx.List([Layer(0.5 + n) for n in range(4)])

        def bare(self, x, ctx):
            return fold(self.blocks, x, ctx, scan=True, remat="full")

    def loss(shared, x):
        y = Shared(None, shared)(Layers(), x, Context(train=True))
        return jnp.square(y).mean()

    shared = nnx.Linear(32, 32, use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (16, 3, 32))
    found, moved = [], []
    for count in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:count])
        given = [jax.device_put(v, s(v, mesh)) for v, s in
                 ((shared, sharding.replicated), (x, sharding.batch))]  # fmt: skip
        with jax.set_mesh(mesh):
            program = jax.jit(jax.grad(loss)).lower(*given).compile()
        found.append(np.asarray(program(*given).kernel[...]))
        moved.append(compiled.collectives(program.as_text()))
    return {
        "apart": float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max()),
        "moved": moved,
        "bytes": found[0].nbytes,
    }


def everything(folder):
    steps = {
        name: run_steps(tiny("lora", scan=name == "4x2"), sizes) for name, sizes in MESHES.items()
    }
    answers = {"steps": steps, "mistakes": mistakes(), "devices": jax.device_count()}
    # The folder "one" was begun on one device; "eight" is begun here and ended there.
    argv = ["train", f"--config={TINY}:method=lora", "--config.mesh.data=4", "--config.mesh.fsdp=2"]
    answers["one"] = main([*argv, f"--workdir={folder / 'one'}"])
    answers["evaluations"] = evaluations(folder / "one" / "adapter")
    answers["tasks_apart"] = tasks_apart()
    answers["lent"] = lent_matrix()
    stop_after(5)
    answers["eight"] = main([*argv, f"--workdir={folder / 'eight'}"])
    return answers


def more_steps(folder):
    steps = {}
    for method in ("linear", "bitfit", "adaptformer", "full"):
        steps[f"4x2 {method}"] = run_steps(tiny(method, scan=True), MESHES["4x2"])
    for name, sizes in MESHES.items():
        steps[name] = run_steps(tiny(scan=name == "4x2"), sizes)
    steps["8x1 scan"] = run_steps(tiny(scan=True), MESHES["8x1"])
    steps["1x8 scan remat"] = run_steps(tiny(scan=True, remat=True), MESHES["1x8"])
    cut = tiny()
    cut.optim.accumulate = 2
    steps["1 parts"] = run_steps(cut, MESHES["1"])
    steps["8x1 parts"] = run_steps(cut, MESHES["8x1"])
    return {"steps": steps}


def lending(folder):
    """Methods of which all blocks share leaves: scanned on 8 devices, and on one."""
    return {
        method: {name: run_steps(tiny(method, scan=True), MESHES[name]) for name in ("1", "8x1")}
        for method in ("fact", "arc", "vfm_adapter", "adapter_x")
    }


if __name__ == "__main__":
    document, sys.stdout = sys.stdout, sys.stderr
    jobs = {"everything": everything, "more_steps": more_steps, "lending": lending}
    json.dump(jobs[sys.argv[1]](Path(sys.argv[2])), document)
