"""Pure functions between a model's outputs and targets: losses, scores, areas, windows."""

import jax
import jax.numpy as jnp

Array = jax.Array


def mean(total: Array, weight: Array) -> Array:
    """A sum over its weight; 0 where the weight is 0."""
    none = weight == 0
    return jnp.where(none, 0.0, total / jnp.where(none, 1.0, weight))
