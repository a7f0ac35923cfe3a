"""The focal loss of classes that are mostly background (Lin et al., arXiv 1708.02002)."""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array

GAMMA, ALPHA = 2.0, 0.25


def focal(logits: Array, classes: Array) -> Array:
    """The loss `… c` of class logits, float32; classes `…` are -1 for background."""
    wanted = jax.nn.one_hot(classes, logits.shape[-1])
    given = logits.astype(jnp.float32)
    return optax.losses.sigmoid_focal_loss(given, wanted, alpha=ALPHA, gamma=GAMMA)
