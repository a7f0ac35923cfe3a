"""Means and variances over images of what layers make from each input (`Context.made`)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# What layers make from each input, as its name on the tape begins.
MADE = "kernel"
# Of one name on the tape: mean and variance over images, `l …`, float64.
Moments = tuple[np.ndarray, np.ndarray]


def of_batch(tape: Mapping[str, Array], mask: Array) -> dict[str, tuple[Array, Array]]:
    """Mean and sum of squared deviations over a batch, `l …`, of all that was made, `l b …`.

    On the device, in float32; deviations are from the mean, since squares of large means cancel.
    """
    found = {}
    share = mask / jnp.maximum(mask.sum(), 1.0)
    for name, value in tape.items():
        if name.split(".")[0] == MADE:
            wide = value.astype(jnp.float32)
            mean = jnp.einsum("lb...,b->l...", wide, share)
            apart = jnp.square(wide - mean[:, None])
            found[name] = mean, jnp.einsum("lb...,b->l...", apart, mask)
    return found


class Gathered:
    """Moments over batches, one after another (Chan et al., 1983), in float64."""

    def __init__(self) -> None:
        self.count = 0.0
        self._sums: dict[str, Moments] = {}

    def add(self, found: Mapping[str, tuple[Any, Any]], count: float) -> None:
        """Adds what `of_batch` found in a batch of so many images."""
        if not count:
            return
        total = self.count + count
        for name, pair in found.items():
            mean, squares = (np.asarray(x, np.float64) for x in pair)
            before, so_far = self._sums.get(name, (np.zeros_like(mean), np.zeros_like(mean)))
            step = mean - before
            between = np.square(step) * (self.count * count / total)
            self._sums[name] = before + step * (count / total), so_far + squares + between
        self.count = total

    @property
    def moments(self) -> dict[str, Moments]:
        """Of each name: mean and variance, `l …`."""
        return {name: (mean, sums / self.count) for name, (mean, sums) in self._sums.items()}


def rows(moments: Mapping[str, Moments]) -> list[dict[str, Any]]:
    """Of each name and block: `size`, the root mean square, and `varies`, the variance over images
    as a share of the mean square."""
    found = []
    for name, pair in moments.items():
        for block, (mean, variance) in enumerate(zip(*pair, strict=True)):
            square = float((np.square(mean) + variance).mean())
            varies = float(variance.mean()) / square if square else 0.0
            found.append(dict(name=name, block=block, size=square**0.5, varies=varies))
    return found
