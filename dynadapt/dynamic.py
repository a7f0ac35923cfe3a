"""Kernels of their own for each instance, as pure functions.

The definition of each operation is written for one instance and vmapped; it is what tests compare
with. The default is the fastest equal form: on CPU by time, on TPU and GPU by what their compilers
say (`dynadapt bench dynamic`). Letters: `b` batch, `h w` map, `r` channels, `k` kernel side.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

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
    wide, taps = x.astype(jnp.float32), kernel.astype(jnp.float32)
    views = _views(wide, kernel.shape[1])
    return sum(view * taps[:, i, j, None, None] for i, j, view in views).astype(x.dtype)


def _views(x: Array, k: int) -> list[tuple[int, int, Array]]:
    """The k*k views of the zero-padded map, `(i, j, b h w r)`."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    return [(i, j, padded[:, i : i + h, j : j + w]) for i in range(k) for j in range(k)]


def _depthwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    wide, slope = x.astype(jnp.float32), g.astype(jnp.float32)
    products = tuple(view * slope for _, _, view in _views(wide, kernel.shape[1]))
    taps = lax.platform_dependent(
        *products, cpu=_sums_in_one_pass, tpu=_sums_in_one_pass, default=_sums
    )
    dkernel = taps.reshape(kernel.shape).astype(kernel.dtype)
    return depthwise(g, kernel[:, ::-1, ::-1]), dkernel


def _sums(*products: Array) -> Array:
    """Sums of k*k maps over positions, `b kk r`: one reduction each, which GPUs fuse."""
    return jnp.stack([p.sum((1, 2)) for p in products], 1)


def _sums_in_one_pass(*products: Array) -> Array:
    """The same as one reduction with k*k operands: on CPU no product is written to memory."""
    zeros = (np.float32(0),) * len(products)
    sums = lax.reduce(
        products, zeros, lambda a, b: tuple(u + v for u, v in zip(a, b, strict=True)), (1, 2)
    )
    return jnp.stack(sums, 1)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def full_one(x: Array, kernel: Array) -> Array:
    """Convolution of one map `h w r` with a kernel `k k r s`, zero padded: `h w s`."""
    return lax.conv_general_dilated(
        x[None],
        kernel.astype(x.dtype),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.float32,
    )[0].astype(x.dtype)


def full_reference(x: Array, kernel: Array) -> Array:
    """The definition of `full`: one convolution for each instance, vmapped.

    Its backward pass costs the square of the batch on CPU.
    """
    return jax.vmap(full_one)(x, kernel)


@jax.custom_vjp
def full(x: Array, kernel: Array) -> Array:
    """Convolution of each map with its own full kernel, stride 1, zero padding.

    Args:
        x: maps `b h w r`.
        kernel: kernels `b k k r s`, odd k; multiplied in the dtype of `x`.

    Returns:
        `b h w s` in the dtype of `x`, summed in float32.
    """
    # Vmapped, the convolution has a group for each instance: a number, which `b` is not while a
    # program for any batch size is written.
    if export.is_symbolic_dim(x.shape[0]):
        return _full_by_taps(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_full_on_cpu, default=full_reference)


# Positions of a map from which on a CPU works faster through one instance after another.
LARGE = 32 * 32


def _full_on_cpu(x: Array, kernel: Array) -> Array:
    """One convolution after another on large maps; else a batched product for each tap."""
    if x.shape[1] * x.shape[2] >= LARGE:
        return lax.map(lambda pair: full_one(*pair), (x, kernel))
    return _full_by_taps(x, kernel)


def _full_by_taps(x: Array, kernel: Array) -> Array:
    """The sum over taps of the product of a shifted map with the tap's matrix, all batched."""
    kernel = kernel.astype(x.dtype)
    taps = (
        jnp.einsum("bhwr,brs->bhws", view, kernel[:, i, j], preferred_element_type=jnp.float32)
        for i, j, view in _views(x, kernel.shape[1])
    )
    return sum(taps).astype(x.dtype)


def _full_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return full(x, kernel), (x, kernel)


def _full_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *saved, g, cpu=_full_gradients_on_cpu, default=_full_reference_gradients
    )


