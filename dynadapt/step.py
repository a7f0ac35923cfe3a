"""The training step: gradients of the trained leaves alone, and the state that they change."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dynadapt import evaluate, optim, sharding
from dynadapt.context import Context

Array = jax.Array


# Values of a run that a program may get as arguments, so that one program serves many runs.
Hyper = Mapping[str, Array]


def make_step(graph: Any, task: Any, tx: Any, config: Any) -> Any:
    """The jitted `step(state, frozen, batch, key) -> (state, logs)`; the state is donated."""
    return jax.jit(pure_step(graph, task, lambda hyper: tx, config), donate_argnums=0)


def pure_step(graph: Any, task: Any, tx_of: Callable[[Hyper], Any], config: Any) -> Any:
    """The function `step(state, frozen, batch, key, hyper=None) -> (state, logs)`.

    Gradients are taken of the trained leaves alone. A step whose loss or gradient is not finite
    leaves the state as it was and notes its number and its batch's indices in `state["bad"]`.

    Args:
        graph: of the model.
        task: what is trained.
        tx_of: the optimizer for the values in `hyper`.
        config: of the run. `drop_path` in `hyper` takes the place of the config's; `scale` that of
            the adapters' fixed scales, and `classes` says how many of the head's classes there are.
    """
    parts, dtype = config.optim.accumulate, config.compute.dtype

    def loss_of(train: Any, frozen: Any, batch: Any, key: Array, hyper: Hyper) -> tuple[Array, Any]:
        network = nnx.merge(graph, train, frozen)
        drop_path = hyper.get("drop_path", config.optim.drop_path or None)
        ctx = Context(train=True, key=key, drop_path=drop_path)
        outputs = evaluate.outputs(network, batch["image"].astype(dtype), ctx, task, hyper)
        loss, logs = task.loss(outputs, batch)
        extra = {k: v for k, v in ctx.tape.items() if k.startswith("loss/")}
        loss = loss + sum(extra.values())
        return loss, {"loss": loss, **logs, **extra}

    gradient = jax.grad(loss_of, has_aux=True)

    def gradients(train: Any, frozen: Any, batch: Any, key: Array, hyper: Hyper) -> tuple[Any, Any]:
        if parts == 1:
            return gradient(train, frozen, batch, key, hyper)
        # A part takes every `parts`-th example: on a mesh no example moves to another device.
        cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        # Masked examples count nothing, so parts weigh as many examples as they have.
        share = cut["mask"].sum(1) / jnp.maximum(batch["mask"].sum(), 1.0)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            piece, weight, number = part
            found = gradient(train, frozen, piece, jax.random.fold_in(key, number), hyper)
            return jax.tree.map(lambda t, x: t + weight * x, total, found), None

        first = jax.tree.map(lambda x: x[0], cut)
        shapes = jax.eval_shape(gradient, train, frozen, first, key, hyper)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, (cut, share, jnp.arange(parts)))[0]

    def step(
        state: Any, frozen: Any, batch: Any, key: Array, hyper: Hyper | None = None
    ) -> tuple[Any, Any]:
        hyper = hyper or {}
        number = state["step"]
        key = jax.random.fold_in(key, number)
        index = batch["index"]
        batch = evaluate.prepared(task, batch, config, jax.random.fold_in(key, 0), True)
        grads, logs = gradients(state["train"], frozen, batch, jax.random.fold_in(key, 1), hyper)
        norm = optax.tree.norm(grads)
        updates, opt = tx_of(hyper).update(grads, state["opt"], state["train"])
        new = {"train": optax.apply_updates(state["train"], updates), "opt": opt}
        if "ema" in state:
            new["ema"] = optim.ema(state["ema"], new["train"], config.optim.ema, number)
        fine = jnp.isfinite(logs["loss"]) & jnp.isfinite(norm) & (state["bad"]["step"] < 0)
        new = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, {k: state[k] for k in new})
        bad = {"step": number + 1, "index": index}
        bad = jax.tree.map(
            lambda a, b: jnp.where(fine | (state["bad"]["step"] >= 0), b, a), bad, state["bad"]
        )
        state = sharding.settled({**new, "step": number + 1, "bad": bad})
        return state, {**logs, "gradient_norm": norm}

    return step


def initial_state(train: Any, tx: Any, config: Any) -> dict[str, Any]:
    """What a step changes: trained leaves, optimizer, running mean, step, first bad step."""
    state = {
        "train": train,
        "opt": tx.init(train),
        "step": jnp.zeros((), jnp.int32),
        "bad": {
            "step": jnp.full((), -1, jnp.int32),
            "index": jnp.zeros(config.input.batch_size, jnp.int32),
        },
    }
    if config.optim.ema:
        state["ema"] = jax.tree.map(jnp.copy, train)
    return state


def best(state: dict[str, Any]) -> Any:
    """The trained leaves that are evaluated and kept: their running mean where there is one."""
    return state.get("ema", state["train"])
