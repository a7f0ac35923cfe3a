"""Forward passes of backbones beside timm's on PyTorch."""

import sys
from collections.abc import Callable
from typing import Any

from dynadapt.bench import TIMM, Worker, interleaved, machine, milliseconds, ratio
from dynadapt.errors import ConfigError

# The reference's name of each backbone that is compared.
REFERENCES = {
    "vit_b16": "vit_base_patch16_224",
    "vit_s16": "vit_small_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
}
# Runs under another Python, which has torch and timm: nothing here imports them.
_TIMM = f"""{TIMM}
import sys
from dynadapt_bench import answer
network = timm.create_model(sys.argv[1], num_classes=0).eval().to(device)
images = torch.randn(int(sys.argv[2]), 3, 224, 224, device=device)
with torch.inference_mode():
    answer(lambda: (network(images), wait()))
"""
_OURS = """
import sys
from dynadapt.bench.forward import forward_pass
from dynadapt_bench import answer
answer(forward_pass(sys.argv[1], int(sys.argv[2])))
"""


def reference_of(name: str) -> str:
    """timm's name of a backbone; ConfigError where it is compared with none."""
    if name not in REFERENCES:
        raise ConfigError(f"there is no reference of {name!r}; choose of {', '.join(REFERENCES)}")
    return REFERENCES[name]


def forward_pass(
    name: str, batch: int, sides: tuple[int, ...] = (), **fields: Any
) -> Callable[[], Any]:
    """A compiled forward pass of a backbone in float32, with random weights and inputs.

    Args:
        name: a variant such as `vit_b16`.
        batch: inputs of a pass.
        sides: `h w` of the images, or `n` of the clouds; by default the backbone's own images.
        **fields: config fields of the backbone that are not the variant's own.
    """
    import jax
    from flax import nnx

    from dynadapt import backbones
    from dynadapt.context import Context

    graph, state = nnx.split(backbones.create(name, rngs=nnx.Rngs(0), **fields))
    sides = sides or (backbones.config(name, **fields).image_size,) * 2
    given = jax.random.normal(jax.random.key(0), (batch, *sides, 3))

    @jax.jit
    def forward(state: Any, given: Any) -> Any:
        return nnx.merge(graph, state)(given, Context()).maps[-1]

    return lambda: jax.block_until_ready(forward(state, given))


def run(reference: str | None, names: list[str], batch: int, rounds: int) -> dict[str, Any]:
    """Times forward passes against timm's on PyTorch, with the same threads and batch.

    Args:
        reference: a Python that has torch and timm, or None to time ours alone.
        names: backbones, among `REFERENCES` where there is a reference.
        batch: images in a pass.
        rounds: readings of each.
    """
    rows = []
    for name in names:
        other = reference_of(name) if reference else ""
        workers = [Worker(sys.executable, _OURS, name, str(batch))]
        try:
            if reference:
                workers.append(Worker(reference, _TIMM, other, str(batch)))
            readings = interleaved([worker.ask for worker in workers], rounds)
        finally:
            for worker in workers:
                worker.stop()
        row = dict(backbone=name, batch=batch, ms=milliseconds(readings[0]))
        row["images_per_second"] = round(1e3 * batch / row["ms"], 2)
        if reference:
            row["reference_ms"] = milliseconds(readings[1])
            row["over_reference"] = ratio(*readings)
        rows.append(row)
    return dict(machine=machine(), rows=rows)
