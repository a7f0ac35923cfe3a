"""Training, from a config to an adapter: data, model, partition, restore, step, loop."""

import functools
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt import config as configs
from dynadapt import evaluate, inputs, model, optim, processes, sharding, tasks
from dynadapt.data import loader
from dynadapt.errors import CheckpointError, TrainingError
from dynadapt.runs import checkpoint, claims, product, workdir
from dynadapt.runs.journal import Journal
from dynadapt.runs.predictions import Predictions
from dynadapt.runs.stop import Preempted, asked, interruptible, stop_signal
from dynadapt.step import best, initial_state, make_step

Array = jax.Array


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
    config = configs.resolve(config)
    processes.start()
    processes.agree(configs.digest(config))
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.input.batch_size, mesh, config.optim.accumulate)
    sharding.check_dtype(config.compute.dtype, mesh)
    workdir.check(config, folder)
    if (result := workdir.result(config, folder)) is not None:
        return result
    claims.refuse(folder)

    # Data and task.
    split = inputs.open_split(config, "train")
    tested = inputs.open_split(config, "eval", split.source.info.classes)
    task = tasks.from_config(config.task, split.source.info)
    steps = training_steps(config, len(split.source))
    stream = inputs.train_batches(config, split)

    # Model: what trains, what moves, what is frozen, and where each lies.
    network = model.build(config, task, split.spec)
    seen = inputs.described(config, split, model.features(network.backbone, split.spec))
    named = model.named(config, network.backbone)
    model.features(network.backbone, tested.spec)  # raises where the evaluated size can't be served
    graph, train, stats, frozen = model.split(network, config)
    counts = workdir.counts(train, frozen)
    del network
    tx = optim.make(config.optim, steps, train, model.layers(config))
    state = initial_state(train, stats, tx, config)
    state = sharding.put_whole(state, sharding.state(state, mesh))
    frozen = sharding.put_whole(frozen, sharding.frozen(frozen, mesh))

    first = jax.process_index() == 0
    with (
        jax.set_mesh(mesh),
        stop_signal() as stop,
        claims.owner(folder, workdir.PARTS) as still_ours,
        checkpoint.Checkpoints(folder / "checkpoints") as saved,
    ):
        origin = {"weights": product.weights_hash(config), "data": split.source.info.fingerprint}
        state, done, losses, laps = restore(saved, state, stream, origin, config)
        if first:
            workdir.start(config, folder)
        speed = Speed(*laps)
        with Journal(
            folder, steps, tensorboard=config.log.tensorboard, silent=not first, resumed=done
        ) as journal:
            for line in [*seen, *([f"going on from step {done}"] if done else [])]:
                journal.say(line)
            step = make_step(graph, task, tx, config)
            eval_step = evaluate.make_step(graph, task, config)
            key = jax.random.fold_in(jax.random.key(config.seed), 3)
            key = sharding.put_whole(key, sharding.replicated(key, mesh))

            def evaluation(out: Path | None = None) -> dict[str, float]:
                pieces = inputs.eval_batches(config, tested, mesh)
                records = Predictions(out, task, tested.source, pieces.about) if out else None
                values = evaluate.evaluate(
                    eval_step, task, best(state), frozen, interruptible(pieces, stop), mesh,
                    record=records.add if records else None,
                )  # fmt: skip
                if records:
                    records.finish()
                stream.skipped.update(pieces.skipped)
                return values

            def evaluate_now() -> None:
                values = evaluation()
                journal.record("eval", done, values)
                journal.say(f"step {done}  {task.headline} {values[task.headline]:.2f}")

            def evaluation_due() -> bool:
                return bool(config.eval_every) and not done % config.eval_every and done < steps

            def save(position: Any) -> None:
                kept = kept_of(state)
                pending = [{k: float(v) for k, v in one.items()} for one in jax.device_get(losses)]
                meta = {**origin, "losses": pending, "skipped": stream.skipped, "laps": speed.laps}
                still_ours()
                meta |= workdir.known_by(config)
                saved.save(done, kept, state["opt"], position, meta)

            # Loop.
            position = stream.get_state()
            place = functools.partial(inputs.place, mesh=mesh)
            ahead = itertools.islice(loader.prefetch(stream, place), steps - done)
            try:
                if done and evaluation_due():
                    evaluate_now()
                for batch, position in ahead:
                    state, logs = step(state, frozen, batch, key)
                    done += 1
                    speed.begin(done, logs)
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
                values = evaluation(folder / "predictions")
            except Preempted:
                check_finite(state)
                save(position)
                raise

            # Product.
            journal.record("eval", done, values)
            if not first:
                return {}
            still_ours()
            card = product.card(named, split.source.info, counts, values)
            leaves = jax.device_get(product.leaves(best(state)))
            card = product.save(folder / "adapter", leaves, card)
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
    saved: Any, state: dict[str, Any], stream: Any, origin: dict[str, str], config: Any
) -> tuple[dict[str, Any], int, list[Any], list[float]]:
    """State, step, unreported logs and laps of the newest checkpoint, or the state given and none.

    Raises:
        CheckpointError: if the run began with another `origin` (hashes of weights and data).
        ConfigError: if it began with another config.
    """
    kept = kept_of(state)
    found = saved.restore(kept, state["opt"])
    if found is None:
        return state, 0, [], []
    done, kept, opt, position, meta = found
    workdir.agree(meta.get("config"), config, saved.folder.parent)
    for what, own in origin.items():
        if meta[what] != own:
            raise CheckpointError(
                f"the {what} changed since the run began: its SHA-256 was {meta[what][:12]}… and "
                f"is {own[:12]}…; give another --workdir"
            )
    stream.set_state(position)
    stream.skipped.update(meta["skipped"])
    number = jax.device_put(jnp.asarray(done, jnp.int32), state["step"].sharding)
    return {**state, **kept, "opt": opt, "step": number}, done, meta["losses"], meta.get("laps", [])


def kept_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of a state besides the optimizer's: what is there of it."""
    return {k: state[k] for k in ("train", "stats", "ema") if jax.tree.leaves(state.get(k, ()))}


def training_steps(config: Any, examples: int) -> int:
    """Number of optimizer steps."""
    per_epoch = examples / config.input.batch_size
    return config.optim.steps or max(round(config.optim.epochs * per_epoch), 1)


def check_finite(state: dict[str, Any]) -> None:
    """Raises a TrainingError that names the first step that was not finite."""
    number = int(state["bad"]["step"])
    if number >= 0:
        index = processes.gather_rows({"index": sharding.local(state["bad"]["index"])})["index"]
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

    def __init__(self, steps: int = 0, seconds: float = 0.0):
        self.laps = [steps, seconds]  # of this run so far, also before it went on
        self._last: tuple[int, float] | None = None

    def begin(self, step: int, logs: Any) -> None:
        """Starts the clock when the first step, which compiles, is over; later calls do nothing."""
        if self._last is None:
            jax.block_until_ready(logs)
            self._last = step, time.monotonic()

    def lap(self, step: int, batch: int) -> float:
        """Images a second since the last lap."""
        now = time.monotonic()
        steps, seconds = step - self._last[0], now - self._last[1]
        self.laps = [self.laps[0] + steps, self.laps[1] + seconds]
        self._last = (step, now)
        return steps * batch / max(seconds, 1e-9)

    def mean(self, batch: int) -> float:
        """Images a second over all laps."""
        return self.laps[0] * batch / max(self.laps[1], 1e-9)

    def pause(self) -> None:
        """Forgets the last lap: what follows it was no training."""
        self._last = None
