"""Batches whose images each have their own adapter, beside one adapter's batch."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt import model, serving
from dynadapt.bench import cases, interleaved, machine, milliseconds, ratio, timed

ADAPTERS = 16
# Largest difference between a mixed batch and its images one by one, of the largest output.
TOLERANCE = 1e-5


def run(
    backbone: str, methods: list[str], batch: int, rounds: int, adapters: int = ADAPTERS
) -> dict[str, Any]:
    """Times a mixed batch through a bank against the batch of one adapter, both in float32.

    Args:
        backbone: a variant.
        methods: names of methods, or `all`.
        batch: images in a pass.
        rounds: readings of each.
        adapters: in the bank; each image has one of them, drawn at random.

    Returns:
        A row a method, with `largest_output`, `largest_difference` between the mixed batch and the
        same images one by one, and `equal`: whether it is within `TOLERANCE`; or a `reason`
        where the method can't serve the backbone.
    """
    side = cases.side(backbone)

    def measure(method: str) -> dict[str, Any]:
        host, trees = hosted(backbone, method, adapters)
        answer, mixed = serving.make_answer(host), serving.make_mixed(host)
        rng = np.random.default_rng(1)
        images = jnp.asarray(rng.normal(size=(batch, side, side, 3)), jnp.float32)
        which = jnp.asarray(rng.integers(adapters, size=batch), jnp.int32)
        bank = serving.stack(trees)
        found = mixed(host.frozen, bank, which, images)
        row = dict(adapters=adapters) | compared(host, trees, which, images, found)
        calls = (
            functools.partial(mixed, host.frozen, bank, which, images),
            functools.partial(answer, trees[0], host.frozen, images),
        )
        ours, other = interleaved([timed(call) for call in calls], rounds)
        row |= dict(mixed_ms=milliseconds(ours), one_adapter_ms=milliseconds(other))
        return row | dict(mixed_over_one=ratio(ours, other))

    return dict(machine=machine(), rows=cases.rows(backbone, methods, batch, measure))


def hosted(backbone: str, method: str, adapters: int) -> tuple[serving.Host, list[Any]]:
    """A model with random weights, and adapters for it that differ."""
    config = cases.config(backbone, method, 1)
    graph, train, stats, frozen = model.split(model.build(config, *cases.given(config)), config)
    kept = {"train": train, "stats": stats}
    rng = np.random.default_rng(0)

    def moved(x: jax.Array) -> jax.Array:
        return x + jnp.asarray(0.02 * rng.normal(size=x.shape), x.dtype)

    trees = [jax.tree.map(moved, kept) for _ in range(adapters)]
    return serving.Host(Path(), config, {}, graph, kept, frozen), trees


def compared(
    host: serving.Host, trees: list[Any], which: Any, images: Any, found: Any
) -> dict[str, Any]:
    """How far outputs of a mixed batch are from those of its images, each on its own."""
    answer = serving.make_answer(host)
    each = [answer(trees[n], host.frozen, images[i : i + 1]) for i, n in enumerate(which)]
    wanted = jnp.concatenate(each)
    difference, largest = float(jnp.abs(found - wanted).max()), float(jnp.abs(wanted).max())
    return dict(
        largest_output=round(largest, 3),
        largest_difference=float(f"{difference:.1e}"),
        equal=difference <= TOLERANCE * max(1.0, largest),
    )