def _full_reference_gradients(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
    """The definition's own: vmapping its kernel gradient costs TPUs the square of the batch."""
    return jax.vjp(full_reference, x, kernel)[1](g)


def _full_gradients_on_cpu(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
    turned = kernel[:, ::-1, ::-1].swapaxes(3, 4)
    return _full_on_cpu(g, turned), _full_taps_on_cpu(x, kernel, g).astype(kernel.dtype)


def _full_taps_on_cpu(x: Array, kernel: Array, g: Array) -> Array:
    """The kernel's gradient, one instance after another.

    The map is convolved with the slope as kernel, its channels as a batch: `r h w 1` with
    `h w 1 s`, padded by k // 2, is `r k k s`.
    """
    margin = kernel.shape[1] // 2

    def one(pair: tuple[Array, Array]) -> Array:
        x, g = pair
        taps = lax.conv_general_dilated(
            x.transpose(2, 0, 1)[..., None],
            g[:, :, None],
            window_strides=(1, 1),
            padding=[(margin, margin)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )
        return taps.transpose(1, 2, 0, 3)

    return lax.map(one, (x, g))


full.defvjp(_full_forward, _full_backward)


def hypernetwork(
    embedding: Array, hidden: Array, hidden_bias: Array, out: Array, out_bias: Array
) -> Array:
    """Two-layer hypernetwork (Ha et al., arXiv 1609.09106): a kernel from an embedding, float32.

    a_c = W1_c H + b1_c for each input channel c, then kernel[c] = W2 a_c + b2 with one W2 for all.

    Args:
        embedding: H, `b z`.
        hidden: W1, `z r z`: input, channel, output.
        hidden_bias: b1, `r z`.
        out: W2, `z k k s`.
        out_bias: b2, `k k s`.

    Returns:
        Kernels `b k k r s`.
    """
    a = jnp.einsum("bz,zry->bry", embedding.astype(jnp.float32), hidden) + hidden_bias[None]
    return jnp.einsum("bry,yijs->bijrs", a, out) + out_bias[None, :, :, None]


def importance(features: Array, prompts: Array, scale: float = 1.0) -> Array:
    """Maps M of prompts, `b n t`, in float32: each sums to 1 over positions.

    M_t = softmax over positions of scale F . E_t

    Args:
        features: F, `b n d`.
        prompts: E, `t d`.
        scale: of the scores; the paper has none (1).

    Source: VFM-Adapter, equation 6.
    """
    features, prompts = features.astype(jnp.float32), prompts.astype(jnp.float32)
    return jax.nn.softmax(scale * jnp.einsum("bnd,td->bnt", features, prompts), axis=1)


def pool_by_importance(features: Array, maps: Array) -> Array:
    """The mean over prompts of features `b n d` averaged by maps `b n t`: `b d`, in float32.

    H = 1/T sum_t sum_p F_p M_tp

    Source: VFM-Adapter, equation 7.
    """
    return jnp.einsum("bn,bnd->bd", maps.mean(-1), features.astype(jnp.float32))


def filter_norm(kernel: Array, scale: Array, shift: Array, epsilon: float = 1e-10) -> Array:
    """Normalises each channel's taps to mean 0 and unbiased deviation 1, then scales and shifts.

    Args:
        kernel: generated kernels `b kk r`, float32.
        scale: learned, `kk r`.
        shift: learned, `kk r`.
        epsilon: added to the standard deviation.

    Source: the channel-wise FilterNorm of decoupled dynamic filters, as in TADFormer's task
    filter. The gradient is zero, not NaN, where all taps of a channel are equal.
    """
    kernel = kernel.astype(jnp.float32)
    centred = kernel - kernel.mean(1, keepdims=True)
    variance = jnp.square(centred).sum(1, keepdims=True) / (kernel.shape[1] - 1)
    # Rounding of the mean leaves a tiny variance even where all taps are equal.
    flat = kernel.max(1, keepdims=True) == kernel.min(1, keepdims=True)
    deviation = jnp.sqrt(jnp.where(flat, 1.0, variance))
    normalised = jnp.where(flat, 0.0, centred / (deviation + epsilon))
    return normalised * scale[None] + shift[None]
