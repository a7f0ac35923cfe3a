"""What a run will be, before it runs: sites, parameters, memory, FLOPs and what crosses the
network.

The whole training step is compiled, for the devices here or for machines that aren't here.
"""

from typing import Any

import jax

from dynadapt import attach, choices, inputs, model, optim, sharding, tasks, tree
from dynadapt import config as configs
from dynadapt.plans import compiled, machines
from dynadapt.runs import workdir
from dynadapt.runs.journal import show_table, size_text
from dynadapt.runs.speed import matmul_flops
from dynadapt.step import initial_state, make_step
from dynadapt.train import training_steps


def run(config: Any, topology: str | None = None) -> dict[str, Any]:
    """The plan of a config; nothing is read but the data's first example, nothing is written.

    Args:
        config: a complete config.
        topology: a machine that isn't here, such as `v5litepod-16`, `v5e:4x4` or `h100`; None for
            the devices here.

    Returns:
        `input` (lines on what the backbone sees), `sites`, `trainable` rows, `counts`, `memory` in
        bytes a device, `flops` of a step, `collectives` in bytes, `fits`: true, false, or None
        where the memory isn't known; where it is, also what `largest_batch` estimates.

    Raises:
        ConfigError, DataError, MachineError: as training would, or where the compiler is missing.
    """
    configs.check(config)
    config = configs.resolve(config)
    mesh = sharding.make_mesh(config.mesh, machines.devices(topology))
    sharding.check_batch(config.input.batch_size, mesh, config.optim.accumulate)
    sharding.check_dtype(config.compute.dtype, mesh)
    split = inputs.open_split(config, "train")
    tested = inputs.open_split(config, "eval", split.source.info.classes)
    task = tasks.from_config(config.task, split.source.info)
    backbone = model.abstract(config, task, split.spec).backbone
    model.features(backbone, tested.spec)  # raises where the evaluated size can't be served
    steps = training_steps(config, len(split.source))
    seen = inputs.described(config, split, model.features(backbone, split.spec))
    return {"input": seen} | of_step(config, task, steps, split.spec, mesh, topology)


def of_step(
    config: Any, task: Any, steps: int, spec: model.Batch, mesh: Any, topology: str | None
) -> dict[str, Any]:
    """The plan of a training step on batches of these shapes, as `run` returns it.

    Args:
        config: checked.
        task: what is trained.
        steps: length of the training.
        spec: shapes of a batch, as of `data.loader.spec`.
        mesh: over devices here or of the topology.
        topology: whose memory the step must fit; None for the devices here.
    """
    network = model.abstract(config, task, spec)
    sites = site_rows(network)
    graph, train, stats, frozen = model.split(network, config)
    optimizer = optim.make(config.optim, steps, train, model.layers(config))
    step = make_step(graph, task, optimizer, config)
    args = arguments(config, spec, train, stats, frozen, optimizer, mesh)
    result = {
        "backbone": config.backbone.name,
        "method": choices.title(config.adapter.name),
        "settings": dict(model.named(config, network.backbone).adapter),
        "machine": topology or f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "mesh": dict(mesh.shape),
        "batch_size": config.input.batch_size,
        "sites": sites,
        "trainable": [
            dict(zip(("group", "leaves", "shape", "parameters", "bytes"), row, strict=True))
            for row in tree.table(train)
        ],
        "counts": workdir.counts(train, frozen),
        "flops": matmul_flops(step, *args),
    }
    with jax.set_mesh(mesh):
        lowered = step.lower(*args)
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error).lower():
                raise
            return {**result, "fits": False, "reason": _reason(str(error))}
    memory = memory_rows(program.memory_analysis(), args)
    result["memory"] = memory
    result["collectives"] = compiled.collectives(program.as_text())
    limit = machines.memory(topology) if topology else None
    if limit is None:
        return {**result, "fits": None}
    parts = mesh.size * config.optim.accumulate
    largest = largest_batch(memory, config.input.batch_size, limit, parts)
    return {**result, "fits": memory["total"] <= limit, "largest_batch": largest}


