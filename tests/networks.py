"""Networks with random values everywhere, where no zero hides a fault, or with shapes alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import adapters, backbones, tree
from dynadapt.layers import SameKey


def randomised(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> nnx.Module:
    """What `make` makes, with random kernels, biases, norms and statistics."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: make(SameKey())))
    rng = np.random.default_rng(seed)

    def value(path, x):
        noise = rng.normal(size=x.shape).astype(np.float32)
        if path.endswith("kernel"):
            return jnp.asarray(noise / np.sqrt(np.prod(x.shape[:-1])))
        if path.endswith("var"):
            return jnp.asarray(0.5 + noise**2)
        return jnp.asarray(0.3 * noise + path.endswith("scale"))

    return nnx.merge(graph, tree.map_leaves(value, shapes))


@functools.cache
def bare(variant: str) -> tuple[nnx.GraphDef, nnx.State]:
    """The backbone of published sizes, its leaves shapes."""
    return nnx.split(backbones.abstract(variant))


def adapted(variant: str, method: str, given: dict[str, Any]) -> nnx.Module:
    """The same with the method attached."""

    def make(state):
        network = nnx.merge(bare(variant)[0], state)
        adapters.adapt(network, method, rngs=SameKey(), **given)
        return network

    return nnx.eval_shape(make, bare(variant)[1])


def trained(variant: str, method: str, given: dict[str, Any]) -> int:
    """Parameters that the method trains, without a head."""
    leaves = tree.leaves(nnx.state(adapted(variant, method, given)))
    pick = adapters.trainable(adapters.trains(method, **given))
    return tree.size([x for p, x in leaves.items() if pick(("backbone", *p.split("/")), x)])
