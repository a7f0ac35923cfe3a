"""Top-1 mixtures of experts for tokens, as pure functions.

Letters: `n` tokens of any shape before the last axis, `d` width, `e` experts, `r` rank of an
expert, `k` width of the routing space.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def route(queries: Array, experts: Array, temperature: Array | float) -> Array:
    """Probabilities of the experts by cosine similarity, `... e`, in float32.

    P = softmax_i(q . e_i / (|q| |e_i| tau))

    Args:
        queries: `... k`.
        experts: one embedding each, `e k`.
        temperature: tau.

    Source: X-MoE (arXiv 2204.09179), as Adapter-X's router draws it.
    """
    scores = jnp.einsum("...k,ek->...e", _unit(queries), _unit(experts))
    return jax.nn.softmax(scores / temperature, axis=-1)


def _unit(x: Array) -> Array:
    """Vectors of length 1, in float32; the zero vector stays zero and has a finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def top1(probabilities: Array) -> Array:
    """The gate `... e`: the largest probability at its expert, zero elsewhere.

    No gradient reaches the experts' choice; the chosen probability carries one.
    """
    chosen = jnp.argmax(probabilities, axis=-1)
    return probabilities * jax.nn.one_hot(chosen, probabilities.shape[-1])


def balance(load: Array, probability: Array) -> Array:
    """Switch Transformer's load-balance loss (arXiv 2101.03961, eq. 4), without its factor.

    E * sum_i f_i P_i: f_i the share of tokens sent to i, P_i the mean probability; 1 if uniform.

    Args:
        load: f `b e` of each example; a constant to the gradient.
        probability: P `b e`.
    """
    share = jax.lax.stop_gradient(load.mean(0))
    return probability.shape[-1] * (share * probability.mean(0)).sum()


def experts_one(x: Array, gate: Array, down: Array, down_bias: Array, up: Array, up_bias: Array):
    """The definition for one token `d`: the gated sum of bottlenecks, `d`.

    y = sum_i g_i (Up_i relu(Down_i x + b_i) + c_i)

    Args:
        x: `d`.
        gate: `e`.
        down, down_bias: `e d r`, `e r`.
        up, up_bias: `e r d`, `e d`.
    """

    def one(down: Array, down_bias: Array, up: Array, up_bias: Array) -> Array:
        return jax.nn.relu(x @ down + down_bias) @ up + up_bias

    return gate @ jax.vmap(one)(down, down_bias, up, up_bias)


def codes(x: Array, down: Array, down_bias: Array) -> Array:
    """The codes of all experts for tokens `... d`, side by side, `... e*r`."""
    e, d, r = down.shape
    wide = down.transpose(1, 0, 2).reshape(d, e * r).astype(x.dtype)
    code = x.reshape(-1, d) @ wide + down_bias.reshape(1, e * r).astype(x.dtype)
    return jax.nn.relu(code).reshape(*x.shape[:-1], e * r)


def answers(code: Array, gate: Array, up: Array, up_bias: Array) -> Array:
    """The gated sum `... d` of what experts make of their codes `... e*r`; the gate is `... e`."""
    (e, r, d), dtype = up.shape, code.dtype
    lead = code.shape[:-1]
    code, gate = code.reshape(-1, e * r), gate.reshape(-1, e)
    code = code * jnp.repeat(gate, r, axis=1).astype(dtype)
    y = code @ up.reshape(e * r, d).astype(dtype) + (gate @ up_bias).astype(dtype)
    return y.reshape(*lead, d)


def experts(
    x: Array, gate: Array, down: Array, down_bias: Array, up: Array, up_bias: Array
) -> Array:
    """The same for tokens `... d`: all experts as one wide bottleneck whose code the gate masks.

    With few narrow experts this beats sorting or gathering tokens, and it is exact.
    """
    return answers(codes(x, down, down_bias), gate, up, up_bias)
