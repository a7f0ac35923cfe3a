"""Packed matrices: their values, their size, and that none is kept whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import model, tree
from dynadapt.bench import cases
from dynadapt.context import Context, fold
from dynadapt.layers import Conv, Linear, quantised
from dynadapt.runs import workdir

pytestmark = pytest.mark.usefixtures("fast_compiling")


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(128, 6), (3, 3, 5, 4), (70, 3), (10, 2)])
def test_int8_is_within_half_a_step_of_its_channel(shape):
    x = drawn(*shape).at[..., 0].set(0.0)
    packed = quantised.pack(x, "int8")
    assert packed.codes.dtype == jnp.int8 and packed.codes.shape == shape == packed.shape
    step = np.abs(x).max(tuple(range(x.ndim - 1))) / 127
    assert (np.abs(packed[...] - x) <= 0.5001 * step).all()
    assert step[1] > 0 and not packed[...][..., 0].any()


@pytest.mark.parametrize("shape", [(128, 6), (3, 3, 5, 4), (70, 3), (10, 2)])
def test_nf4_is_the_nearest_level_of_its_block(shape):
    x = drawn(*shape).at[..., 0].set(0.0)
    packed = quantised.pack(x, "nf4")
    rows = np.asarray(x).reshape(-1, shape[-1])
    wanted = np.zeros_like(rows)
    for start in range(0, len(rows), 64):
        block = rows[start : start + 64]
        scale = np.abs(block).max(0)
        values = np.array(quantised.LEVELS, np.float32)[:, None, None] * scale
        nearest = np.abs(values - block).argmin(0)
        wanted[start : start + 64] = np.take_along_axis(values, nearest[None], 0)[0]
    np.testing.assert_allclose(packed[...].reshape(rows.shape), wanted, rtol=1e-6)
    blocks = -(-len(rows) // 64)
    assert packed.codes.dtype == jnp.uint8
    assert tree.nbytes(packed) == blocks * shape[-1] * (32 + 4)


def parts(backbone, *kinds):
    """An abstract model taken apart with its frozen half in each kind."""
    c = cases.config(backbone, "linear", 2)
    network = model.abstract(c, *cases.given(c))
    for kind in kinds:
        c.compute.frozen_dtype = kind
        yield model.split(network, c)


def test_the_frozen_half_of_a_large_model_is_as_small_as_told():
    found = list(parts("vit_h14", "float32", "int8", "nf4"))
    whole, *packed = [tree.nbytes(p.frozen) for p in found]
    assert [size / whole for size in packed] == pytest.approx([0.26, 0.14], rel=0.05)
    counts = [workdir.counts(p.train, p.frozen) for p in found]
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("backbone", ["vit_mini", "swin_t"])
def test_kernels_alone_are_packed(backbone):
    (found,) = parts(backbone, "nf4")
    for path, x in tree.leaves(found.frozen).items():
        name = path.partition("/kernel/")[2]
        assert x.dtype == (jnp.uint8 if name == "codes" else jnp.float32), path
        assert name or not path.endswith("kernel")


@pytest.mark.parametrize("kind", quantised.KINDS)
def test_layers_answer_as_with_the_values_that_are_stored(kind):
    for layer, x in (
        (Linear(70, 6, rngs=nnx.Rngs(0)), drawn(2, 3, 70)),
        (Conv(5, 4, (3, 3), rngs=nnx.Rngs(0)), drawn(2, 6, 6, 5)),
    ):
        packed = quantised.pack(layer.kernel[...], kind)
        layer.kernel = nnx.Param(packed[...])
        wanted, slope = jax.value_and_grad(lambda x, n=layer: jnp.square(n(x)).sum())(x)
        layer.kernel = nnx.Param(packed)
        value, found = jax.value_and_grad(lambda x, n=layer: jnp.square(n(x)).sum())(x)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)
        assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_scan_makes_one_block_whole_at_a_time():
    """A network of twice the depth needs no more memory for whole weights, forward or back."""
    dim = 256

    def temporaries(depth, kind):
        blocks = [Linear(dim, dim, rngs=nnx.Rngs(i)) for i in range(depth)]
        for block in blocks:
            if kind:
                block.kernel = nnx.Param(quantised.pack(block.kernel[...], kind))

        def run(x, blocks):
            return fold(blocks, x, Context(), scan=True).sum()

        program = jax.jit(jax.grad(run)).lower(jnp.ones((1, 1, dim)), blocks).compile()
        return program.memory_analysis().temp_size_in_bytes

    whole = 4 * dim * dim
    more = {kind: temporaries(12, kind) - temporaries(4, kind) for kind in (None, *quantised.KINDS)}
    assert more[None] >= 8 * whole  # they are stacked for the scan
    assert more["int8"] < 0.6 * 8 * whole and more["nf4"] < 0.4 * 8 * whole
