"""Adapter-X (arXiv 2406.03051): a mixture of adapters shared by all blocks, routed token by token.

    z_j = sub-token j of norm2(x), width d / h
    P   = softmax over experts of cos(R z_j, e_i) / tau;   i* = argmax P
    o_j = P_i* Up_i*(relu(Down_i* z_j));   SMoA = s concat_j o_j
    y   = x + MLP(norm2 x) + SMoA(norm2 x)          parallel: AdaptFormer-X
    y   = x + f + SMoA(f), f = MLP(norm2 x)         sequential: Adapter-X
    p   = gamma mean_n SMoA + beta                  one prompt a block, seen by all later blocks

Experts and router are lent by an adapter on the root; norm2 and the class token train. The figures
give four experts and three sub-tokens; r, k, tau, s, the loss's factor and dropout are ours, r and
k such that the count is the paper's 0.17 M; so is `scaled`: one step of Adam moves routes by about
the rate, not by the rate times the width, and tau by a share of itself. The last block's prompt
reaches only heads that read prompts.

Count on ViT: 4 d L + d + E (2 d_h r + r + d_h) + d_h k + E k + 1, d_h = d / h. On Point-MAE,
which makes DAPT-X, d more for the class token's position; there r = 24 and k = 32 (ours) give the
paper's 1.88 % with DAPT's head.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import mixture
from dynadapt.adapters import check_least, check_rank, check_rate, rank_of_width
from dynadapt.attach import Shared, attach, each_device, lent, sites
from dynadapt.context import Context, dropout, mean_of_tokens
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import Generator, Linear, kaiming
from dynadapt.layers.places import Places

Array = jax.Array
TRAINS = (r"blocks/\d+/mlp/norm/(scale|bias)", "class_token", "class_position")
PRINTED = {"vit_b16": "0.17 M"}
# Of adapters that were written before these settings were there.
BEFORE = {"scaled": False}
NOT_MERGEABLE = "its experts are chosen for each token"

TEMPERATURE = 0.07  # at the start
FORMS = ("parallel", "sequential")
ROUTINGS = ("learned", "random", "fixed")


class Mixture(nnx.Module):
    """Experts and their router, for tokens `b n d` cut into h sub-tokens each."""

    def __init__(
        self, dim: int, *, heads, rank, experts, width, routing, scale, scaled, rate, rngs
    ):
        d = dim // heads
        self.experts, self.routing = experts, routing
        self.heads, self.scale, self.scaled, self.rate = heads, scale, scaled, rate
        self.down = nnx.Param(
            jnp.stack([kaiming(rngs.params(), (d, rank)) for _ in range(experts)])
        )
        self.down_bias = nnx.Param(jnp.zeros((experts, rank)))
        self.up = nnx.Param(jnp.zeros((experts, rank, d)))
        self.up_bias = nnx.Param(jnp.zeros((experts, d)))
        if routing != "learned":
            return
        layer = functools.partial(Generator, spread=1.0) if scaled else Linear
        self.router = layer(d, width, use_bias=False, rngs=rngs)
        self.embeddings = nnx.Param(jax.random.normal(rngs.params(), (experts, width)))
        self.temperature = nnx.Param(jnp.asarray(1.0 if scaled else TEMPERATURE, jnp.float32))

    def __call__(self, x: Array, ctx: Context) -> tuple[Array, Array]:
        """The mixture of tokens `b n d`, and the load-balance loss."""
        b, n, d = x.shape
        z = x.reshape(b, n, self.heads, d // self.heads)
        chances = self.chances(z, ctx)
        gate = mixture.top1(chances) if self.routing == "learned" else chances
        # Of each example: a batch may be padded.
        load, probability = (mean_of_tokens(v, ctx).mean(1) for v in (gate > 0, chances))
        ctx.record("router/load", load)
        ctx.record("router/probability", probability)
        code = dropout(each_device(ctx, self, _codes, z), self.rate, ctx, "adapter_x")
        y = each_device(ctx, self, _answers, code, gate)
        return self.scale * y.reshape(b, n, d), mixture.balance(load, probability)

    def chances(self, z: Array, ctx: Context) -> Array:
        """The probabilities `b n h e` of the experts for sub-tokens `b n h d`."""
        if self.routing == "learned":
            return each_device(ctx, self, _routes, z)
        if self.routing == "fixed":
            number = jnp.arange(z.shape[1])[:, None] + jnp.arange(self.heads)[None]
            one = jax.nn.one_hot(number % self.experts, self.experts)
            return jnp.broadcast_to(one, (*z.shape[:3], self.experts))
        if not ctx.train or ctx.key is None:
            return jnp.full((*z.shape[:3], self.experts), 1 / self.experts)
        number = jax.random.randint(ctx.random("adapter_x/route"), z.shape[:3], 0, self.experts)
        return jax.nn.one_hot(number, self.experts)


def _routes(shared: Mixture, z: Array) -> Array:
    tau = jnp.maximum(shared.temperature[...] * (TEMPERATURE if shared.scaled else 1.0), 0.01)
    return mixture.route(shared.router(z.astype(jnp.float32)), shared.embeddings[...], tau)


def _codes(shared: Mixture, z: Array) -> Array:
    return mixture.codes(z, shared.down[...], shared.down_bias[...])


def _answers(shared: Mixture, code: Array, gate: Array) -> Array:
    return mixture.answers(code, gate, shared.up[...], shared.up_bias[...])


class Mixed(nnx.Module):
    """Host: a block; its MLP gains the mixture, and the tokens gain a prompt where asked for."""

    def __init__(self, host, *, form: str, places: Places | None, loss: float, rngs: nnx.Rngs):
        self.form, self.places, self.loss = form, places, loss
        if places:
            draw = 0.02 * jax.random.normal(rngs.params(), (2, host.dim))
            self.gamma, self.beta = nnx.Param(1.0 + draw[0]), nnx.Param(draw[1])

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        if self.places:
            x, ctx = self.places.entered(x, ctx)
        x = x + host.attn(x, ctx)
        y = host.mlp(x, ctx)
        seen = y if self.form == "sequential" else host.mlp.norm(x, ctx)
        extra, balance = lent(ctx, Mixture)(seen, ctx)
        ctx.record("loss/balance", self.loss * balance)
        x = x + y + extra
        if not self.places:
            return x
        prompt = self.gamma[...][None] * mean_of_tokens(extra, ctx) + self.beta[...][None]
        ctx.record("prompt", prompt)
        return self.places.put(x, prompt, ctx)


def defaults(backbone: nnx.Module) -> dict[str, int]:
    """The rank and the heads where they are 0."""
    return {"rank": rank_of_width(backbone), "heads": _dividing(backbone.dim, 3)}


def _dividing(dim: int, heads: int) -> int:
    """The number nearest to `heads` that divides the width."""
    return min((h for h in range(1, dim + 1) if dim % h == 0), key=lambda h: abs(h - heads))


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    form: str = "parallel",
    experts: int = 4,
    heads: int = 0,
    rank: int = 0,
    width: int = 8,
    routing: str = "learned",
    scale: float = 0.1,
    scaled: bool = True,
    prompt: bool = True,
    balance: float = 0.01,
    dropout: float = 0.1,
) -> None:
    """Attaches the mixture to every block.

    Args:
        backbone: a plain transformer.
        rngs: source of the random weights.
        form: "parallel" to the MLP (AdaptFormer-X) or "sequential" after it (Adapter-X).
        experts: E.
        heads: h, sub-tokens of a token; 0 is 3 or the nearest that divides the width.
        rank: r of an expert; 0 is a twelfth of the width, from 4 to 64.
        width: k of the space in which tokens and experts are compared.
        routing: "learned"; ablations without a router are "random" (an expert drawn for each
            sub-token in training, the mean of all in evaluation) and "fixed" (by its place).
        scale: s.
        scaled: divide the router by its fan-in, and train the temperature in units of its start.
        prompt: whether every block adds a prompt.
        balance: factor of the load-balance loss, which is averaged over blocks.
        dropout: rate after the experts' activation.
    """
    if form not in FORMS:
        raise UnknownName("form", form, FORMS)
    if routing not in ROUTINGS:
        raise UnknownName("routing", routing, ROUTINGS)
    check_least("experts", experts)
    check_least("width", width)
    check_rate("dropout", dropout)
    if balance < 0:
        raise ConfigError(f"balance must be at least 0, not {balance}")
    blocks = sites(backbone, r"blocks/\d+")
    if not blocks:
        raise ConfigError("Adapter-X needs a plain transformer: its experts have one width")
    if prompt and not getattr(backbone, "grows", False):
        raise ConfigError(
            "Adapter-X's prompts need a ViT or Point-MAE; other backbones take prompt=False"
        )
    dim = blocks[0][1].dim
    if heads < 1 or dim % heads:
        near = _dividing(dim, heads)
        raise ConfigError(f"{heads} heads do not divide the width {dim}; the nearest is {near}")
    check_rank(rank, backbone, r"blocks/\d+", parts=heads)
    loss, places = balance / len(blocks), Places.of(blocks) if prompt else None
    attach(
        backbone,
        r"blocks/\d+",
        lambda host: Mixed(host, form=form, places=places, loss=loss, rngs=rngs),
    )
    sizes = dict(heads=heads, rank=rank, experts=experts, width=width, routing=routing)
    common = Mixture(dim, **sizes, scale=scale, scaled=scaled, rate=dropout, rngs=rngs)
    attach(backbone, "", lambda host: Shared(host, common))
