"""Training, from a config to an adapter: data, model, partition, restore, step, loop."""

import contextlib
import functools
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt import backbones, evaluate, model, optim, sharding, tasks
from dynadapt import config as configs
from dynadapt.data import loader
from dynadapt.errors import CheckpointError, ConfigError, TrainingError
from dynadapt.runs import checkpoint, workdir
from dynadapt.runs.journal import Journal
from dynadapt.step import best, initial_state, make_step

Array = jax.Array


class Preempted(Exception):
    """The process was asked to end, and the state is saved."""


def run(config: Any, folder: Path) -> dict[str, Any]:
    """Trains what a config says, going on from the last checkpoint in `folder` if there is one.

    Returns:
        The result: method, metrics of the final evaluation, counts, sizes and speed; of several
        processes, the first one's is complete.

    Raises:
        DynadaptError: for anything that a user can mend; nothing is written before the checks.
        Preempted: after SIGTERM or SIGINT, with the state saved.
    """
    # Checks, before any array is made.
    configs.check(config)
    sharding.start_processes()
    sharding.agree(configs.digest(config))
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.input.batch_size, mesh, config.optim.accumulate)
    workdir.check(config, folder)
    if (result := workdir.result(config, folder)) is not None:
        return result

    # Data and task.
    source, transform = evaluate.open_split(config, "train")
    eval_source, eval_transform = evaluate.open_split(config, "eval")
    for one, change in ((source, transform), (eval_source, eval_transform)):
        check_image(config, evaluate.example_shape(config, one, change))
    task = tasks.from_config(config.task, source.info)
    steps = training_steps(config, len(source))
    stream = batches(config, source, transform)

    # Model: what trains, what is frozen, and where each lies.
    network = model.build(config, task)
    graph, train, frozen = model.split(network, config)
    counts = workdir.counts(train, frozen)
    del network
    tx = optim.make(config.optim, steps, train, model.layers(config))
    state = initial_state(train, tx, config)
    state = sharding.put_whole(state, sharding.state(state, mesh))
    frozen = sharding.put_whole(frozen, sharding.frozen(frozen, mesh))

    first = jax.process_index() == 0
    if first:
        workdir.start(config, folder)
    with (
        jax.set_mesh(mesh),
        stop_signal() as stop,
        checkpoint.Checkpoints(folder / "checkpoints") as saved,
    ):
        origin = {"weights": workdir.weights_hash(config), "data": source.info.fingerprint}
        state, done, losses = restore(saved, state, stream, origin)
        with Journal(
            folder, steps, tensorboard=config.log.tensorboard, silent=not first, resumed=done
        ) as journal:
            if done:
                journal.say(f"going on from step {done}")
            step = make_step(graph, task, tx, config)
            eval_step = evaluate.make_step(graph, task, config)
            key = jax.random.fold_in(jax.random.key(config.seed), 3)
            key = sharding.put_whole(key, sharding.replicated(key, mesh))
            eval_config = config.copy_and_resolve_references()
            eval_config.input.eval_batch_size = evaluate.fitting(config.input.eval_batch_size, mesh)

            def evaluation() -> tuple[dict[str, float], dict[str, np.ndarray]]:
                pieces = evaluate.batches(eval_config, eval_source, eval_transform)
                answer = evaluate.evaluate(
                    eval_step, task, best(state), frozen, interruptible(pieces, stop), mesh
                )
                stream.skipped.update(pieces.skipped)
                return answer

            def evaluate_now() -> None:
                values, _ = evaluation()
                journal.record("eval", done, values)
                journal.say(f"step {done}  {task.headline} {values[task.headline]:.2f}")

            def evaluation_due() -> bool:
                return bool(config.eval_every) and not done % config.eval_every and done < steps

            def save(position: Any) -> None:
                kept = {k: state[k] for k in ("train", "ema") if k in state}
                pending = [{k: float(v) for k, v in one.items()} for one in jax.device_get(losses)]
                meta = {**origin, "losses": pending, "skipped": stream.skipped}
                saved.save(done, kept, state["opt"], position, meta)

            # Loop.
            position = stream.get_state()
            speed = Speed()
            place = functools.partial(place_batch, mesh=mesh)
            ahead = itertools.islice(loader.prefetch(stream, place), steps - done)
            try:
                if done and evaluation_due():
                    evaluate_now()
                for batch, position in ahead:
                    state, logs = step(state, frozen, batch, key)
                    done += 1
                    speed.begin(done)
                    losses.append(logs)
                    shown = done % config.log.every == 0 or done == steps
                    saving = config.save_every and done % config.save_every == 0
                    stopping = asked(stop, shown or saving)
                    if shown or saving or stopping:
                        check_finite(state)
                    if shown:
                        values = mean_logs(losses)
                        losses = []
                        rate = speed.lap(done, config.input.batch_size)
                        values["images_per_second"] = rate
                        journal.progress(done, values)
                    if saving or stopping:
                        save(position)
                    if stopping:
                        raise Preempted
                    if evaluation_due():
                        evaluate_now()
                        speed.pause()
                check_finite(state)
                save(position)
                values, predictions = evaluation()
            except Preempted:
                check_finite(state)
                save(position)
                raise

            # Product.
            journal.record("eval", done, values)
            if not first:
                return {}
            evaluate.write_predictions(folder / "predictions.csv", predictions)
            card = workdir.card(config, source.info, counts, values)
            leaves = jax.device_get(best(state))
            card = checkpoint.save_adapter(folder / "adapter", leaves, card)
            result = {
                "method": config.adapter.name,
                **values,
                "headline": task.headline,
                **counts,
                "adapter_bytes": card["bytes"],
                "images_per_second": round(speed.mean(config.input.batch_size), 1),
                "steps": steps,
                "skipped_images": len(stream.skipped),
                "adapter": str(folder / "adapter"),
            }
            workdir.finish(folder, result)
            return result


