"""DAPT (arXiv 2403.01439): dynamic adapters and internal prompts, for point clouds.

    u = norm2(x)
    a = relu(w . n + c) Up(dropout(gelu(Down n))),  n = LN(u)     w . n + c: one scale a token
    y = x + MLP(u) + a
    p = gamma * mean_n gelu(a) + beta             one prompt a block, seen by all later blocks

x is what attention leaves. TFTS, a scale and a shift of each channel, is on what norm1, qkv, proj,
norm2, fc1 and fc2 answer, on the group tokens, the prompts (gamma and beta) and the final norm, and
starts normal around the identity; Up and all biases start at zero. The class token and its position
train. The last block's prompt reaches only heads that read prompts. The position joins at every
block, as in Point-MAE (ours: the published code adds it once, before the first).

Count: L (2 d r + r + d + 2 d + d + 1) + 24 d L + 4 d + 2 d.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import check_rank, check_rate, rank_of_width
from dynadapt.attach import attach, sites
from dynadapt.context import Context, drop_path, dropout, mean_of_tokens
from dynadapt.errors import ConfigError
from dynadapt.layers import ACTIVATIONS, Affine, Generator, LayerNorm, Linear, kaiming
from dynadapt.layers.places import Places

Array = jax.Array
TRAINS = ("class_token", "class_position")
PRINTED = {"point_mae_s_g128": "1.1 M with head"}
# Of adapters that were written before these settings were there.
BEFORE = {"scaled": False}
NOT_MERGEABLE = "its scale is made for each token"

_BLOCK = r"blocks/\d+"
_TFTS = rf"embed|{_BLOCK}/attn/(norm|qkv|proj)|{_BLOCK}/mlp/(norm|fc1|fc2)|norm"


class Tfts(Affine):
    """Host: a norm, a linear layer or the embedding of groups."""

    def __init__(self, host, *, rngs: nnx.Rngs):
        last = getattr(host, "conv4", host)  # of the embedding
        weight = last.kernel if hasattr(last, "kernel") else last.scale
        super().__init__(weight.shape[-1], rngs=rngs)

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        return super().__call__(host.bare(x, ctx))


class Dynamic(nnx.Module):
    """Host: a block over tokens `b n d`, to which it adds one."""

    def __init__(
        self, host, *, rank: int, scaled: bool, rate: float, places: Places, rngs: nnx.Rngs
    ):
        self.rate, self.places = rate, places
        self.norm = LayerNorm(host.dim, epsilon=1e-5, rngs=rngs)
        if scaled:
            self.scale = Generator(host.dim, 1, spread=3**-0.5, rngs=rngs)
        else:
            self.scale = Linear(host.dim, 1, kernel_init=kaiming, rngs=rngs)
        self.down = Linear(host.dim, rank, kernel_init=kaiming, rngs=rngs)
        self.up = Linear(rank, host.dim, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.prompt = Affine(host.dim, rngs=rngs)

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        x, ctx = self.places.entered(x, ctx)
        x = x + host.attn(x, ctx)
        a = self.branch(host.mlp.norm(x, ctx), ctx)
        # The same examples are dropped in both.
        x = x + host.mlp(x, ctx) + drop_path(a, ctx, host.mlp.name)
        prompt = self.prompt(mean_of_tokens(ACTIVATIONS["gelu"](a.astype(jnp.float32)), ctx))
        ctx.record("prompt", prompt)
        return self.places.put(x, prompt, ctx)

    def branch(self, u: Array, ctx: Context) -> Array:
        """What joins the MLP's answer, `b n d`, for normed tokens `b n d`."""
        n = self.norm(u, ctx)
        h = dropout(ACTIVATIONS["gelu"](self.down(n)), self.rate, ctx, "dapt")
        return jax.nn.relu(self.scale(n)) * self.up(h)


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0."""
    return {"rank": rank_of_width(backbone, part=6)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 0,
    scaled: bool = True,
    dropout: float = 0.2,
) -> None:
    """Attaches an adapter to every block, and a scale and a shift to every operation.

    Args:
        backbone: a transformer over groups of points.
        rngs: source of the random weights.
        rank: r; 0 is a sixth of the width, from 4 to 64. Published: 64 for ScanObjectNN, 72 for
            ModelNet40, at width 384.
        scaled: divide what makes a token's scale by its fan-in (ours); it starts as without.
        dropout: rate after the activation; published: 0.2 for ScanObjectNN, 0 for ModelNet40.
    """
    check_rate("dropout", dropout)
    if backbone.takes != "points":
        raise ConfigError("DAPT needs a backbone of point clouds, such as point_mae_s")
    check_rank(rank, backbone, _BLOCK)
    places = Places.of(sites(backbone, _BLOCK))
    given = dict(rank=rank, scaled=scaled, rate=dropout, places=places, rngs=rngs)
    attach(backbone, _BLOCK, functools.partial(Dynamic, **given))
    attach(backbone, _TFTS, functools.partial(Tfts, rngs=rngs))
