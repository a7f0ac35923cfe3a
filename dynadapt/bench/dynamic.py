"""The dynamic primitives: the form in use, its definition, and PyTorch's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynadapt import dynamic, mixture
from dynadapt.bench import TORCH_DEVICE, Worker, interleaved, machine, milliseconds, ratio, timed
from dynadapt.plans import machines

IN_USE = "in use"
# Batch, side of the map, channels, kernel side.
MAPS = ((32, 14, 64, 3), (8, 64, 64, 3))
FULL_MAPS = ((32, 14, 64, 3), (8, 64, 32, 3))
# Tokens, width, experts, rank: a batch of 32 images on ViT-B/16.
TOKENS = (32 * 197, 768, 4, 64)

_TORCH = """
import sys
import torch.nn.functional as F
from dynadapt_bench import answer
kind, dtype = sys.argv[1], getattr(torch, sys.argv[2])
b, side, r, k = map(int, sys.argv[3:])
wide = {"depthwise": 1, "full": r}[kind]
x = torch.randn(1, b * r, side, side, dtype=dtype, device=device, requires_grad=True)
kernel = torch.randn(b * r, wide, k, k, dtype=dtype, device=device, requires_grad=True)
g = torch.randn(1, b * r, side, side, dtype=dtype, device=device)
groups = b * r // wide
def call():
    y = F.conv2d(x, kernel, padding=k // 2, groups=groups)
    torch.autograd.grad(y, (x, kernel), g)
    wait()
answer(call)
"""


def one_expert(
    x: Any, gate: Any, down: Any, down_bias: Any, up: Any, up_bias: Any, thin: Any = None
) -> Any:
    """The floor of a mixture: the first expert alone, for every token."""
    return jax.nn.relu(x @ down[0] + down_bias[:1]) @ up[0] + up_bias[:1]


FORMS: dict[str, dict[str, Callable[..., Any]]] = {
    "depthwise": {IN_USE: dynamic.depthwise, "definition": dynamic.depthwise_reference},
    "full": {IN_USE: dynamic.full, "definition": dynamic.full_reference},
    "experts": {IN_USE: mixture.experts, "one expert": one_expert},
}


def arguments(kind: str, case: tuple[int, ...], dtype: str) -> tuple[Any, ...]:
    """Shapes and dtypes of the arguments of a primitive."""

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    if kind == "experts":
        n, d, e, r = case
        return shape(n, d), shape(n, e), shape(e, d, r), shape(e, r), shape(e, r, d), shape(e, d)
    b, side, r, k = case
    return shape(b, side, side, r), shape(b, k, k, r, *([r] if kind == "full" else []))


def differentiated(form: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of all arguments of a primitive, for a given slope of its output."""

    def run(slope: Any, *values: Any) -> Any:
        return jax.vjp(form, *values)[1](slope)

    return run


def cases() -> list[tuple[str, tuple[int, ...]]]:
    """All primitives with their sizes."""
    rows = [("depthwise", case) for case in MAPS] + [("full", case) for case in FULL_MAPS]
    return [*rows, ("experts", TOKENS)]


def run(reference: str | None, rounds: int, topology: str | None = None) -> dict[str, Any]:
    """Times each form's forward and backward pass, or compiles it for a machine that isn't here.

    Args:
        reference: a Python that has torch, or None.
        rounds: readings of each.
        topology: as of `plan`; then bytes and memory are printed instead of times.
    """
    rows = []
    device = machines.devices(topology)[0] if topology else None
    for kind, case in cases():
        for dtype in ("float32", "bfloat16"):
            shapes = arguments(kind, case, dtype)
            forms = FORMS[kind]
            found = {
                name: compiled(form, shapes, device)
                for name, form in forms.items()
                if topology or name == IN_USE or dtype == "float32"
            }
            asks = {} if topology else {n: _timed(c, shapes) for n, (c, _) in found.items()}
            worker = None
            if reference and not topology and kind != "experts":
                worker = Worker(reference, TORCH_DEVICE + _TORCH, kind, dtype, *map(str, case))
                asks["PyTorch"] = worker.ask
            try:
                readings = dict(zip(asks, interleaved(list(asks.values()), rounds), strict=True))
            finally:
                if worker:
                    worker.stop()
            for name in dict.fromkeys([*found, *asks]):
                row = dict(kind=kind, case="x".join(map(str, case)), dtype=dtype, form=name)
                row |= found[name][1] if name in found else {}
                if name in readings:
                    row["ms"] = milliseconds(readings[name])
                    if name != IN_USE:
                        row["in_use_over_this"] = ratio(readings[IN_USE], readings[name])
                rows.append(row)
    return dict(machine=topology or machine(), rows=rows)


def compiled(
    form: Callable[..., Any], shapes: tuple[Any, ...], device: Any = None
) -> tuple[Any, dict[str, Any]]:
    """A compiled forward and backward pass, and what the compiler says of it."""
    sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)
    slope = jax.eval_shape(form, *shapes)
    given = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding) for s in (slope, *shapes)]
    program = jax.jit(differentiated(form)).lower(*given).compile()
    cost = program.cost_analysis() or {}
    told = dict(
        mflop=round(cost.get("flops", 0) / 1e6, 1),
        mb_accessed=round(cost.get("bytes accessed", 0) / 1e6, 1),
        temporary_mib=round(program.memory_analysis().temp_size_in_bytes / 2**20, 2),
    )
    return program, told


def _timed(program: Any, shapes: tuple[Any, ...]) -> Callable[[], float]:
    keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
    slope = jax.eval_shape(lambda *v: v[0], *shapes)
    values = [
        jax.random.normal(k, s.shape, jnp.float32).astype(s.dtype)
        for k, s in zip(keys, (slope, *shapes), strict=True)
    ]
    return timed(lambda: program(*values))
