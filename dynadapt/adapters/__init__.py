"""Methods of adaptation, one a file, chosen by their module's name.

A method file has `adapt(backbone, *, rngs, **settings)`, which attaches, and `TRAINS`, patterns of
backbone parameters that it trains besides, or patterns by names among which its setting `train`
chooses. Where the method folds into the base exactly, its
adapters have `merged(host, shared)`: the host's parameters with the adapter in them, by name, in
float32; `shared` are the modules that the root lends. Where it does not, `NOT_MERGEABLE` says why.
`defaults(backbone)` gives the settings that follow from the backbone where they are 0. `PLAIN` may
name leaves of the method's own that weight decay spares, such as prompts, `PRINTED` the count that
the literature prints for the default settings, by backbone, and `BEFORE` values of settings that
are younger than the method, for adapters that were written without them.

All methods know the setting `layers`: of k, only the last k blocks and what follows them are
adapted and trained. A method sees no more than these through `sites` and `attach`.
"""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dynadapt import choices, tree
from dynadapt.attach import Chain, Lent, Shared, adapted, all_or_nothing, detach, sites, sparing
from dynadapt.errors import ConfigError, DynadaptError, NotMergeable, UnknownName

_HERE = sys.modules[__name__]

# The blocks of a transformer, in one pile or in stages, as a site pattern.
BLOCK = r"(?:stages/\d+/)?blocks/\d+"
# The layer that each branch of a block begins with.
POSITIONS = {"attn": f"{BLOCK}/attn/qkv", "mlp": f"{BLOCK}/mlp/fc1"}


def names() -> list[str]:
    """All methods."""
    return choices.names(_HERE)


def module(name: str) -> ModuleType:
    """The method's module, or that of a method's file; UnknownName where there is none.

    What `choices.record` writes of a file is found only where the user gave that file.
    """
    if choices.is_file(name):
        return choices.file_module(name, "method", "adapt")
    return choices.module(_HERE, name, "method")


def give(path: str) -> None:
    """Lets adapters in this process use the method in a file, whose code runs.

    Raises:
        ConfigError: for what is no file of a method.
    """
    if not choices.is_file(path) or choices.is_record(path):
        raise ConfigError(f"the method {path!r} must be a file with the ending .py")
    module(path)


def settings(name: str) -> dict[str, Any]:
    """The method's settings and their defaults; all methods know `layers`."""
    own = choices.settings(module(name).adapt, skip=("backbone", "rngs"))
    if "layers" in own:
        raise ConfigError(f"{name} has a setting layers, as all methods do; give its own another")
    return {**own, "layers": 0}


def adapt(backbone: nnx.Module, name: str, *, rngs: nnx.Rngs, **given: Any) -> None:
    """Attaches the method to the backbone, in place; where it fails, the backbone is unchanged.

    Args:
        backbone: bare.
        name: of the method.
        rngs: source of the random weights.
        **given: settings of the method; `layers` is how many of the last blocks it may touch, with
            what follows them, or 0 for the whole backbone.
    """
    given = resolved(backbone, name, **given)
    layers = given.pop("layers")
    spared = below(backbone.order, layers) if layers else ()
    with all_or_nothing(backbone), sparing(backbone, spared):
        module(name).adapt(backbone, rngs=rngs, **given)


def below(order: Sequence[str], layers: int) -> tuple[str, ...]:
    """What lies below the last blocks, of the patterns that a backbone has for each depth.

    Raises:
        ConfigError: for more blocks than there are.
    """
    blocks = len(order) - 1
    if not 1 <= layers <= blocks:
        raise ConfigError(
            f"adapter.layers must be from 1 to {blocks}, or 0 for all blocks, not {layers}"
        )
    return tuple(order[:-layers])


def resolved(backbone: nnx.Module, name: str, **given: Any) -> dict[str, Any]:
    """All settings of the method on this backbone, with those filled in that follow from it.

    Raises:
        UnknownName: for a method or a setting that does not exist.
    """
    known = settings(name)
    choices.check_settings(f"method {name!r}", given, known)
    found = {**known, **given}
    defaults = getattr(module(name), "defaults", lambda backbone: {})(backbone)
    return found | {k: v for k, v in defaults.items() if not found[k]}


