"""The maximum over positions, with a gradient that is always there."""

import jax
import jax.numpy as jnp

Array = jax.Array


def largest(x: Array) -> Array:
    """The maximum of `b g d` over g, `b d`; its gradient is that of the first largest entry.

    The gradient of `max` is shared by all entries that equal it. Where a compiler computes them
    twice and rounds differently, as after a scale and a shift, none does, and it is NaN.
    """
    first = jnp.argmax(jax.lax.stop_gradient(x), 1)[:, None]
    return jnp.where(jnp.arange(x.shape[1])[None, :, None] == first, x, 0.0).sum(1)
