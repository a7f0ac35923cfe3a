"""The training step: gradients of the trained leaves alone, and the state that they change."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dynadapt import inputs, model, optim, sharding
from dynadapt.context import Context
from dynadapt.model import VARIANCE, Hyper
from dynadapt.targets import mean

Array = jax.Array

# Below this share of the most that it was, the features no longer tell images apart.
COLLAPSED = 0.1


def make_step(graph: Any, task: Any, optimizer: Any, config: Any) -> Any:
    """The jitted `step(state, frozen, batch, key) -> (state, logs)`; the state is donated.

    Where `optimizer` is a function that makes it of the values in `hyper`, these are the step's
    fifth argument: one program then serves all rates and lengths.
    """
    optimizer_of = optimizer if callable(optimizer) else lambda hyper: optimizer
    return jax.jit(pure_step(graph, task, optimizer_of, config), donate_argnums=0)


def pure_step(graph: Any, task: Any, optimizer_of: Callable[[Hyper], Any], config: Any) -> Any:
    """The function `step(state, frozen, batch, key, hyper=None) -> (state, logs)`.

    Gradients are taken of the trained leaves alone. A bad step, of which the loss, the gradient, a
    new trained leaf or a statistic is not finite, leaves the state as it was; `state["bad"]` counts
    it and notes its number and its batch's indices. After `config.optim.bad_steps` of them no step
    changes anything. `state["variance"]` has a running mean of the features' variance, `now`, and
    the `most` that it was.

    With `config.optim.accumulate` a batch is cut into parts, one after another, and the sum of
    their losses is divided once, by the weight of the whole batch. Where batch statistics are
    taken, or the loss is no sum over examples, only the backbone sees the parts, and is computed
    anew for the gradient: statistics and loss are those of the whole batch.

    Args:
        graph: of the model.
        task: what is trained.
        optimizer_of: `optim.make`'s for the values in `hyper`.
        config: of the run. `drop_path` in `hyper` takes the place of the config's; the others are
            as of `model.outputs`.
    """
    parts = config.optim.accumulate

    def loss_of(
        train: Any, stats: Any, frozen: Any, batch: Any, key: Array, hyper: Hyper, *, summed: bool
    ) -> tuple[Array, Any]:
        """The mean loss with what layers add; or the sum, to be divided with that of other parts.

        Beside it: logs, likewise, the weight, and the moved statistics.
        """
        # A copy of its own: what is differentiated may not change variables from outside of it.
        network = nnx.merge(graph, train, jax.tree.map(lambda x: x, stats), frozen)
        drop_path = hyper.get("drop_path", config.optim.drop_path or None)
        ctx = Context(train=True, key=key, drop_path=drop_path, mask=batch["mask"])
        outputs = model.outputs(
            network, batch, ctx, task, config, hyper, parts=1 if summed else parts
        )
        total, weight, logs = task.loss(outputs, batch)
        added = {k: v for k, v in ctx.tape.items() if k.startswith("loss/")}
        logs = {**logs, **added, VARIANCE: ctx.tape[VARIANCE]}
        if summed:
            loss = total + weight * sum(added.values())
            logs = {k: weight * v for k, v in logs.items()}
        else:
            loss = mean(total, weight) + sum(added.values())
        return loss, ({"loss": loss, **logs}, weight, model.statistics(network))

    def gradients(state: Any, frozen: Any, batch: Any, key: Array, hyper: Hyper) -> Any:
        leaves = state["train"], state["stats"]
        whole = jax.tree.leaves(state["stats"]) or getattr(task, "whole_batch", False)
        if parts == 1 or whole:
            gradient = jax.grad(functools.partial(loss_of, summed=False), has_aux=True)
            grads, (logs, _, moved) = gradient(*leaves, frozen, batch, key, hyper)
            return grads, logs, moved
        # A part takes every `parts`-th example: on a mesh no example moves to another device.
        cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        gradient = jax.grad(functools.partial(loss_of, summed=True), has_aux=True)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            piece, number = part
            found = gradient(*leaves, frozen, piece, jax.random.fold_in(key, number), hyper)
            return jax.tree.map(jnp.add, total, found), None

        first = jax.tree.map(lambda x: x[0], cut)
        shapes = jax.eval_shape(gradient, *leaves, frozen, first, key, hyper)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        grads, (logs, weight, _) = jax.lax.scan(add, zeros, (cut, jnp.arange(parts)))[0]
        grads, logs = jax.tree.map(lambda x: mean(x, weight), (grads, logs))
        return grads, logs, state["stats"]

    def step(
        state: Any, frozen: Any, batch: Any, key: Array, hyper: Hyper | None = None
    ) -> tuple[Any, Any]:
        hyper = hyper or {}
        number = state["step"]
        key = jax.random.fold_in(key, number)
        index = batch["index"]
        batch = inputs.prepared(task, batch, config, jax.random.fold_in(key, 0), True)
        key = jax.random.fold_in(key, 1)
        grads, logs, moved = gradients(state, frozen, batch, key, hyper)
        optimizer = optimizer_of(hyper)
        packed = {k: optimizer.pack(state[k]) for k in ("train", "ema") if k in state}
        grads, old = optimizer.pack(grads), {**state, **packed}
        updates, opt = optimizer.tx.update(grads, state["opt"], old["train"])
        new = {"train": optax.apply_updates(old["train"], updates), "stats": moved, "opt": opt}
        new["variance"] = _followed(state["variance"], logs[VARIANCE])
        if "ema" in state:
            new["ema"] = optim.ema(old["ema"], new["train"], config.optim.ema, number)
        logs = {**logs, "gradient_norm": optax.tree.norm(grads)}
        going = state["bad"]["count"] < config.optim.bad_steps
        # The optimizer's own values overflow no earlier than the gradient's norm or the update.
        fine = finite((logs, new["train"], new["stats"]))
        bad = {"count": state["bad"]["count"] + 1, "step": number + 1, "index": index}
        new = chosen(going & fine, new, {k: old[k] for k in new})
        state = sharding.settled(
            {
                **new,
                **{k: optimizer.unpack(new[k], state[k]) for k in packed},
                "step": number + 1,
                "bad": chosen(going & ~fine, bad, state["bad"]),
            }
        )
        return state, {**logs, "bad": (~fine).astype(jnp.float32)}

    return step


def _followed(variance: dict[str, Array], value: Array) -> dict[str, Array]:
    """The running mean over about ten steps, and its largest value."""
    first = variance["most"] < 0
    now = jnp.where(first, value, 0.9 * variance["now"] + 0.1 * value)
    return {"now": now, "most": jnp.maximum(variance["most"], now)}


def collapsed(variance: Any) -> Any:
    """Whether features lost what told images apart; `variance` is that of one state, or of many."""
    return variance["now"] < COLLAPSED * variance["most"]


def finite(values: Any) -> Array:
    """Whether all floating-point values of a tree are finite."""
    leaves = [x for x in jax.tree.leaves(values) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in leaves])


def chosen(condition: Array, one: Any, other: Any) -> Any:
    """One tree, or the other."""
    return jax.tree.map(functools.partial(jnp.where, condition), one, other)


def initial_state(train: Any, stats: Any, optimizer: Any, config: Any) -> dict[str, Any]:
    """What a step changes.

    Trained leaves, statistics, optimizer, running mean, step, bad steps, variance of features.
    """
    state = {
        "train": train,
        "stats": stats,
        "opt": optimizer.init(train),
        "step": jnp.zeros((), jnp.int32),
        "bad": {
            "count": jnp.zeros((), jnp.int32),
            "step": jnp.full((), -1, jnp.int32),
            "index": jnp.zeros(config.input.batch_size, jnp.int32),
        },
        "variance": {"now": jnp.zeros((), jnp.float32), "most": jnp.full((), -1.0, jnp.float32)},
    }
    if config.optim.ema:
        state["ema"] = jax.tree.map(jnp.copy, train)
    return state


def best(state: dict[str, Any]) -> dict[str, Any]:
    """What is evaluated and kept: the trained leaves, or their running mean, and statistics."""
    return {"train": state.get("ema", state["train"]), "stats": state["stats"]}
