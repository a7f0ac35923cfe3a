"""Visual prompt tuning (Jia et al., arXiv 2203.12119): learned tokens among those of the image.

    [leading tokens, p prompts, patches]

"shallow": the prompts join once, before the first block, and run through all. "deep": each block
gets prompts of its own, and what it makes of them is dropped. With `project` the prompts are
narrower and one linear layer, shared by all blocks, widens them. They start uniform within
sqrt(6 / (3 patch^2 + width of a prompt)), for clouds with the points of a group in the place of
patch^2 (ours), the projection normal with variance 2 / d and zero bias (published: PyTorch's
uniform bias). Prompts act from the start. Count for p prompts: p d, deep p d L; projected from w:
p w or p w L, plus w d + d.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.adapters import check_least, check_rank, check_rate
from dynadapt.attach import Shared, attach, lent
from dynadapt.context import Context, dropout
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import Linear

Array = jax.Array
TRAINS = ()
PLAIN = (r".*/prompts",)
NOT_MERGEABLE = "prompts are tokens of their own"

FORMS = ("shallow", "deep")


class Projection(Linear):
    """From narrow prompts `p w` to `p d`: one for all blocks."""


class Prompts(nnx.Module):
    """Prompts `p w` that join tokens `b n d` behind the leading ones."""

    def __init__(self, host, *, prompts, width, projected, bound, rate, rngs: nnx.Rngs):
        self.projected, self.rate = projected, rate
        value = jax.random.uniform(
            rngs.params(), (prompts, width), jnp.float32, minval=-bound, maxval=bound
        )
        self.prompts = nnx.Param(value)

    def join(self, x: Array, ctx: Context) -> Array:
        """Tokens and prompts, `b n+p d`."""
        prompts = self.prompts[...].astype(x.dtype)
        if self.projected:
            prompts = lent(ctx, Projection)(prompts)
        prompts = jnp.broadcast_to(prompts, (x.shape[0], *prompts.shape))
        prompts = dropout(prompts, self.rate, ctx, "vpt")
        lead = ctx.prefix
        return jnp.concatenate([x[:, :lead], prompts, x[:, lead:]], axis=1)


class Shallow(Prompts):
    """Host: the place where the tokens enter the blocks."""

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        return self.join(host.bare(x, ctx), ctx)


class Deep(Prompts):
    """Host: a block. Outside of it the tokens stay `b n d`, as a scan over blocks wants."""

    def __call__(self, host: nnx.Module, x: Array, ctx: Context) -> Array:
        first, last = ctx.prefix, ctx.prefix + self.prompts.shape[0]
        y = host.bare(self.join(x, ctx), ctx.replace(prefix=last))
        return jnp.concatenate([y[:, :first], y[:, last:]], axis=1)


def adapt(
    backbone: nnx.Module,
    *,
    rngs: nnx.Rngs,
    prompts: int = 50,
    form: str = "deep",
    project: int = 0,
    dropout: float = 0.0,
) -> None:
    """Attaches prompts before the first block, or to every block.

    Args:
        backbone: a ViT or Point-MAE.
        rngs: source of the random prompts.
        prompts: p; the default is ours, the paper chooses it for each data set.
        form: "shallow" or "deep".
        project: width of the prompts before a projection, or 0 for prompts of full width.
        dropout: rate on the prompts.
    """
    check_least("prompts", prompts)
    if form not in FORMS:
        raise UnknownName("form", form, FORMS)
    if project < 0:
        raise ConfigError(f"project must be a width or 0, not {project}")
    check_rate("dropout", dropout)
    if not hasattr(backbone, "enter"):
        raise ConfigError(
            "VPT needs a ViT or Point-MAE: other backbones have no place for tokens off the map"
        )
    if project:
        check_rank(project, backbone, "enter", name="project")
    width = project or backbone.dim
    inputs = 3 * (backbone.patch**2 if backbone.takes == "image" else backbone.config.group_size)
    bound = math.sqrt(6 / (inputs + width))
    given = dict(prompts=prompts, width=width, projected=bool(project), bound=bound)
    given |= dict(rate=dropout, rngs=rngs)
    if form == "deep":
        attach(backbone, r"blocks/\d+", functools.partial(Deep, **given))
    else:
        attach(backbone, "enter", functools.partial(Shallow, **given))
    if project:
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        layer = Projection(project, backbone.dim, kernel_init=init, rngs=rngs)
        attach(backbone, "", functools.partial(Shared, module=layer))
