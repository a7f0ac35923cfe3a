"""Kernels of their own for each instance, as pure functions.

The definition of each operation is written for one instance and vmapped; it is what tests compare
with.
The default is the fastest equal form. Letters: `b` batch, `h w` map, `r` channels, `k` kernel side.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


def depthwise_one(x: Array, kernel: Array) -> Array:
    """Depth-wise convolution of one map `h w r` with a kernel `k k r`, zero padded."""
    return lax.conv_general_dilated(
        x[None],
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )[0]


def depthwise_reference(x: Array, kernel: Array) -> Array:
    """The definition of `depthwise`: one convolution for each instance, vmapped.

    Its backward pass costs the square of the batch on CPU, so it is for tests, not for training.
    """
    return jax.vmap(depthwise_one)(x, kernel)


@jax.custom_vjp
def depthwise(x: Array, kernel: Array) -> Array:
    """Depth-wise convolution of each map with its own kernel, stride 1, zero padding.

    Args:
        x: maps `b h w r`.
        kernel: kernels `b k k r`, odd k.

    Returns:
        `b h w r` in the dtype of `x`, summed in float32.

    Shifted slices of the padded map are multiplied and added; XLA fuses them to one pass.
    """
    taps = (s * kernel[:, i, j, None, None].astype(jnp.float32) for i, j, s in _shifts(x, kernel))
    return sum(taps).astype(x.dtype)


def _shifts(x: Array, kernel: Array) -> list[tuple[int, int, Array]]:
    """The k*k views of the zero-padded map, `(i, j, b h w r)` in float32."""
    k, (h, w) = kernel.shape[1], x.shape[1:3]
    padding = ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0))
    padded = jnp.pad(x, padding).astype(jnp.float32)
    return [(i, j, padded[:, i : i + h, j : j + w]) for i in range(k) for j in range(k)]


def _depthwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    products = tuple(s * g.astype(jnp.float32) for _, _, s in _shifts(x, kernel))
    taps = lax.platform_dependent(*products, cpu=_sums_in_one_pass, default=_sums)
    dkernel = taps.reshape(kernel.shape).astype(kernel.dtype)
    return depthwise(g, kernel[:, ::-1, ::-1]), dkernel


def _sums(*products: Array) -> Array:
    """Sums of k*k maps over positions, `b kk r`: one reduction each (TPU and GPU fuse these)."""
    return jnp.stack([p.sum((1, 2)) for p in products], 1)


def _sums_in_one_pass(*products: Array) -> Array:
    """The same as one reduction with k*k operands: on CPU no product is written to memory."""
    zeros = (np.float32(0),) * len(products)
    sums = lax.reduce(
        products, zeros, lambda a, b: tuple(u + v for u, v in zip(a, b, strict=True)), (1, 2)
    )
    return jnp.stack(sums, 1)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def filter_norm(kernel: Array, scale: Array, shift: Array, epsilon: float = 1e-10) -> Array:
    """Normalises each channel's taps to mean 0 and unbiased standard deviation 1, then scales
    and shifts.

    Args:
        kernel: generated kernels `b kk r`, float32.
        scale: learned, `kk r`.
        shift: learned, `kk r`.
        epsilon: added to the standard deviation.

    Source: the channel-wise FilterNorm of decoupled dynamic filters, as in TADFormer's task
        filter. The
    gradient is zero, not NaN, where all taps of a channel are equal.
    """
    kernel = kernel.astype(jnp.float32)
    centred = kernel - kernel.mean(1, keepdims=True)
    variance = jnp.square(centred).sum(1, keepdims=True) / (kernel.shape[1] - 1)
    # Rounding of the mean leaves a tiny variance even where all taps are equal.
    flat = kernel.max(1, keepdims=True) == kernel.min(1, keepdims=True)
    deviation = jnp.sqrt(jnp.where(flat, 1.0, variance))
    normalised = jnp.where(flat, 0.0, centred / (deviation + epsilon))
    return normalised * scale[None] + shift[None]
