"""Training, from a config to an adapter: data, model, partition, restore, step, loop."""

import functools
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt import choices, evaluate, inputs, model, optim, processes, sharding, tasks
from dynadapt import config as configs
from dynadapt.data import loader
from dynadapt.errors import CheckpointError, TrainingError
from dynadapt.runs import checkpoint, claims, prefix, product, profile, sinks, speed, workdir
from dynadapt.runs.journal import Journal
from dynadapt.runs.predictions import SHEET, Predictions
from dynadapt.runs.profile import Profile, Window
from dynadapt.runs.report import number_text
from dynadapt.runs.speed import Speed, traced_flops
from dynadapt.runs.stop import Preempted, asked, interruptible, stop_signal
from dynadapt.step import best, collapsed, initial_state, make_step

Array = jax.Array


def run(config: Any, folder: Path, traced: Window | None = None) -> dict[str, Any]:
    """Trains what a config says, going on from the last checkpoint in `folder` if there is one.

    Args:
        config: a complete config.
        folder: of the run.
        traced: steps that the profiler looks at.

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
        if traced:
            logging.warning("the run in %s is complete: nothing is traced", folder)
        return result
    sinks.check(config.log.sinks)
    claims.refuse(folder)

    # Data and task.
    split = inputs.open_split(config, "train")
    tested = inputs.open_split(config, "eval", split.source.info.classes)
    task = tasks.from_config(config.task, split.source.info)
    beside = getattr(task, "beside", ())
    steps = training_steps(config, len(split.source))
    profile.check(traced, steps)
    stream = inputs.train_batches(config, split)

    # Model: what trains, what moves, what is frozen, and where each lies.
    network = model.build(config, task, split.spec)
    seen = inputs.described(config, split, model.features(network.backbone, split.spec))
    named = model.named(config, network.backbone)
    if config.input.keep_prefix:
        prefix.check(config, split, task, network)
    model.features(network.backbone, tested.spec)  # raises where the evaluated size can't be served
    graph, train, stats, frozen = model.split(network, config)
    counts = workdir.counts(train, frozen)
    del network
    rates = optim.hyper(config.optim, steps)
    shapes, layers = jax.eval_shape(lambda: train), model.layers(config)
    optimizer_of = functools.partial(optim.traced, config.optim, train=shapes, layers=layers)
    state = initial_state(train, stats, optimizer_of(rates), config)
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
        if config.input.keep_prefix:
            kept = prefix.kept(config, split, graph, state, frozen, mesh, folder, origin)
            stream = inputs.train_batches(config, kept)
        state, done, losses, laps = restore(saved, state, stream, origin, config)
        if first:
            workdir.start(config, folder)
        peak = speed.peak(mesh, config.compute.dtype)
        clock = Speed(config.input.batch_size, peak, *laps)
        bad, fell = int(state["bad"]["count"]), False
        with (
            Journal(
                folder, steps, tensorboard=config.log.tensorboard, to=config.log.sinks,
                config=configs.plain(config), silent=not first, resumed=done,
            ) as journal,
            Profile(folder, traced, done, journal.say) as profiled,
        ):  # fmt: skip
            for line in [*seen, *([f"going on from step {done}"] if done else [])]:
                journal.say(line)
            step = make_step(graph, task, optimizer_of, config)
            eval_step = evaluate.make_step(graph, task, config)
            key = jax.random.fold_in(jax.random.key(config.seed), 3)
            key, rates = (sharding.put_whole(x, sharding.replicated(x, mesh)) for x in (key, rates))

            def evaluation(out: Path | None = None) -> dict[str, Any]:
                pieces = inputs.eval_batches(config, tested, mesh, task)
                records = Predictions(out, task, tested.source, pieces.about) if out else None
                values = evaluate.evaluate(
                    eval_step, task, best(state), frozen, interruptible(pieces, stop), mesh,
                    record=records.add if records else None, about=pieces.about,
                )  # fmt: skip
                if records:
                    records.finish(values)
                stream.skipped.update(pieces.skipped)
                return values

            def evaluate_now() -> None:
                values = evaluation()
                journal.record("eval", done, values)
                shown = [f"{name} {number_text(values[name])}" for name in (task.headline, *beside)]
                journal.say(f"step {done}  {'  '.join(shown)}")

            def evaluation_due() -> bool:
                return bool(config.eval_every) and not done % config.eval_every and done < steps

            def save(position: Any) -> None:
                kept = kept_of(state)
                meta = {
                    **origin,
                    **workdir.known_by(config),
                    "losses": known_logs(losses),
                    "bad": {k: int(state["bad"][k]) for k in ("count", "step")},
                    "variance": {k: float(v) for k, v in state["variance"].items()},
                    "skipped": stream.skipped,
                    "laps": clock.laps,
                }
                still_ours()
                saved.save(done, kept, state["opt"], position, meta)

            # Loop.
            position = stream.get_state()
            place = functools.partial(inputs.place, mesh=mesh)
            ahead = itertools.islice(loader.prefetch(stream, place), steps - done)
            try:
                if done and evaluation_due():
                    evaluate_now()
                for batch, position in ahead:
                    args = state, frozen, batch, key, rates
                    clock.flops = clock.flops or traced_flops(step.trace(*args).jaxpr.jaxpr)
                    profiled.begin(done, state)
                    with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
                        state, logs = step(*args)
                    done += 1
                    clock.skip(profiled.end(done, state))
                    clock.begin(done, logs)
                    losses.append(logs)
                    shown = done % config.log.every == 0 or done == steps
                    saving = config.save_every and done % config.save_every == 0
                    stopping = asked(stop, shown or saving)
                    if shown or saving or stopping:
                        bad = check_bad(state, config, bad, journal.say)
                    if shown:
                        values = mean_logs(losses)
                        losses = []
                        fell = check_collapse(state, fell, done, journal.say)
                        journal.progress(done, values | clock.lap(done))
                    if saving or stopping:
                        save(position)
                    if stopping:
                        raise Preempted
                    if evaluation_due():
                        evaluate_now()
                        clock.pause()
                bad = check_bad(state, config, bad, journal.say)
                save(position)
                values = evaluation(folder / "predictions")
            except Preempted:
                check_bad(state, config, bad, journal.say)
                save(position)
                raise

            # Product.
            journal.record("eval", done, values)
            journal.picture("predictions", done, folder / "predictions" / SHEET)
            if not first:
                return {}
            still_ours()
            card = product.card(named, split.source.info, counts, values)
            leaves = jax.device_get(product.leaves(best(state)))
            card = product.save(folder / "adapter", leaves, card)
            result = {
                "method": choices.title(config.adapter.name),
                **values,
                "headline": task.headline,
                "better": task.better,
                "beside": list(beside),
                "train_data": split.source.info.fingerprint,
                "eval_data": tested.source.info.fingerprint,
                **counts,
                "adapter_bytes": card["bytes"],
                **clock.mean(),
                "steps": steps,
                "skipped_images": len(stream.skipped),
                "features_variance": round(float(state["variance"]["now"]), 6),
                "collapsed": bool(collapsed(state["variance"])),
                "adapter": str(folder / "adapter"),
            }
            prefix.drop(folder)
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
    numbers = {"step": done}
    numbers |= {k: {**state[k], **meta.get(k, {})} for k in ("bad", "variance")}
    numbers = {k: _placed(v, state[k]) for k, v in numbers.items()}
    state = {**state, **kept, "opt": opt, **numbers}
    return state, done, meta["losses"], meta.get("laps", [])


def _placed(values: Any, like: Any) -> Any:
    """Numbers as arrays that lie as others do."""
    return jax.tree.map(
        lambda v, x: jax.device_put(jnp.asarray(v, x.dtype), x.sharding), values, like
    )


def kept_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of a state besides the optimizer's: what is there of it."""
    return {k: state[k] for k in ("train", "stats", "ema") if jax.tree.leaves(state.get(k, ()))}