def restore(
    saved: Any, state: dict[str, Any], stream: Any, origin: dict[str, str]
) -> tuple[dict[str, Any], int, list[Any]]:
    """State, step and unreported logs of the newest checkpoint, or the state given, 0 and none.

    Raises:
        CheckpointError: if the run began with another `origin` (hashes of weights and data).
    """
    kept = {k: state[k] for k in ("train", "ema") if k in state}
    found = saved.restore(kept, state["opt"])
    if found is None:
        return state, 0, []
    done, kept, opt, position, meta = found
    for what, own in origin.items():
        if meta[what] != own:
            raise CheckpointError(
                f"the {what} changed since the run began: its SHA-256 was {meta[what][:12]}… and "
                f"is {own[:12]}…; give another --workdir"
            )
    stream.set_state(position)
    stream.skipped.update(meta["skipped"])
    number = jax.device_put(jnp.asarray(done, jnp.int32), state["step"].sharding)
    return {**state, **kept, "opt": opt, "step": number}, done, meta["losses"]


def training_steps(config: Any, examples: int) -> int:
    """Number of optimizer steps."""
    per_epoch = examples / config.input.batch_size
    return config.optim.steps or max(round(config.optim.epochs * per_epoch), 1)


def batches(config: Any, source: Any, transform: Any) -> Any:
    """This process's part of the endless training batches."""
    count = jax.process_count()
    return loader.train_batches(
        source,
        transform,
        batch_size=config.input.batch_size // count,
        seed=config.seed,
        process=(jax.process_index(), count),
        threads=None if config.input.threads < 0 else config.input.threads,
        on_error=config.input.on_error,
    )


def place_batch(batch: Any, mesh: Any) -> Any:
    """A batch on the mesh; the copy does not wait."""
    return sharding.put(batch, sharding.batch(batch, mesh))


def check_image(config: Any, shape: tuple[int, ...]) -> None:
    """Raises a ConfigError if images of this shape can't be cut into the backbone's patches."""
    patch = getattr(backbones.config(config.backbone.name), "patch", None)
    if patch is None:
        raise ConfigError(f"the backbone {config.backbone.name!r} takes point clouds, not images")
    if shape[0] % patch or shape[1] % patch:
        nearest = max(round(shape[0] / patch), 1) * patch
        raise ConfigError(
            f"images of {shape[0]}x{shape[1]} are not divisible by patch {patch} of "
            f"{config.backbone.name!r}; the nearest is resize({nearest})"
        )


def check_finite(state: dict[str, Any]) -> None:
    """Raises a TrainingError that names the first step that was not finite."""
    number = int(state["bad"]["step"])
    if number >= 0:
        index = sharding.gather_rows({"index": sharding.local(state["bad"]["index"])})["index"]
        raise TrainingError(
            f"the loss or its gradient is not finite at step {number}; the batch's examples are "
            f"{index.tolist()}; the last checkpoint before it is kept"
        )


def mean_logs(logs: list[dict[str, Array]]) -> dict[str, float]:
    """Mean of each logged value over some steps."""
    fetched = jax.device_get(logs)
    return {k: float(np.mean([float(one[k]) for one in fetched])) for k in fetched[0]}


class Speed:
    """Images a second, between laps and over all laps; compilation and evaluations stay out."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._steps, self._seconds = 0, 0.0

    def begin(self, step: int) -> None:
        """Starts the clock after the step that compiles; later calls do nothing."""
        self._last = self._last or (step, time.monotonic())

    def lap(self, step: int, batch: int) -> float:
        """Images a second since the last lap."""
        now = time.monotonic()
        steps, seconds = step - self._last[0], now - self._last[1]
        self._steps, self._seconds = self._steps + steps, self._seconds + seconds
        self._last = (step, now)
        return steps * batch / max(seconds, 1e-9)

    def mean(self, batch: int) -> float:
        """Images a second over all laps."""
        return self._steps * batch / max(self._seconds, 1e-9)

    def pause(self) -> None:
        """Forgets the last lap: what follows it was no training."""
        self._last = None


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal ends the process at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked(stop: threading.Event, meeting: bool) -> bool:
    """Whether to stop now; several processes agree on it, at the steps where they meet."""
    if jax.process_count() == 1:
        return stop.is_set()
    return meeting and sharding.any_process(stop.is_set())


def interruptible(batches: Any, stop: threading.Event) -> Iterator[Any]:
    """The batches, until a stop is asked for; several processes finish what they began."""
    for batch in batches:
        if stop.is_set() and jax.process_count() == 1:
            raise Preempted
        yield batch
