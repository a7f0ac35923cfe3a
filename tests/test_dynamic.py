import functools
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from dynadapt import dynamic

FORMS = [dynamic.depthwise, dynamic.depthwise_reference]


def draw(seed, b=3, h=5, w=7, r=4, k=3):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=shape).astype(np.float32)
        for shape in ((b, h, w, r), (b, k, k, r), (b, h, w, r))
    ]


def loop(x, kernel):
    """out[b, i, j, c] = sum over u, v of x[b, i + u - k//2, j + v - k//2, c] kernel[b, u, v, c]."""
    (b, h, w, _), k = x.shape, kernel.shape[1]
    out = np.zeros(x.shape, np.float64)
    for n in range(b):
        for i in range(h):
            for j in range(w):
                for u in range(k):
                    for v in range(k):
                        y, z = i + u - k // 2, j + v - k // 2
                        if 0 <= y < h and 0 <= z < w:
                            out[n, i, j] += x[n, y, z].astype(np.float64) * kernel[n, u, v]
    return out


def loop_gradients(x, kernel, g):
    """Gradients of sum(g * loop(x, kernel)): what each product gives to its two factors."""
    (b, h, w, _), k = x.shape, kernel.shape[1]
    dx, dkernel = np.zeros(x.shape, np.float64), np.zeros(kernel.shape, np.float64)
    for n in range(b):
        for i in range(h):
            for j in range(w):
                for u in range(k):
                    for v in range(k):
                        y, z = i + u - k // 2, j + v - k // 2
                        if 0 <= y < h and 0 <= z < w:
                            dx[n, y, z] += g[n, i, j] * kernel[n, u, v]
                            dkernel[n, u, v] += g[n, i, j] * x[n, y, z]
    return dx, dkernel


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(form, x, kernel, g):
    out, back = jax.vjp(form, x, kernel)
    return out, *back(g.astype(out.dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("k", "h", "w"), [(1, 5, 7), (3, 5, 7), (5, 5, 7), (5, 2, 1), (3, 8, 8)])
def test_equal_to_a_loop(form, k, h, w):
    x, kernel, g = draw(11 * k + h, h=h, w=w, k=k)
    out, dx, dkernel = value_and_gradients(form, x, kernel, g)
    np.testing.assert_allclose(out, loop(x, kernel), rtol=1e-5, atol=1e-5)
    wanted = loop_gradients(x, kernel, g)
    np.testing.assert_allclose(dx, wanted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dkernel, wanted[1], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("k", [3, 5])
def test_gradients_of_a_function_of_the_output(k):
    x, kernel, g = draw(5 + k, b=4, h=6, w=3, k=k)

    def total(form, x, kernel):
        return (jnp.tanh(form(x, kernel)) * g[:4]).sum()

    for own, wanted in zip(
        *(jax.jit(jax.grad(functools.partial(total, f), (0, 1)))(x, kernel) for f in FORMS),
        strict=True,
    ):
        np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=1e-5)


def test_an_instance_sees_its_own_kernel_alone():
    x, kernel, _ = draw(2)
    order = np.array([2, 0, 1])
    out = dynamic.depthwise(x, kernel)
    np.testing.assert_array_equal(dynamic.depthwise(x[order], kernel[order]), out[order])
    np.testing.assert_array_equal(dynamic.depthwise(x[1:2], kernel[1:2]), out[1:2])
    assert not np.allclose(dynamic.depthwise(x, kernel[order]), out)


def test_the_centre_tap_is_the_identity():
    x, kernel, _ = draw(4, k=5)
    delta = np.zeros_like(kernel)
    delta[:, 2, 2] = 1.0
    np.testing.assert_array_equal(dynamic.depthwise(x, delta), x)


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_bfloat16_is_summed_in_float32():
    """Storing the result costs 1.7e-3; sums in plain bfloat16 would cost 4e-3, and 1.7e-2 in the
    gradient of the kernel."""
    x, kernel, g = (jnp.asarray(v, jnp.bfloat16) for v in draw(7, h=14, w=14, r=16))
    full = [np.asarray(v, np.float32) for v in (x, kernel, g)]
    found = value_and_gradients(dynamic.depthwise, x, kernel, g)
    wanted = value_and_gradients(dynamic.depthwise, *full)
    for own, exact in zip(found, wanted, strict=True):
        assert own.dtype == jnp.bfloat16
        assert relative(own, exact) < 2.5e-3


def test_a_float32_kernel_on_bfloat16_maps():
    x, kernel, g = draw(8)
    out, dx, dkernel = value_and_gradients(
        dynamic.depthwise, jnp.asarray(x, jnp.bfloat16), kernel, g
    )
    assert (out.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


def test_cost_is_linear_in_the_batch():
    def flops(b):
        return value_and_gradients.lower(dynamic.depthwise, *draw(1, b=b)).compile().cost_analysis()

    one, two, four = (flops(b)["flops"] for b in (4, 8, 16))
    assert two / one <= 2.1 and four / two <= 2.1


def draw_full(seed, b=2, h=5, w=4, r=3, out=2, k=3):
    rng = np.random.default_rng(seed)
    shapes = ((b, h, w, r), (b, k, k, r, out), (b, h, w, out))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def full_loop(x, kernel, g):
    """y[b, i, j] = sum over u, v of x[b, i + u - k//2, j + v - k//2] kernel[b, u, v]; gradients."""
    (b, h, w, _), k = x.shape, kernel.shape[1]
    x, kernel, g = (v.astype(np.float64) for v in (x, kernel, g))
    y, dx, dkernel = np.zeros(g.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for n, i, j, u, v in np.ndindex(b, h, w, k, k):
        a, c = i + u - k // 2, j + v - k // 2
        if 0 <= a < h and 0 <= c < w:
            y[n, i, j] += x[n, a, c] @ kernel[n, u, v]
            dx[n, a, c] += kernel[n, u, v] @ g[n, i, j]
            dkernel[n, u, v] += np.outer(x[n, a, c], g[n, i, j])
    return y, dx, dkernel


@pytest.mark.parametrize("form", [dynamic.full, dynamic.full_reference])
@pytest.mark.parametrize(("k", "h", "w"), [(1, 4, 3), (3, 5, 4), (5, 3, 1), (3, 33, 32)])
def test_full_convolution_equals_a_loop(form, k, h, w):
    """The last map is so large that it takes the other way on CPU."""
    given = draw_full(k * h, h=h, w=w, k=k)
    assert (h * w >= dynamic.LARGE) == (h == 33)
    found = value_and_gradients(form, *given)
    for own, wanted in zip(found, full_loop(*given), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("side", [6, 32])
def test_full_convolution_in_bfloat16(side):
    x, kernel, g = draw_full(3, h=side, w=side, r=16, out=16)
    half = value_and_gradients(dynamic.full, jnp.asarray(x, jnp.bfloat16), kernel, g)
    assert [v.dtype for v in half] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for own, exact in zip(half, value_and_gradients(dynamic.full, x, kernel, g), strict=True):
        assert relative(own, exact) < 5e-3


@pytest.mark.parametrize("side", [5, 33])
def test_full_convolution_is_written_for_any_batch_on_all_platforms(side):
    x, kernel, _ = draw_full(2, b=3, h=side, w=side)
    (b,) = export.symbolic_shape("b")
    shapes = (jax.ShapeDtypeStruct((b, *v.shape[1:]), v.dtype) for v in (x, kernel))
    program = export.export(jax.jit(dynamic.full), platforms=["cpu", "cuda", "tpu"])(*shapes)
    wanted = dynamic.full_reference(x, kernel)
    np.testing.assert_allclose(program.call(x, kernel), wanted, rtol=1e-4, atol=1e-4)


def test_cost_of_full_convolution_is_linear_in_the_batch():
    def flops(b):
        given = draw_full(1, b=b)
        return value_and_gradients.lower(dynamic.full, *given).compile().cost_analysis()["flops"]

    one, two, four = (flops(b) for b in (4, 8, 16))
    assert two / one <= 2.1 and four / two <= 2.1


# Prints MFLOP of both passes at two batch sizes, as the compiler for TPUs counts them.
ON_A_TPU = """
from dynadapt import dynamic
from dynadapt.plans import machines
from dynadapt.bench.dynamic import arguments, compiled
chip = machines.devices("v5e:2x2")[0]
for kind in ("depthwise", "full"):
    for b in (16, 32):
        shapes = arguments(kind, (b, 14, 64, 3), "bfloat16")
        print(compiled(getattr(dynamic, kind), shapes, chip)[1]["mflop"])
"""


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install 'dynadapt[tpu]'")
@pytest.mark.slow
def test_cost_is_linear_in_the_batch_on_tpus():
    """In a process of its own: libtpu stays in the process that loads it."""
    command = [sys.executable, "-c", ON_A_TPU]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    depthwise, twice, full, full_twice = map(float, done.stdout.split())
    assert twice / depthwise <= 2.1 and full_twice / full <= 2.1


def test_hypernetwork_by_hand():
    rng = np.random.default_rng(5)
    z, r, k, out = 3, 4, 3, 2
    shapes = ((2, z), (z, r, z), (r, z), (z, k, k, out), (k, k, out))
    given = [rng.normal(size=s).astype(np.float32) for s in shapes]
    embedding, hidden, hidden_bias, last, last_bias = (v.astype(np.float64) for v in given)
    found = dynamic.hypernetwork(*given)
    assert found.shape == (2, k, k, r, out) and found.dtype == jnp.float32
    for b, c in np.ndindex(2, r):
        a = embedding[b] @ hidden[:, c] + hidden_bias[c]
        wanted = np.tensordot(a, last, 1) + last_bias
        np.testing.assert_allclose(found[b, :, :, c], wanted, rtol=1e-5, atol=1e-5)


def test_pooling_by_prompts():
    rng = np.random.default_rng(6)
    f, e = (rng.normal(size=s).astype(np.float32) for s in ((2, 7, 4), (3, 4)))

    def pooled(f, e, scale=1.0):
        return dynamic.pool_by_importance(f, dynamic.importance(f, e, scale))

    found = pooled(f, e, 0.5)
    for b in range(2):
        m = np.exp(0.5 * f[b].astype(np.float64) @ e.T)
        m = m / m.sum(0)  # over positions: every prompt's map sums to 1
        np.testing.assert_allclose(found[b], (f[b].T @ m).mean(1), rtol=1e-5, atol=1e-6)
    order = rng.permutation(7)
    np.testing.assert_allclose(pooled(f[:, order], e, 0.5), found, atol=1e-6)
    flat = pooled(f, np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(flat, f.mean(1), rtol=1e-5, atol=1e-6)


def norm_loop(kernel, scale, shift):
    out = np.zeros(kernel.shape, np.float64)
    for b in range(kernel.shape[0]):
        for c in range(kernel.shape[2]):
            taps = kernel[b, :, c].astype(np.float64)
            deviation = taps.std(ddof=1)
            out[b, :, c] = (taps - taps.mean()) / (deviation + 1e-10) * scale[:, c] + shift[:, c]
    return out


def test_filter_norm_equals_a_loop():
    rng = np.random.default_rng(3)
    sizes = ((3, 9, 4), (9, 4), (9, 4))
    kernel, scale, shift = (rng.normal(size=s).astype(np.float32) for s in sizes)
    found = dynamic.filter_norm(kernel, scale, shift)
    np.testing.assert_allclose(found, norm_loop(kernel, scale, shift), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_filter_norm_has_mean_zero_and_unbiased_deviation_one(size):
    kernel = size * np.random.default_rng(6).normal(loc=2, size=(5, 25, 3)).astype(np.float32)
    out = np.asarray(dynamic.filter_norm(kernel, np.ones((25, 3)), np.zeros((25, 3))))
    np.testing.assert_allclose(out.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(1, ddof=1), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1 / 3, 7.7e3, 1e-20])
def test_filter_norm_of_equal_taps_is_the_shift_with_gradient_zero(value):
    """The mean of nine times 0.1 is not 0.1 in float32: what is left must not be blown up."""
    rng = np.random.default_rng(9)
    kernel = rng.normal(size=(2, 9, 3)).astype(np.float32)
    kernel[0, :, 1] = value
    scale, shift, weight = (rng.normal(size=(9, 3)).astype(np.float32) for _ in range(3))

    def total(kernel, scale, shift):
        return (dynamic.filter_norm(kernel, scale, shift) * weight[None]).sum()

    out = dynamic.filter_norm(kernel, scale, shift)
    np.testing.assert_allclose(out[0, :, 1], shift[:, 1], atol=1e-6)
    found = jax.jit(jax.grad(total, (0, 1, 2)))(kernel, scale, shift)
    assert all(np.isfinite(g).all() for g in found)
    np.testing.assert_array_equal(found[0][0, :, 1], 0)
    assert (np.asarray(found[0][1]) != 0).all()


def test_filter_norm_answers_in_float32():
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(2, 9, 3)), jnp.bfloat16)
    out = dynamic.filter_norm(kernel, jnp.ones((9, 3)), jnp.zeros((9, 3)))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out.std(1, ddof=1), 1, rtol=1e-5)
