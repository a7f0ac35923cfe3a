"""What several tasks cost in one pass: a training step of all beside steps of each alone, and what
each further task adds to the backbone's pass.

By the equations of `mtlora` and `tadformer` frozen weights see what tasks share, once. A task adds

    low rank   B A x_t at proj, fc1 and fc2 of a stage's last block
    filters    the layer that makes a kernel of the mean of A x_t (tadformer)
    merging    its stream through the frozen reduction at a stage's end, on a Swin
    prompts    a token more in every window of every block, and its scores (tadformer)

Counted are matrix products and convolutions, as they are traced; the sums of a depth-wise filter's
products are not among them.
"""

import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import model, optim, sharding
from dynadapt.adapters import mtlora
from dynadapt.bench import cases
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.plans import machines, plan
from dynadapt.runs.speed import matmul_flops
from dynadapt.step import make_step

# As published on PASCAL-Context.
CLASSES, SIDE = 21, 448
PARTS = ("low rank", "filters", "merging", "prompts")


def run(backbone: str, methods: list[str], batch: int, topology: str | None) -> dict[str, Any]:
    """Traces training steps of the published four tasks on images of 448 pixels.

    Nothing is allocated, and without a topology nothing is compiled.

    Args:
        backbone: a variant.
        methods: names of methods, or `all`.
        batch: images of a step, on one device.
        topology: as of `plan`, to compile for one of its chips in bfloat16, blocks rematerialised;
            None for float32.

    Returns:
        A row a method, as of `measured`; or its `reason` where it can't serve the backbone.

    Raises:
        ConfigError: for a backbone that takes no images.
    """
    cases.side(backbone)  # one that takes no images is answered here
    device = machines.devices(topology)[0] if topology else jax.devices()[0]
    mesh = sharding.make_mesh(devices=[device])

    def measure(method: str) -> dict[str, Any]:
        made = cases.config(backbone, method, batch, "several")
        made.backbone.image_size = SIDE
        if topology:
            made = cases.on_accelerators(made)
        return measured(made, mesh, topology)

    return dict(machine=topology or "traced", rows=cases.rows(backbone, methods, batch, measure))


def measured(config: Any, mesh: Any, topology: str | None = None) -> dict[str, Any]:
    """What the tasks of a config cost.

    Args:
        config: resolved, of the task `several`.
        mesh: of one device.
        topology: whose chip that is; None to compile nothing.

    Returns:
        `step`, GFLOP of a training step of all tasks, `alone`, of steps of each alone added up, and
        `of_alone`, the one over the other in percent; `pass`, of the adapted backbone's pass of all
        tasks, `more`, those of it that tasks after the first add, and of these each of `PARTS` by
        the equations. With a topology also `mib`, memory of the step of all, and `alone_mib`, of
        the one alone that has the most FLOPs.
    """
    names = tuple(config.task.tasks)
    given = [_of(config, some) for some in (names, *((name,) for name in names))]
    whole, *alone = (_flops(one, mesh) for one in given)
    row = dict(step=_giga(whole), alone=_giga(sum(alone)))
    row["of_alone"] = cases.digits(100 * whole / sum(alone))
    if topology:
        largest = given[1 + alone.index(max(alone))]
        row |= dict(mib=_mib(given[0], mesh, topology), alone_mib=_mib(largest, mesh, topology))
    backbone, flops = passed(_of(config, names))
    row |= {"pass": _giga(flops), "more": _giga(flops - passed(_of(config, names[:1]))[1])}
    if isinstance(getattr(backbone, "adapter", None), mtlora.Streams):
        first, every = (equations(backbone, config, n) for n in (1, len(names)))
        row |= {part: _giga(every[part] - first[part]) for part in PARTS}
    return row


def _of(config: Any, names: tuple[str, ...]) -> Any:
    """The config for these tasks alone."""
    made = config.copy_and_resolve_references()
    made.task.tasks = names
    if "tasks" in made.adapter:
        made.adapter.tasks = names
    return made


def _flops(config: Any, mesh: Any) -> int:
    """FLOPs of a training step."""
    task, spec = cases.given(config, CLASSES)
    graph, train, stats, frozen = model.split(model.abstract(config, task, spec), config)
    optimizer = optim.make(config.optim, config.optim.steps, train, model.layers(config))
    given = plan.arguments(config, spec, train, stats, frozen, optimizer, mesh)
    return matmul_flops(make_step(graph, task, optimizer, config), *given)


