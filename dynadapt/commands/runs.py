"""Training one adapter, and what a run leaves."""

import sys

from absl import flags

from dynadapt.commands.base import (
    Answer,
    Command,
    config_of,
    config_options,
    need,
    out_folder,
    workdir_options,
)
from dynadapt.errors import ConfigError


def _train_options(options: flags.FlagValues) -> None:
    config_options(options)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=options)


def _plan_options(options: flags.FlagValues) -> None:
    config_options(options)
    text = "machine to compile for that isn't here: a TPU topology such as v5e:4x4, h100 or h200"
    flags.DEFINE_string("topology", None, text, flag_values=options)
    text = "methods to compare at their default settings, or all; without --config"
    flags.DEFINE_list("methods", None, text, flag_values=options)
    text = "backbone of --methods; vit_b16 where none is given"
    flags.DEFINE_string("backbone", None, text, flag_values=options)
    text = "classes of the head of --methods; 10 where none are given"
    flags.DEFINE_integer("classes", None, text, flag_values=options)


def _eval_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    text = "folder for records and pictures; by default none are written"
    flags.DEFINE_string("out", None, text, flag_values=options)


def _train(options: flags.FlagValues, overrides: list[str]) -> Answer:
    import jax

    from dynadapt import train
    from dynadapt.runs import report

    folder = need(options, "workdir")
    config = config_of(options, overrides)
    try:
        if not config.compare:
            result = train.run(config, folder)
            if jax.process_index():
                return Answer(None)
            return Answer(result, lambda: report.show([result], folder, options.config))
        runs = [config_of(options, overrides, f"method={m}") for m in config.compare]
        report.check_all(runs)
        results = []
        for one in runs:
            print(f"method {one.adapter.name}", file=sys.stderr)
            results.append(train.run(one, folder / one.adapter.name))
        if jax.process_index():
            return Answer(None)
        return Answer(results, lambda: report.show(results, folder, options.config))
    except train.Preempted:
        again = " ".join([report.command(), *sys.argv[1:]])
        print(f"dynadapt: stopped and saved; go on with: {again}", file=sys.stderr)
        return Answer({"stopped": True}, code=143)


def _eval(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import evaluate
    from dynadapt.runs import report

    out = out_folder(options) if options.out else None
    result = evaluate.run(need(options, "workdir") / "adapter", out)
    return Answer(result, lambda: report.show_metrics(result))


def _plan(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.plans import plan

    if options.methods is not None:
        return _compare(options, overrides)
    for name in ("backbone", "classes"):
        if options[name].value is not None:
            raise ConfigError(f"--{name} goes with --methods; a config has its own")
    result = plan.run(config_of(options, overrides), options.topology)
    return Answer(result, lambda: plan.show(result), code=0 if result["fits"] is not False else 2)


def _compare(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.plans import compare

    given = [f"--{name}" for name in ("config", "topology") if options[name].value]
    for other in given + overrides:
        raise ConfigError(f"--methods compares default settings; it takes no {other}")
    classes = 10 if options.classes is None else options.classes
    result = compare.run(options.backbone or "vit_b16", options.methods, classes)
    return Answer(result, lambda: compare.show(result))


def _verify(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.runs import verify

    rows = verify.run(need(options, "workdir"))
    bad = any(row["fault"] for row in rows)
    return Answer(rows, lambda: verify.show(rows), code=2 if bad else 0)


COMMANDS = {
    "train": Command(
        "train an adapter and evaluate it; started again, it goes on where it was",
        "dynadapt train --config=configs/quickstart.py --workdir=runs/quickstart",
        _train,
        _train_options,
    ),
    "eval": Command(
        "evaluate a run's adapter in a fresh process",
        "dynadapt eval --workdir=runs/quickstart",
        _eval,
        _eval_options,
    ),
    "plan": Command(
        "show sites, trainable parameters, memory and FLOPs before anything runs",
        "dynadapt plan --config=configs/quickstart.py",
        _plan,
        _plan_options,
    ),
    "verify": Command(
        "compare all that a run wrote, and its backbone, with their hashes",
        "dynadapt verify --workdir=runs/quickstart",
        _verify,
        workdir_options,
    ),
}