def training_steps(config: Any, examples: int) -> int:
    """Number of optimizer steps."""
    per_epoch = examples / config.input.batch_size
    return config.optim.steps or max(round(config.optim.epochs * per_epoch), 1)


def check_bad(state: dict[str, Any], config: Any, told: int, say: Callable[[str], None]) -> int:
    """How many steps were bad; names the last of them if there are more than `told`.

    Raises:
        TrainingError: if they are as many as end a run.
    """
    count, number = (int(state["bad"][k]) for k in ("count", "step"))
    most = config.optim.bad_steps
    if count <= told and count < most:
        return count
    index = processes.gather_rows({"index": sharding.local(state["bad"]["index"])})["index"]
    more = f" and {len(index) - 16} more" if len(index) > 16 else ""
    what = (
        f"the loss, its gradient or the update is not finite at step {number}; the batch's "
        f"examples are {index[:16].tolist()}{more}"
    )
    if count >= most:
        raise TrainingError(
            f"{what}; it is bad step {count}, and optim.bad_steps={most} of them end a run; the "
            "last checkpoint is kept"
        )
    say(f"{what}; the step is skipped, as {count} of {most} that end the run")
    return count


def check_collapse(
    state: dict[str, Any], told: bool, step: int, say: Callable[[str], None]
) -> bool:
    """Whether features collapsed, now or before; says so once."""
    variance = {k: float(v) for k, v in state["variance"].items()}
    if told or not collapsed(variance):
        return told
    say(
        f"warning: at step {step} the features hardly differ between images: their variance over "
        f"images, relative, is {variance['now']:.2g} and was {variance['most']:.2g}; the model may "
        "answer the same to all of them; try a smaller optim.lr, adapter.scale or rank"
    )
    return True


def known_logs(logs: list[dict[str, Array]]) -> list[dict[str, float]]:
    """What some steps logged, as numbers; of a bad step only that it was bad."""
    fetched = [{k: float(v) for k, v in one.items()} for one in jax.device_get(logs)]
    return [{"bad": 1.0} if one.get("bad") else one for one in fetched]


def mean_logs(logs: list[dict[str, Array]]) -> dict[str, float]:
    """Mean of each logged value over some steps that were not bad, and how many were."""
    good = [one for one in known_logs(logs) if not one.pop("bad", 0.0)]
    means = {k: float(np.mean([one[k] for one in good])) for one in good[:1] for k in one}
    bad = len(logs) - len(good)
    return {**means, "bad_steps": bad} if bad else means
