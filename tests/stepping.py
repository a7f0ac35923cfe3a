"""Training steps: what a run does in the midst of them, and what one costs."""

import functools
import os
import signal

import jax

from dynadapt import model, optim, step
from dynadapt.runs import speed


def watched(make_step, act):
    """A `make_step` whose steps call `act(state, count)` first, counted from 1 over all of them."""
    count = 0

    def make(*args):
        taken = make_step(*args)

        def counted(state, *rest):
            nonlocal count
            count += 1
            act(state, count)
            return taken(state, *rest)

        counted.trace = taken.trace
        return counted

    return make


def killed_at(number, sign=signal.SIGTERM):
    """Sends this process a signal before the step of that count."""
    return lambda state, count: os.kill(os.getpid(), sign) if count == number else None


def flops(c, task, parts, spec):
    """FLOPs of a training step's matrix products; nothing is allocated."""
    graph, train, stats, frozen = parts
    optimizer = optim.make(c.optim, 10, train, model.layers(c))
    first = functools.partial(step.initial_state, optimizer=optimizer, config=c)
    state = jax.eval_shape(first, train, stats)
    run = step.pure_step(graph, task, lambda hyper: optimizer, c)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return speed.matmul_flops(run, state, frozen, spec, key)
