"""Networks with random values everywhere, so that no zero and no one hides a fault."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import tree


def randomised(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> nnx.Module:
    """What `make` makes, with random kernels, biases, norms and statistics."""
    graph, shapes = nnx.split(nnx.eval_shape(make, nnx.Rngs(0)))
    rng = np.random.default_rng(seed)

    def value(path, x):
        noise = rng.normal(size=x.shape).astype(np.float32)
        if path.endswith("kernel"):
            return jnp.asarray(noise / np.sqrt(np.prod(x.shape[:-1])))
        if path.endswith("var"):
            return jnp.asarray(0.5 + noise**2)
        return jnp.asarray(0.3 * noise + path.endswith("scale"))

    return nnx.merge(graph, tree.map_leaves(value, shapes))
