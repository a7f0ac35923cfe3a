"""VFM-Adapter (AAAI 2025): hybrid operation mapping beside attention and MLP of every block.

    out = ReLU(x W_d) C W_u s                      x: the branch's normed tokens, W_d: d r, W_u: r d
    M_t = softmax over positions of x . E_t        E: T prompts
    H   = 1/T sum_t sum_p x_p M_tp                 projected from d to z
    C   = I + hypernetwork(H) / sqrt(k k r)        a full k x k convolution r -> r for each image

One hypernetwork for all attention branches and one for all MLPs, lent by an adapter on the root;
E and the projection are shared by both (one for each width where a backbone has several).
Equations 5 to 8 of the paper; equations 9 and 10 are `static_count` and `dynamic_count`.

The rank, z, T, s, biases, the projection d -> z and `scale_logits` are ours: the paper does not
give them. The defaults give the paper's 2.78 M on ViT-B; ViT-H's 27.8 M is rank 160, z 64. Ours,
too, is that kernels are made beside the identity I, and that all that makes them is divided by its
fan-in (`layers.Generator`): without, one step of Adam moves a branch by a multiple of itself, runs
collapse, and the class token no longer depends on the image. `scaled=False` undoes it.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import dynamic
from dynadapt.adapters import BLOCK, check_least, check_map, check_odd, check_rank, rank_of_width
from dynadapt.attach import Shared, attach, each_device, lent, sites
from dynadapt.context import Context, join_map, split_map
from dynadapt.errors import UnknownName
from dynadapt.layers import Generator, Linear, kaiming, standard

Array = jax.Array
TRAINS = ()
# Of adapters that were written before these settings were there.
BEFORE = {"scaled": False}
PLAIN = (r".*/prompts/d\d+", r".*/embedding")
PRINTED = {name: "2.78 M" for name in ("vit_b16", "dinov2_b14", "sam_b16")}
NOT_MERGEABLE = "its kernels follow the input, and where they don't a ReLU is in the way"

KERNELS = ("input", "layer", "static", "none")
_SITES = f"{BLOCK}/(attn|mlp)"
START = 0.05  # of a kernel beside the identity: what it adds to a map, over the map


def static_count(depth: int, dim: int, rank: int) -> int:
    """Equation 9: parameters with a convolution of its own for each site, without biases."""
    return 2 * depth * (2 * dim * rank + 9 * rank**2)


def dynamic_count(depth: int, dim: int, rank: int, z: int) -> int:
    """Equation 10: parameters with shared hypernetworks, without biases, E and projection."""
    return 2 * (2 * depth * dim * rank + 9 * z * rank + z**2 * rank)


class Hypernetwork(nnx.Module):
    """Kernels `b k k r r` from embeddings `b z` (`dynamic.hypernetwork`).

    Where embeddings have variance 1, kernels start with variance 1 / (k k r). Scaled, both layers
    are divided by their fan-in z. What they make, a little at the start, is divided by the root of
    the fan-in of the convolution, k k r, as sums of independent taps grow, and joins the identity.
    """

    def __init__(self, rank: int, z: int, kernel: int, *, scaled, bias: bool, rngs: nnx.Rngs):
        shape = (z, kernel, kernel, rank)
        hidden = jax.random.normal(rngs.params(), (z, rank, z))
        out = jax.random.normal(rngs.params(), shape)
        self.scaled = scaled
        self.hidden = nnx.Param(hidden * (z**0.5 if scaled else z**-0.5))
        spread = START * z**0.5 if scaled else (z * kernel * kernel * rank) ** -0.5
        self.out = nnx.Param(out * spread)
        self.has_bias = bias
        if bias:
            self.hidden_bias = nnx.Param(jnp.zeros((rank, z)))
            self.out_bias = nnx.Param(jnp.zeros(shape[1:]))

    def __call__(self, embedding: Array) -> Array:
        hidden, out = self.hidden[...], self.out[...]
        if self.scaled:
            hidden, out = hidden / hidden.shape[0], out / out.shape[0]
        if self.has_bias:
            biases = self.hidden_bias[...], self.out_bias[...]
        else:
            biases = jnp.zeros(hidden.shape[1:]), jnp.zeros(out.shape[1:])
        made = dynamic.hypernetwork(embedding, hidden, biases[0], out, biases[1])
        return beside_identity(made) if self.scaled else made


def beside_identity(made: Array) -> Array:
    """Kernels `b k k r r`: the identity, and what is made over the root of their fan-in."""
    _, k, _, r, _ = made.shape
    same = jnp.zeros((k, k, r, r)).at[k // 2, k // 2].set(jnp.eye(r))
    return same[None] + made * (k * k * r) ** -0.5


class Common(nnx.Module):
    """What all sites share: a hypernetwork a side, and prompts and a projection for each width."""

    def __init__(
        self, dims: tuple[int, ...], rank, z, kernel, prompts, *,
        kernels, scale_logits, scaled, bias, rngs
    ):  # fmt: skip
        self.scale_logits, self.scaled = scale_logits, scaled
        make = functools.partial(Hypernetwork, rank, z, kernel, scaled=scaled, bias=bias, rngs=rngs)
        self.attn, self.mlp = make(), make()
        if kernels == "input":
            # Scores of prompts, too, are divided by their fan-in: small at first, and steady.
            self.prompts = nnx.Dict(
                {f"d{d}": nnx.Param(self._drawn(rngs.params(), (prompts, d))) for d in dims}
            )
            layer = functools.partial(Generator, spread=1.0) if scaled else Linear
            self.project = nnx.Dict({f"d{d}": layer(d, z, use_bias=False, rngs=rngs) for d in dims})

    def _drawn(self, key: Array, shape: tuple[int, int]) -> Array:
        spread = 0.02 * (shape[1] ** 0.5 if self.scaled else 1.0)
        return spread * jax.random.normal(key, shape)

    def embedding(self, x: Array) -> tuple[Array, Array]:
        """The embedding `b z` of patch tokens `b n d`, and their maps, `b n t`."""
        d = x.shape[-1]
        scale = d ** (-0.5 * (self.scale_logits + self.scaled))
        maps = dynamic.importance(x, self.prompts[f"d{d}"][...], scale)
        pooled = dynamic.pool_by_importance(x, maps)
        return self.project[f"d{d}"](standard(pooled) if self.scaled else pooled), maps


class Hom(nnx.Module):
    """Host: a residual branch over tokens `b n d` with `ctx.grid` patch tokens at the end."""

    def __init__(self, host, *, rank, z, kernel, kernels, scale, scaled, bias, rngs):
        self.kernels, self.scale, self.side = kernels, scale, host.name
        self.scaled = scaled
        both = dict(use_bias=bias, rngs=rngs)
        self.down = Linear(host.dim, rank, kernel_init=kaiming, **both)
        self.up = Linear(rank, host.dim, kernel_init=nnx.initializers.zeros, **both)
        if kernels == "layer":
            self.embedding = nnx.Param(jax.random.normal(rngs.params(), (1, z)))
        if kernels == "static":
            draw = jax.random.normal(rngs.params(), (kernel, kernel, rank, rank))
            spread = START if scaled else (kernel * kernel * rank) ** -0.5
            self.taps = nnx.Param(draw * spread)

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        normed = host.norm(x, ctx)
        h = jax.nn.relu(self.down(normed, ctx))
        if self.kernels != "none":
            leading, m = split_map(h, ctx)
            kernel = ctx.made("kernel", self.kernel(normed, ctx))
            h = join_map(leading, dynamic.full(m, kernel))
        return host.bare(x, ctx) + self.scale * self.up(h, ctx)

    def kernel(self, x: Array, ctx: Context) -> Array:
        """The kernels `b k k r r` for normed tokens `b n d`."""
        if self.kernels == "static":
            taps = self.taps[...][None]
            taps = beside_identity(taps) if self.scaled else taps
            return jnp.broadcast_to(taps, (x.shape[0], *taps.shape[1:]))
        common = lent(ctx, Common)
        if self.kernels == "layer":
            embedding = jnp.broadcast_to(self.embedding[...], (x.shape[0], self.embedding.shape[1]))
            return each_device(ctx, common, lambda c, e: getattr(c, self.side)(e), embedding)

        def made(common: Common, patches: Array) -> tuple[Array, Array]:
            embedding, maps = common.embedding(patches)
            return getattr(common, self.side)(embedding), maps

        patches = x[:, x.shape[1] - math.prod(ctx.grid) :]
        kernel, maps = each_device(ctx, common, made, patches)
        ctx.record("importance", maps.reshape(len(x), *ctx.grid, -1))
        return kernel


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank where it is 0."""
    return {"rank": rank_of_width(backbone)}


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 0,
    z: int = 48,
    prompts: int = 8,
    kernel: int = 3,
    kernels: str = "input",
    scale: float = 0.1,
    scale_logits: bool = True,
    scaled: bool = True,
    bias: bool = True,
) -> None:
    """Attaches HOM to the attention and the MLP of every block.

    Args:
        backbone: a transformer with a grid of patch tokens: ViT, DINOv2, SAM or Swin.
        rngs: source of the random weights.
        rank: r; 0 is a twelfth of the width, the widest stage's, from 4 to 64.
        z: width of the embedding that kernels are generated from.
        prompts: T.
        kernel: side k of the generated kernels, odd.
        kernels: "input"; the ablations of the paper's table are "layer" (a learned embedding of
            each site instead of the input's), "static" (a learned convolution of each site) and
            "none" (no convolution).
        scale: s.
        scale_logits: divide the prompts' scores by sqrt(d).
        scaled: make the kernels beside the identity, and divide all that makes them by its fan-in.
        bias: whether down, up and the hypernetworks have biases.
    """
    if kernels not in KERNELS:
        raise UnknownName("kind of kernels", kernels, KERNELS)
    check_odd("kernel", kernel)
    check_least("z", z)
    check_least("prompts", prompts)
    check_map("vfm_adapter", backbone)
    check_rank(rank, backbone, _SITES)
    dims = tuple(dict.fromkeys(host.dim for _, host in sites(backbone, _SITES)))
    make = functools.partial(
        Hom, rank=rank, z=z, kernel=kernel, kernels=kernels, scale=scale, scaled=scaled, bias=bias,
        rngs=rngs,
    )  # fmt: skip
    attach(backbone, _SITES, make)
    if kernels in ("input", "layer"):
        common = Common(
            *(dims, rank, z, kernel, prompts),
            **dict(kernels=kernels, scale_logits=scale_logits, scaled=scaled, bias=bias, rngs=rngs),
        )
        attach(backbone, "", lambda host: Shared(host, common))