def site_rows(network: Any) -> list[dict[str, Any]]:
    """One row for each group of adapted modules: where, how many, which adapter, its parameters."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path, host in attach.adapted(network):
        key = (tree.group(path), type(host.adapter).__name__)
        row = rows.setdefault(key, {"site": key[0], "adapter": key[1], "hosts": 0, "parameters": 0})
        row["hosts"] += 1
        row["parameters"] += tree.size(host.adapter)
    return list(rows.values())


def arguments(
    config: Any, spec: model.Batch, train: Any, stats: Any, frozen: Any, optimizer: Any, mesh: Any
) -> tuple[Any, Any, Any, Any]:
    """Abstract arguments of the step, each with its place on the mesh."""
    state = jax.eval_shape(lambda t, s: initial_state(t, s, optimizer, config), train, stats)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return (
        _placed(state, sharding.state(state, mesh)),
        _placed(frozen, sharding.frozen(frozen, mesh)),
        _placed(spec, sharding.batch(spec, mesh)),
        _placed(key, sharding.replicated(key, mesh)),
    )


def _placed(values: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values, places
    )


def memory_rows(analysis: Any, args: tuple) -> dict[str, int]:
    """Bytes a device: the frozen and trained leaves, optimizer, batch, temporaries, and in all."""
    state, frozen, batch, _ = args
    return {
        "frozen": _device_bytes(frozen),
        "trained": _device_bytes([state["train"], state["stats"], state.get("ema", ())]),
        "optimizer": _device_bytes(state["opt"]),
        "batch": _device_bytes(batch),
        "temporaries": analysis.temp_size_in_bytes,
        "total": analysis.argument_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes,
    }


def largest_batch(memory: dict[str, int], batch: int, limit: int, parts: int) -> int:
    """An estimate of the examples a step for which 95 % of `limit` bytes a device are enough.

    Temporaries are taken to grow as the batch does, those that don't among them: of a small batch
    the estimate is low. The rest is for what compilers pad.

    Args:
        memory: of `batch` examples, as of `memory_rows`.
        batch: examples a step.
        limit: bytes of one device.
        parts: of equal size, that a batch is cut into: the answer is a multiple.
    """
    grows = memory["temporaries"] + memory["batch"]
    found = batch * (95 * limit // 100 - memory["total"] + grows) // grows
    return max(found, 0) // parts * parts


def _device_bytes(values: Any) -> int:
    """Bytes that one device holds of these leaves."""
    shards = [
        jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)
        for x in jax.tree.leaves(values)
    ]
    return tree.nbytes(shards)


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "memory" in line.lower()]
    return (lines or text.splitlines())[0][:300]


def show(result: dict[str, Any]) -> None:
    """Prints the plan."""
    for line in result.get("input", ()):
        print(line)
    settings = ", ".join(f"{k} {v}" for k, v in result["settings"].items() if k != "name")
    print(f"method {result['method']}: {settings or 'no settings'}")
    sites = [[r["site"], r["adapter"], r["hosts"], r["parameters"]] for r in result["sites"]]
    if sites:
        show_table("adapted sites", ["site", "adapter", "hosts", "parameters"], sites)
    rows = [
        [r["group"], r["leaves"], r["shape"], r["parameters"], size_text(r["bytes"])]
        for r in result["trainable"]
    ]
    show_table("trainable", ["group", "leaves", "shape", "parameters", "bytes"], rows)
    c = result["counts"]
    share = 100 * c["trained"] / c["backbone"]
    print(
        f"trained {c['trained']:,} ({share:.3f} % of the backbone's {c['backbone']:,}), "
        f"{c['trained_with_head']:,} with head, {size_text(c['trained_bytes'])}"
    )
    mesh = ", ".join(f"{k}={v}" for k, v in result["mesh"].items())
    print(f"machine {result['machine']}  mesh {mesh}  batch {result['batch_size']}")
    print(f"matrix products {result['flops'] / 1e9:,.1f} GFLOP a step, all devices")
    if "memory" in result:
        rows = [[k, size_text(v)] for k, v in result["memory"].items()]
        show_table("memory of one device, as compiled", ["what", "bytes"], rows)
        moved = result["collectives"].items()
        print("moved a step: " + (", ".join(f"{k} {size_text(v)}" for k, v in moved) or "nothing"))
    if result["fits"] is not None:
        print("it fits" if result["fits"] else f"it does NOT fit: {result.get('reason', '')}")
        if not result["fits"]:
            print("try --config.backbone.remat=full, --config.compute.frozen_dtype=nf4,")
            print("--config.optim.accumulate=2, or a smaller batch")
    if result.get("largest_batch"):
        print(f"about the largest batch that fits: {result['largest_batch']:,}")