def rank_of_width(backbone: nnx.Module, part: int = 12, most: int = 64) -> int:
    """A rank for the default: the width of the widest block over `part`, from 4 to `most`.

    With it a method trains about the same share of narrow backbones as of wide ones.
    """
    width = max((block.dim for _, block in sites(backbone, BLOCK)), default=0)
    return min(max(width // part, 4), most)


def merge(backbone: nnx.Module, name: str) -> None:
    """Folds the method's adapters into the weights and detaches them, in place.

    What is left has the parameters of the bare backbone, in their own dtypes; the sums are float32.

    Raises:
        NotMergeable: for a method, or a layer, that can't take its adapter in.
        DynadaptError: for a merged weight that is not finite. Nothing is changed then.
    """
    merged = []
    for path, old, value in _merged(backbone, name):
        value = value.astype(old.dtype)
        if not jnp.isfinite(value).all():
            raise DynadaptError(f"merged, {path} is not finite; nothing was changed")
        merged.append((old, value))
    for old, value in merged:
        old[...] = value
    detach(backbone)


def obstacle(backbone: nnx.Module, name: str) -> str:
    """Why the method can't be merged into this backbone, "" where it can; works on shapes too."""
    try:
        for _ in _merged(backbone, name):
            pass
    except NotMergeable as error:
        return str(error)
    return ""


def _merged(backbone: nnx.Module, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Path, parameter and float32 value with the adapter in it, of all that merging changes."""
    why = getattr(module(name), "NOT_MERGEABLE", "its adapters have no `merged`")
    hosts, shared = dict(adapted(backbone)), _lent(backbone)
    if shared:
        del hosts[""]
    for path, host in hosts.items():
        if isinstance(host.adapter, Chain):
            why = f"{path!r} has several adapters in a Chain"
        if not hasattr(host.adapter, "merged"):
            raise NotMergeable(f"{name} can't be merged into the weights: {why}")
        for leaf, value in host.adapter.merged(host, shared).items():
            if (old := getattr(host, leaf)) is None:
                raise NotMergeable(f"{name} can't be merged into {path!r}, which has no {leaf}")
            yield f"{path}/{leaf}", old, value


def leads(backbone: nnx.Module) -> bool:
    """Whether an adapter on the root does more than to lend, so that it may change all blocks."""
    return hasattr(backbone, "adapter") and not _lent(backbone)


def _lent(backbone: nnx.Module) -> Lent:
    """What the adapters of the root lend; nothing where one of them does more than that."""
    adapter = getattr(backbone, "adapter", None)
    lenders = list(adapter.adapters) if isinstance(adapter, Chain) else [adapter]
    if all(isinstance(lender, Shared) for lender in lenders):
        return {type(lender.module): lender.module for lender in lenders}
    return {}


def check_among(method: str, what: str, given: Collection[str], choices: Collection[str]) -> None:
    """Raises a ConfigError for no choice at all, or an UnknownName for the first wrong one."""
    if not given:
        raise ConfigError(f"{method} needs at least one {what} of {', '.join(choices)}")
    for name in given:
        if name not in choices:
            raise UnknownName(f"{method} {what}", name, choices)


def check_least(name: str, value: int) -> None:
    """Raises a ConfigError for a count below 1."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")


def check_odd(name: str, value: int) -> None:
    """Raises a ConfigError for a kernel's side that is even or below 1."""
    if value < 1 or value % 2 == 0:
        raise ConfigError(f"{name} must be odd, such as {max(value, 0) + 1}, not {value}")


def check_rate(name: str, value: float) -> None:
    """Raises a ConfigError for a rate outside of [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{name} must be in [0, 1), not {value}")


def check_rank(
    rank: int, backbone: nnx.Module, where: str, *, name: str = "rank", parts: int = 1
) -> None:
    """Raises a ConfigError for a rank that is not from 1 to the width of each host over `parts`."""
    check_least(name, rank)
    for path, host in sites(backbone, where):
        width = (min(host.kernel.shape) if hasattr(host, "kernel") else host.dim) // parts
        if rank > width:
            raise ConfigError(f"{name} must be at most the width {width} at {path!r}, not {rank}")


def check_map(name: str, backbone: nnx.Module) -> None:
    """Raises a ConfigError for a backbone whose tokens are no map, such as groups of points."""
    if backbone.takes != "image":
        raise ConfigError(f"{name} needs a backbone whose tokens are the patches of an image")


def rescale(backbone: nnx.Module, scale: Any) -> None:
    """Sets the fixed scale s of every adapter, in place; a traced value will do.

    A method without a fixed scale (none, or a learned one) stays as it is.
    """
    for path, module in nnx.iter_modules(backbone):
        if "adapter" in path and isinstance(getattr(module, "scale", None), int | float):
            module.scale = nnx.data(scale)


def trains(name: str, order: Sequence[str] = (), **given: Any) -> tuple[str, ...]:
    """Patterns of backbone parameters that the method trains, with the `backbone/` prefix.

    Settings that are not given are the method's own. With `layers`, `order` says what lies below.
    """
    patterns = module(name).TRAINS
    if isinstance(patterns, Mapping):
        chosen = {**settings(name), **given}["train"]
        patterns = [p for part in chosen for p in patterns[part]]
    layers = given.get("layers", 0)
    spared = rf"(?!(?:{'|'.join(below(order, layers))})(?:/|$))" if layers else ""
    return tuple(f"backbone/{spared}{p}" for p in patterns)


def moving(path: tuple, leaf: Any) -> bool:
    """The filter for `nnx.split`: running statistics of heads and adapters, which training moves.

    Those of a frozen backbone are constants.
    """
    return isinstance(leaf, nnx.BatchStat) and ("adapter" in path or path[0] == "head")


def before(name: str) -> dict[str, Any]:
    """Settings that the method got later, with the values that adapters from before have."""
    return getattr(module(name), "BEFORE", {})


def plain(name: str) -> tuple[str, ...]:
    """Patterns of the method's own leaves that are no weights, such as prompts."""
    return getattr(module(name), "PLAIN", ())


def trainable(patterns: tuple[str, ...] = ()) -> Any:
    """The filter for `nnx.split`: in an adapter, in the head, or matching a pattern.

    Statistics of batch norms never train.
    """

    def trains_leaf(path: tuple, leaf: Any) -> bool:
        if isinstance(leaf, nnx.BatchStat):
            return False
        parts = [str(p) for p in path]
        return (
            "adapter" in parts or parts[0] == "head" or tree.matches_any(patterns, "/".join(parts))
        )

    return trains_leaf
