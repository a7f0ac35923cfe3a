"""SOLO's head: counts, what cells draw, and where slopes go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import tree
from dynadapt.context import Context
from dynadapt.heads.solo import EACH, SOLO, coordinates, effective, mask_logits, resized
from dynadapt.layers import SameKey
from dynadapt.layers.resample import resize
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

GRIDS = (5, 4, 3)


class Handed(nnx.Module):
    """A neck that hands on the maps."""

    def __init__(self, dim):
        self.dims = (dim,)

    def __call__(self, features, ctx):
        return features


def counts(channels):
    """Parameters by part at COCO's 80 classes."""

    def make():
        grids = (40, 36, 24, 16, 12)
        return SOLO(Handed(256), 80, grids=grids, channels=channels, rngs=SameKey())

    found = {}
    for path, leaf in tree.leaves(nnx.state(nnx.eval_shape(make))).items():
        part = path.split("/")[0]
        found[part] = found.get(part, 0) + leaf.size
    return found


def test_parameters():
    found = counts(256)
    assert found == {
        "mask_tower": 4_136_960, "class_tower": 4_132_352, "masks": 995_104, "out": 184_400
    }  # fmt: skip
    assert sum(found.values()) == 9_448_816
    assert sum(counts(512).values()) == 33_049_456


@pytest.fixture(scope="module")
def head():
    return randomised(lambda rngs: SOLO(Handed(6), 2, grids=GRIDS, channels=8, depth=2, rngs=rngs))


def maps(dtype=jnp.float32, b=2):
    rng = np.random.default_rng(0)
    sizes = ((8, 12), (4, 6), (2, 3))
    return tuple(jnp.asarray(rng.normal(size=(b, *size, 6)), dtype) for size in sizes)


@pytest.fixture(scope="module")
def cells(head):
    return jax.jit(lambda x: head(x, Context()))(maps())


def test_shapes(cells):
    assert [x.shape for x in cells.classes] == [(2, g, g, 2) for g in GRIDS]
    assert [x.shape for x in cells.features] == [(2, 4, 6, 8)] * 3
    assert [x.shape for x in cells.kernels] == [(8, g**2) for g in GRIDS]
    assert effective((4, 8, 16, 32, 64)) == (8, 8, 16, 32, 32)
    assert effective((2, 4, 8)) == (4, 4, 4) and effective((4,)) == (8,)


def test_cells_draw_what_the_full_form_gives(cells):
    """All masks at once: features doubled first, then one channel a cell."""
    for x, kernel, bias in zip(cells.features, cells.kernels, cells.biases, strict=True):
        whole = resize(x, (8, 12)) @ kernel + bias[None, None, None]  # b 2h 2w g^2
        at = np.array([[3, 0, 8], [8, 8, 2]])
        found = jax.vmap(mask_logits, (0, None, None, 0))(x, kernel, bias, at)
        wanted = np.stack([whole[n][..., at[n]] for n in range(2)]).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert EACH.kernels is None and EACH.features == 0


def test_slopes_of_drawn_cells_are_those_of_the_full_form(cells):
    x, kernel, bias = (part[0] for part in (cells.features, cells.kernels, cells.biases))
    at = jnp.array([7, 2, 7])

    def gathered(kernel, x):
        return jnp.square(mask_logits(x[0], kernel, bias, at)).sum()

    def full(kernel, x):
        whole = resize(x[:1], (8, 12)) @ kernel + bias[None, None, None]
        return jnp.square(whole[0][..., at]).sum()

    for found, wanted in zip(
        jax.grad(gathered, (0, 1))(kernel, x), jax.grad(full, (0, 1))(kernel, x), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_coordinates_are_x_then_y():
    found = np.asarray(coordinates(jnp.zeros((2, 3, 5, 7))))
    assert found.shape == (2, 3, 5, 2)
    np.testing.assert_allclose(found[1, 0, :, 0], np.linspace(-1, 1, 5), atol=1e-6)
    np.testing.assert_allclose(found[1, :, 2, 1], [-1, 0, 1], atol=1e-6)


def test_the_first_level_is_halved_and_the_last_as_large_as_the_one_before():
    given = maps()
    first, middle, last = resized(given)
    means = np.asarray(given[0]).reshape(2, 4, 2, 6, 2, 6).mean((2, 4))
    np.testing.assert_allclose(first, means, rtol=1e-5, atol=1e-6)
    assert middle is given[1] and last.shape == (2, 4, 6, 6)


def test_slopes_reach_everything(head):
    graph, params = nnx.split(head)

    @jax.jit
    @jax.grad
    def slopes(params):
        found = nnx.merge(graph, params)(maps(), Context(train=True))
        masks = [
            mask_logits(x[0], kernel, bias, jnp.arange(kernel.shape[1]))
            for x, kernel, bias in zip(found.features, found.kernels, found.biases, strict=True)
        ]
        return sum(jnp.square(x).mean() for x in (*masks, *found.classes))

    for path, slope in tree.leaves(slopes(params)).items():
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0, path


def test_half_precision_is_close(head, cells):
    half = jax.jit(lambda x: head(x, Context()))(maps(jnp.bfloat16))
    assert half.features[0].dtype == jnp.bfloat16 and half.classes[0].dtype == jnp.float32
    for name in ("classes", "features"):
        for own, wanted in zip(getattr(half, name), getattr(cells, name), strict=True):
            gap = np.linalg.norm(own.astype(jnp.float32) - wanted)
            assert gap / np.linalg.norm(wanted - wanted.mean()) < 5e-2
    every = jnp.arange(GRIDS[0] ** 2)
    given = half.features[0][0], half.kernels[0], half.biases[0]
    assert mask_logits(*given, every).dtype == jnp.float32
