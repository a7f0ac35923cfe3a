"""A head for each of several tasks, on the features of its own or on one for all."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from dynadapt.context import Context
from dynadapt.errors import ConfigError

Array = jax.Array
Make = Callable[[Any], nnx.Module]


def made_for(like: Any, makers: Mapping[str, Make]) -> "Several":
    """The heads for features like these.

    Args:
        like: shapes of one backbone's features for all tasks, or of those of each by its name.
        makers: of each task's head, for shapes of its features.

    Raises:
        ConfigError: for a task without features, or features without a task.
    """
    if isinstance(like, Mapping) and like.keys() != makers.keys():
        raise ConfigError(
            f"the adapter's tasks are {', '.join(like)}, and the heads' {', '.join(makers)}; they "
            "must have the same names"
        )
    return Several({name: make(_of(like, name)) for name, make in makers.items()})


class Several(nnx.Module):
    """Heads by the names of their tasks; answers what each does."""

    def __init__(self, heads: Mapping[str, nnx.Module]):
        self.heads = nnx.Dict(heads)

    def __call__(self, features: Any, ctx: Context) -> dict[str, Any]:
        return {n: head(_of(features, n), _own(ctx, n)) for n, head in self.heads.items()}


def _of(features: Any, name: str) -> Any:
    return features[name] if isinstance(features, Mapping) else features


def _own(ctx: Context, name: str) -> Context:
    """What a task's head is told: random choices are its own."""
    return ctx if ctx.key is None else ctx.replace(key=ctx.random(f"task/{name}"))
