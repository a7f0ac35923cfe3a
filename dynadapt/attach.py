"""An adapter stands before its host.

`attach` gives the modules whose path matches a pattern an adapter each. From then on a call of the
host goes to `adapter(host, ...)`, which asks `host.bare(...)` for the frozen answer. The host's own
parameter paths do not move; every new path holds the segment `adapter`.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt import sharding, tree
from dynadapt.context import Context
from dynadapt.errors import AttachError, suggest

Module = TypeVar("Module", bound=nnx.Module)
# What adapters on the root lend, by class.
Lent = Mapping[type, nnx.Module]


class Adapted(nnx.Module):
    """Mixin that a host gains: its call goes through `self.adapter`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.adapter(self, *args, **kwargs)
        ctx = args[-1] if args and isinstance(args[-1], Context) else Context()
        if ctx.probe == "branches" and hasattr(answer, "shape"):
            bare = self.bare(*args[:-1], ctx.replace(tape={}), **kwargs)
            site = getattr(self, "name", type(self).__name__.removeprefix("Adapted").lower())
            ctx.record(f"branch/{site}", _ratio(answer, bare, args[0], math.prod(ctx.grid)))
        return answer

    def bare(self, *args: Any, **kwargs: Any) -> Any:
        """The host's own answer, as if it had no adapter."""
        return super().__call__(*args, **kwargs)


def _ratio(answer: Any, bare: Any, x: Any, tokens: int) -> Any:
    """The root mean square of what an adapter adds to patch tokens over that of the stream `x`.

    A layer that changes the width has none: then over that of its bare answer.
    """
    answer, bare, x = (v[:, -tokens:].astype(jnp.float32) for v in (answer, bare, x))
    base = x if x.shape == bare.shape else bare
    return jnp.sqrt(jnp.square(answer - bare).mean() / jnp.square(base).mean())


@functools.cache
def _adapted(cls: type) -> type:
    return type(f"Adapted{cls.__name__}", (Adapted, cls), {"__doc__": cls.__doc__})


def sites(model: nnx.Module, where: str) -> list[tuple[str, nnx.Module]]:
    """The modules, with their paths, that the pattern matches; never one inside an adapter, nor one
    that is spared."""
    spared = getattr(model, "spared", ())
    return [
        (path, module)
        for path, module in _hosts(model)
        if tree.matches(where, path) and not tree.within(spared, path)
    ]


@contextlib.contextmanager
def sparing(model: nnx.Module, patterns: Sequence[str]) -> Iterator[None]:
    """What runs inside attaches nothing to the modules of these patterns, nor inside of them."""
    if patterns:
        model.spared = tuple(patterns)
    try:
        yield
    finally:
        if patterns:
            del model.spared


def adapted(model: nnx.Module) -> list[tuple[str, nnx.Module]]:
    """The modules, with their paths, that have an adapter."""
    return [(p, m) for p, m in _hosts(model) if isinstance(m, Adapted)]


def attach(model: nnx.Module, where: str, make: Callable[[nnx.Module], nnx.Module]) -> None:
    """Gives every module whose path fully matches `where` the adapter `make(host)`.

    Args:
        model: the model, changed in place.
        where: regular expression over module paths such as `blocks/\\d+/mlp`; `""` is the
            model itself.
        make: makes the adapter of one host; it is called as `adapter(host, *args)`.

    Raises:
        AttachError: for a pattern that matches nothing, or a host that has an adapter already;
            where some of the model is spared, also for what needs that part.
    """
    found, spared = sites(model, where), hasattr(model, "spared")
    if not found and spared and any(tree.matches(where, p) for p, _ in _hosts(model)):
        raise AttachError(
            f"all that {where!r} matches lies below the last blocks that adapter.layers leaves; "
            "say adapter.layers=0, for all"
        )
    if not found:
        near = suggest(where, tree.groups(p for p, _ in _hosts(model)))
        raise AttachError(f"the site pattern {where!r} matches no module; {near}")
    for path, host in found:
        if isinstance(host, Adapted):
            raise AttachError(
                f"{path or 'the model'!r} already has an adapter; join two with Chain"
            )
    adapters = [make(host) for _, host in found]
    if spared and where == "" and not isinstance(adapters[0], Shared):
        raise AttachError(
            "this method leads the whole backbone, which adapter.layers can't restrict; say "
            "adapter.layers=0, for all blocks"
        )
    for (_, host), adapter in zip(found, adapters, strict=True):
        host.adapter = adapter
        _become(host, _adapted(type(host)))