def _mib(config: Any, mesh: Any, topology: str) -> float:
    """Memory of a training step as compiled, MiB."""
    task, spec = cases.given(config, CLASSES)
    found = plan.of_step(config, task, config.optim.steps, spec, mesh, topology)
    if "memory" not in found:
        raise ConfigError(found["reason"])
    return cases.digits(found["memory"]["total"] / 2**20)


def passed(config: Any) -> tuple[nnx.Module, int]:
    """The adapted backbone, and the FLOPs of its pass over a batch, without heads."""
    task, spec = cases.given(config, CLASSES)
    backbone = model.abstract(config, task, spec).backbone
    graph, state = nnx.split(backbone)
    images = jax.ShapeDtypeStruct(spec["image"].shape, jnp.float32)

    def forward(state: Any, x: jax.Array) -> Any:
        return [f.maps for f in model.of_tasks(nnx.merge(graph, state)(x, Context()))]

    return backbone, matmul_flops(forward, state, images)


def equations(backbone: nnx.Module, config: Any, count: int) -> Counter:
    """FLOPs that so many tasks add to a pass over a batch, by `PARTS`.

    Args:
        backbone: adapted for any tasks.
        config: of sizes of images and batch.
        count: tasks.
    """
    root, found = backbone.adapter, Counter()
    prompts = count * getattr(root, "count", 0) // max(len(root.tasks), 1)
    side = -(-config.backbone.image_size // backbone.patch)
    ctx = Context(grid=(side, side))
    stages = mtlora.stages_of(backbone)
    for number, blocks in enumerate(stages):
        for block in blocks:
            found["prompts"] += _prompts(block, prompts, *_pieces(block, backbone, ctx))
        m, n = _pieces(blocks[-1], backbone, ctx)
        found += _streams(blocks[-1], count, prompts, m, n, math.prod(ctx.grid) + backbone.prefix)
        if hasattr(backbone, "stages") and number + 1 < len(stages):
            merge = backbone.stages[number].merge
            ctx = merge.behind(ctx)
            found["merging"] += count * math.prod(ctx.grid) * _full(merge.reduction)
            found["prompts"] += prompts and prompts * _full(root.wider[number])
    return Counter({part: found[part] * config.input.batch_size for part in PARTS})


def _pieces(block: nnx.Module, backbone: nnx.Module, ctx: Context) -> tuple[int, int]:
    """Pieces of an image that attention sees, and tokens of each."""
    if not hasattr(block.attn, "windows"):
        return 1, math.prod(ctx.grid) + backbone.prefix
    side = block.attn.windows(ctx.grid)[0]
    return math.prod(-(-n // side) for n in ctx.grid), side * side


def _full(layer: nnx.Module) -> int:
    """FLOPs of a linear layer a token."""
    return 2 * layer.in_features * layer.out_features


def _low(layer: nnx.Module, rank: int) -> int:
    """FLOPs of its two factors a token."""
    return 2 * rank * (layer.in_features + layer.out_features)


def _shared(layer: nnx.Module) -> int:
    """FLOPs a token of the layer and of the factors that tasks share."""
    return _full(layer) + _low(layer, layer.adapter.low.a.shape[-1])


def _prompts(block: nnx.Module, prompts: int, m: int, n: int) -> int:
    """Of a block: prompts are in each of the m pieces of n tokens, and once in the MLP."""
    attn, mlp = block.attn, block.mlp
    pairs = 4 * m * attn.qkv.in_features * ((prompts + n) ** 2 - n * n)
    inside = prompts * (m * (_shared(attn.qkv) + _shared(attn.proj)))
    return pairs + inside + prompts * (_shared(mlp.fc1) + _shared(mlp.fc2))


def _streams(block: nnx.Module, count: int, prompts: int, m: int, n: int, tokens: int) -> Counter:
    """Of a stage's last block: what tasks don't share."""
    found, dim = Counter(), block.attn.qkv.in_features
    layers = ((block.attn.proj, m, m * n), (block.mlp.fc1, 1, tokens), (block.mlp.fc2, 1, tokens))
    for layer, maps, seen in layers:
        own = layer.adapter
        factor = own.a if hasattr(own, "a") else own.low.a
        found["low rank"] += count * seen * _low(layer, factor.shape[-1])
        if hasattr(getattr(own, "filter", None), "dense"):
            found["filters"] += count * maps * _full(own.filter.dense)
    if prompts:  # raw scores, and each head's answer times them
        found["prompts"] += 2 * m * n * dim * (prompts + count)
    return found


def _giga(flops: float) -> float:
    return cases.digits(flops / 1e9)
