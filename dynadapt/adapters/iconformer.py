"""iConFormer (arXiv 2409.02838): a bottleneck whose convolution kernels are made from each input.

    h   = act(Down(x))                               tokens, `b n r`
    m   = patch tokens of h as a map                 `b h w r`
    k   = bias + W standard(mean of m over the map)  `b k k r`: one kernel a channel and an instance
    out = s * Up(depthwise(m, k))                    parallel to the MLP: x <- x + MLP(LN(x)) + out

The paper's text gives the idea; placement, activation, scale and the token policy are
reconstructed, with one adapter a block at r = 64 as the setting that meets its published shares.
The kernels' start and scale are ours: the bias is the identity and W starts at zero, divided by its
fan-in, and the means are standardised over channels (`layers.Generator`). Without that the kernels
grow with the tokens that they convolve, block after block, and runs diverge; `scaled=False` undoes
it.
Count on a ViT at k = 3: L (2 d r + r + d + 9 r^2 + 9 r), plus 18 r L with FilterNorm.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import dynamic
from dynadapt.adapters import BLOCK, check_map, check_odd, check_rank, check_rate, rank_of_width
from dynadapt.attach import attach
from dynadapt.context import Context, dropout, join_map, split_map
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import ACTIVATIONS, Generator, LayerNorm, Linear, kaiming, standard

Array = jax.Array
TRAINS = ()
# Of adapters that were written before these settings were there.
BEFORE = {"scaled": False}
NOT_MERGEABLE = "its kernels follow the image, and where they don't an activation is in the way"
# Over its tasks and backbones, which the abstract does not tell apart.
PRINTED = {name: "1.6 to 2.8 %" for name in ("vit_b16", "swin_b", "swin_l")}

PLACEMENTS = {
    "parallel_mlp": f"{BLOCK}/mlp",
    "sequential_mlp": f"{BLOCK}/mlp",
    "parallel_attn": f"{BLOCK}/attn",
    "both": f"{BLOCK}/(attn|mlp)",
}
KERNELS = ("dynamic", "static", "none")
PREFIXES = ("identity", "center", "drop")


class ICoN(nnx.Module):
    """Input-conditioned network: kernels `b k k r` from maps `b h w r`, in float32."""

    def __init__(
        self, rank: int, kernel: int, *, scaled, filter_norm, identity_bias, rngs: nnx.Rngs
    ):
        taps = kernel * kernel
        self.kernel, self.rank, self.filter_norm = kernel, rank, filter_norm
        self.scaled = scaled
        self.dense = (Generator if scaled else Linear)(rank, taps * rank, rngs=rngs)
        if identity_bias:
            centre = jnp.zeros((taps, rank)).at[taps // 2].set(1.0)
            self.dense.bias[...] = centre.reshape(-1)
        if filter_norm:
            # Initial values as in the authors' task filter: ReLU gain over the kernel's side.
            gain = math.sqrt(2) / kernel
            normal = jax.random.normal
            self.scale = nnx.Param(normal(rngs.params(), (taps, rank)) * gain)
            self.shift = nnx.Param(normal(rngs.params(), (taps, rank)))

    def __call__(self, m: Array) -> Array:
        pooled = m.astype(jnp.float32).mean((1, 2))
        if self.scaled:
            pooled = standard(pooled)
        taps = self.dense(pooled).reshape(-1, self.kernel**2, self.rank)
        if self.filter_norm:
            taps = dynamic.filter_norm(taps, self.scale[...], self.shift[...])
        return taps.reshape(-1, self.kernel, self.kernel, self.rank)


class StaticKernel(nnx.Module):
    """The ablation: one learned kernel for all inputs, the identity at the start."""

    def __init__(self, rank: int, kernel: int):
        centre = jnp.zeros((kernel, kernel, rank)).at[kernel // 2, kernel // 2].set(1.0)
        self.taps = nnx.Param(centre)

    def __call__(self, m: Array) -> Array:
        return jnp.broadcast_to(self.taps[...], (m.shape[0], *self.taps.shape))


class DynamicAdapter(nnx.Module):
    """Host: a residual branch over tokens `b n d` with `ctx.grid` patch tokens at the end."""

    def __init__(
        self,
        host,
        *,
        rngs: nnx.Rngs,
        rank,
        kernel,
        kernels,
        sequential,
        act,
        scale,
        learn_scale,
        ln_before,
        scaled,
        filter_norm,
        identity_bias,
        prefix,
        rate,
    ):
        self.sequential, self.act, self.prefix, self.rate = sequential, act, prefix, rate
        self.ln_before = ln_before
        if ln_before:
            self.norm = LayerNorm(host.dim, rngs=rngs)
        self.down = Linear(host.dim, rank, kernel_init=kaiming, rngs=rngs)
        self.kernels = kernels
        if kernels == "dynamic":
            how = dict(scaled=scaled, filter_norm=filter_norm, identity_bias=identity_bias)
            self.icon = ICoN(rank, kernel, **how, rngs=rngs)
        elif kernels == "static":
            self.icon = StaticKernel(rank, kernel)
        self.up = Linear(rank, host.dim, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.learn_scale = learn_scale
        self.scale = nnx.Param(jnp.asarray(scale, jnp.float32)) if learn_scale else scale
        # The sites of one block share a key: each needs a mask of its own.
        self.site = f"iconformer/{type(host).__name__}"

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        y = host.bare(x, ctx)
        return y + self.branch(x + y if self.sequential else x, ctx)

    def branch(self, x: Array, ctx: Context) -> Array:
        """The adapter alone, `b n d`."""
        u = self.norm(x, ctx) if self.ln_before else x
        h = ACTIVATIONS[self.act](self.down(u, ctx))
        if self.kernels != "none":
            h = self.convolve(h, ctx)
        h = dropout(h, self.rate, ctx, self.site)
        scale = self.scale[...].astype(x.dtype) if self.learn_scale else self.scale
        return scale * self.up(h, ctx)

    def convolve(self, h: Array, ctx: Context) -> Array:
        """Convolves the patch tokens of `b n r` as a map, each instance with its own kernels."""
        leading, m = split_map(h, ctx)
        kernel = ctx.made("kernel", self.icon(m))
        m = dynamic.depthwise(m, kernel)
        if self.prefix == "drop":
            leading = jnp.zeros_like(leading)
        elif self.prefix == "center":
            middle = kernel.shape[1] // 2
            leading = leading * kernel[:, middle, middle, None].astype(h.dtype)
        return join_map(leading, m)


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0."""
    return {"rank": rank_of_width(backbone)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 0,
    kernel: int = 3,
    kernels: str = "dynamic",
    placement: str = "parallel_mlp",
    act: str = "relu",
    scale: float = 0.1,
    learn_scale: bool = False,
    ln_before: bool = False,
    scaled: bool = True,
    filter_norm: bool = False,
    identity_bias: bool = True,
    prefix: str = "identity",
    dropout: float = 0.0,
) -> None:
    """Attaches one dynamic adapter to every block (two with placement "both").

    Args:
        backbone: a transformer with a grid of patch tokens.
        rngs: source of the random weights.
        rank: r; 0 is a twelfth of the width, the widest stage's, from 4 to 64.
        kernel: side of the generated kernels, odd.
        kernels: "dynamic"; "static" (one learned kernel) and "none" (no convolution) are ablations.
        placement: "parallel_mlp", "sequential_mlp", "parallel_attn" or "both".
        act: activation after the down-projection, a name in `layers.ACTIVATIONS`.
        scale: s; its start where `learn_scale` is on.
        learn_scale: train s.
        ln_before: normalise the adapter's input.
        scaled: make kernels of standardised means, by a layer scaled by its fan-in and zero at the
            start; without it, as the paper's text has it, by a plain layer of the means.
        filter_norm: normalise the generated kernels.
        identity_bias: start the generated kernels at the identity; not so, without `scaled`, around
            zero.
        prefix: what class token and registers get: "identity" (pass unconvolved), "center" (the
            kernel's centre tap) or "drop" (zero).
        dropout: rate before the up-projection.
    """
    if placement not in PLACEMENTS:
        raise UnknownName("placement", placement, PLACEMENTS)
    if act not in ACTIVATIONS:
        raise UnknownName("activation", act, ACTIVATIONS)
    if prefix not in PREFIXES:
        raise UnknownName("prefix policy", prefix, PREFIXES)
    if kernels not in KERNELS:
        raise UnknownName("kind of kernels", kernels, KERNELS)
    check_odd("kernel", kernel)
    check_rate("dropout", dropout)
    if filter_norm and kernel == 1:
        raise ConfigError("filter_norm needs kernel of at least 3: a single tap has no deviation")
    if scaled and not identity_bias:
        raise ConfigError(
            "identity_bias=False needs scaled=False: all kernels would start, and stay, at zero"
        )
    check_map("iconformer", backbone)
    check_rank(rank, backbone, PLACEMENTS[placement])
    make = functools.partial(
        DynamicAdapter, rngs=rngs, rank=rank, kernel=kernel, kernels=kernels,
        sequential=placement == "sequential_mlp", act=act, scale=scale, learn_scale=learn_scale,
        ln_before=ln_before, scaled=scaled, filter_norm=filter_norm, identity_bias=identity_bias,
        prefix=prefix, rate=dropout,
    )  # fmt: skip
    attach(backbone, PLACEMENTS[placement], make)