def detach(model: nnx.Module) -> None:
    """Removes every adapter; the model is again what it was before `attach`."""
    for _, host in adapted(model):
        _release(host)


@contextlib.contextmanager
def all_or_nothing(model: nnx.Module) -> Iterator[None]:
    """Where what runs inside fails, every host has the adapter that it had before, or none."""
    before = {id(host): host.adapter for _, host in adapted(model)}
    try:
        yield
    except BaseException:
        for _, host in adapted(model):
            if id(host) in before:
                host.adapter = before[id(host)]
            else:
                _release(host)
        raise


def _release(host: nnx.Module) -> None:
    _become(host, type(host).__mro__[2])
    del host.adapter


def _become(host: nnx.Module, cls: type) -> None:
    """Changes the class; past nnx, which would note `__class__` as an attribute of the module."""
    object.__setattr__(host, "__class__", cls)


def _hosts(model: nnx.Module) -> list[tuple[str, nnx.Module]]:
    modules = ((tuple(map(str, p)), m) for p, m in nnx.iter_modules(model))
    return [("/".join(p), m) for p, m in modules if "adapter" not in p]


class Chain(nnx.Module):
    """Several adapters on one host: the next is the bare answer that the first one sees.

    An adapter that re-wires its host and asks for no bare answer can only be the last; a call
    raises an AttachError where others follow it.
    """

    def __init__(self, *adapters: nnx.Module):
        self.adapters = nnx.List(adapters)

    def __call__(self, host: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        return self._link(0, host)(*args, **kwargs)

    def _link(self, number: int, host: nnx.Module) -> Callable[..., Any]:
        if number == len(self.adapters):
            return host.bare
        adapter, behind = self.adapters[number], self.adapters[number + 1 :]
        seen = _Behind(host, self._link(number + 1, host))

        def link(*args: Any, **kwargs: Any) -> Any:
            answer = adapter(seen, *args, **kwargs)
            if behind and not seen.asked:
                skipped = ", ".join(type(a).__name__ for a in behind)
                raise AttachError(
                    f"{type(adapter).__name__} never asks for the bare answer, so {skipped} behind "
                    f"it in the Chain would do nothing; put {type(adapter).__name__} last"
                )
            return answer

        return link


class _Behind:
    """A host as one adapter of a chain sees it: `bare` is the rest of the chain."""

    def __init__(self, host: nnx.Module, rest: Callable[..., Any]):
        self._host, self._rest, self.asked = host, rest, False

    def bare(self, *args: Any, **kwargs: Any) -> Any:
        self.asked = True
        return self._rest(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


class Shared(nnx.Module):
    """An adapter on the root that lends one module to every layer below; see `lent`.

    Several on one root, in a Chain, must lend modules of different classes.
    """

    def __init__(self, host: nnx.Module, module: nnx.Module):
        self.module = module

    def __call__(self, host: nnx.Module, x: Any, ctx: Context) -> Any:
        kind = type(self.module)
        if kind in ctx.shared:
            raise AttachError(
                f"two adapters on the root lend a {kind.__name__}, and a layer could not tell "
                "which is its own; attach one of the two"
            )
        ctx = ctx.replace(shared={**ctx.shared, kind: self.module})
        if ctx.train and (copies := sharding.copies(self.module)) is not None:
            ctx = ctx.replace(copies={**ctx.copies, kind: copies})
        return host.bare(x, ctx)


def lent(ctx: Context, kind: type[Module]) -> Module:
    """The module of this class that an adapter on the root lends.

    Raises:
        AttachError: where none does, as when a layer is called without its backbone.
    """
    if kind not in ctx.shared:
        raise AttachError(
            f"a layer uses the {kind.__name__} that its backbone lends; call it as a whole"
        )
    return ctx.shared[kind]


def each_device(
    ctx: Context, shared: nnx.Module, function: Callable[..., Any], *inputs: jax.Array
) -> Any:
    """`function(shared, *inputs)` with a lent module, where each example is answered by itself.

    Training on several devices, each applies its own copy to its own examples. So what blocks add
    to the module's gradient stays on its device until all of it is there, and crosses the network
    once a step. Without this it does in each turn of a scan over blocks.

    Args:
        ctx: of the layer.
        shared: what `lent` found.
        function: draws nothing and records nothing.
        inputs: `b ...`, and so are all answers.
    """
    if type(shared) not in ctx.copies:
        return function(shared, *inputs)
    return sharding.each_part(function, ctx.copies[type(shared)], *inputs)
