"""FLOPs against hand counts; images and FLOP/s by a clock that the test sets."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynadapt.runs import speed
from dynadapt.runs.speed import matmul_flops


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def mlp(x, a, b):
    return jax.nn.relu(x @ a) @ b


MLP = (shape(5, 7), shape(7, 11), shape(11, 3))
FORWARD = 2 * 5 * 7 * 11 + 2 * 5 * 11 * 3


def test_matrix_products():
    assert matmul_flops(mlp, *MLP) == FORWARD
    assert matmul_flops(jax.jit(mlp), *MLP) == FORWARD
    batched = functools.partial(jnp.einsum, "bij,bjk->bik")
    assert matmul_flops(batched, shape(4, 5, 6), shape(4, 6, 7)) == 2 * 4 * 5 * 6 * 7


def test_a_gradient():
    def loss(a, b, x):
        return mlp(x, a, b).sum()

    x, a, b = MLP
    # Of both kernels: each forward product has two more behind it, but none for the input.
    both = jax.grad(loss, (0, 1))
    assert matmul_flops(both, a, b, x) == 3 * FORWARD - 2 * 5 * 7 * 11
    # Of the second one alone: the product behind it.
    assert matmul_flops(jax.grad(loss, 1), a, b, x) == FORWARD + 2 * 5 * 11 * 3


def test_convolutions():
    def conv(x, k, groups):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    x = shape(2, 6, 5, 8)
    dense = matmul_flops(functools.partial(conv, groups=1), x, shape(3, 3, 8, 12))
    assert dense == 2 * (3 * 3 * 8) * (2 * 6 * 5 * 12)
    depthwise = matmul_flops(functools.partial(conv, groups=8), x, shape(3, 3, 1, 8))
    assert depthwise == 2 * (3 * 3) * (2 * 6 * 5 * 8)


def test_scan_counts_each_turn():
    def repeated(x, kernels):
        return jax.lax.scan(lambda x, k: (x @ k, None), x, kernels)[0]

    assert matmul_flops(repeated, shape(5, 7), shape(9, 7, 7)) == 9 * 2 * 5 * 7 * 7
    nested = jax.vmap(repeated, (0, None))
    assert matmul_flops(nested, shape(2, 5, 7), shape(9, 7, 7)) == 2 * 9 * 2 * 5 * 7 * 7


def test_remat_counts_what_is_done_again():
    def loss(a, b, x, wrap):
        return jnp.tanh(wrap(mlp)(x, a, b)).sum()

    x, a, b = MLP
    plain = matmul_flops(jax.grad(functools.partial(loss, wrap=lambda f: f)), a, b, x)
    again = matmul_flops(jax.grad(functools.partial(loss, wrap=jax.checkpoint)), a, b, x)
    assert plain == FORWARD + 2 * 5 * 11 * 3 + 2 * 5 * 7 * 11
    assert again == plain + 2 * 5 * 7 * 11  # the hidden layer; the output isn't needed again


def test_branches_count_the_longer():
    def choose(flag, x, a):
        return jax.lax.cond(flag, lambda: x @ a @ a, lambda: x @ a)

    assert matmul_flops(choose, shape(dtype=bool), shape(5, 7), shape(7, 7)) == 980


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as the test sets them."""
    now = [0.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    return now


def test_laps_and_their_mean(clock):
    made = speed.Speed(10, 8e9, 4, 8.0)
    made.begin(1, ())
    clock[0] = 1.0
    assert made.lap(3) == {"images_per_second": 20.0}  # no step is counted yet
    made.flops = 10**9
    clock[0] = 4.0
    found = made.lap(5)
    assert found["flops_per_second"] == pytest.approx(2e9 / 3)
    assert found["share_of_peak"] == pytest.approx(2 / 3 / 8)
    assert made.laps == [8, 12.0]
    mean = {"images_per_second": 6.7, "flops_per_second": 666666667, "share_of_peak": 0.0833}
    assert made.mean() == mean


def test_what_is_no_training_stays_out(clock):
    made = speed.Speed(10, None)
    made.flops = 5
    made.skip(3.0)  # before anything is timed
    made.begin(1, ())
    clock[0] = 4.0
    made.skip(3.0)
    assert made.lap(2) == {"images_per_second": 10.0, "flops_per_second": 5.0}
    made.pause()
    clock[0] = 9.0
    made.begin(3, ())
    assert made.lap(3) == {"images_per_second": 0.0}  # no step, so no rate of its products
    assert made.laps == [1, 1.0]


def devices_of(kind, count=4):
    devices = np.array([types.SimpleNamespace(device_kind=kind)] * count)
    return types.SimpleNamespace(devices=devices, size=count)


def test_the_peak_is_that_of_all_devices():
    assert speed.peak(devices_of("NVIDIA H200"), "bfloat16") == 4 * 989.5e12
    assert speed.peak(devices_of("TPU v5 lite", 16), "bfloat16") == 16 * 197e12
    for kind, dtype in (("NVIDIA H200", "float32"), ("cpu", "bfloat16")):
        assert speed.peak(devices_of(kind), dtype) is None
    assert speed.peak(devices_of("NVIDIA H200 MIG 1g.18gb"), "bfloat16") is None  # a part of one


def test_speed_for_people():
    values = {"images_per_second": 120.4}
    assert speed.shown(values) == "120 images/s"
    values["flops_per_second"] = 3.45e12
    assert speed.shown(values) == "120 images/s  3.5 TFLOP/s"
    values |= {"share_of_peak": 0.342, "flops_per_second": 999.96e9}
    assert speed.shown(values) == "120 images/s  1.0 TFLOP/s, 34 % of peak"
    assert speed.shown(values | {"flops_per_second": 1.5e15}).split("  ")[1][:12] == "1.50 PFLOP/s"
