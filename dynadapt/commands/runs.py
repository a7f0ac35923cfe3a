"""Training one adapter, and what a run leaves."""

import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from dynadapt import choices
from dynadapt.commands.base import (
    Answer,
    Command,
    adapter_of,
    adapter_options,
    config_of,
    config_options,
    counts,
    give_method,
    method_option,
    need,
    out_folder,
    workdir_options,
)
from dynadapt.errors import ConfigError


def _train_options(options: flags.FlagValues) -> None:
    config_options(options)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=options)
    text = "methods to train one after another, each in a folder of its own, for one table; or all"
    flags.DEFINE_list("methods", None, text, flag_values=options)
    text = "START:STOP: the steps after START up to STOP are traced into profile/ of the folder; "
    text += "START:STOP:all does so on every process"
    flags.DEFINE_string("profile", None, text, flag_values=options)


def _plan_options(options: flags.FlagValues) -> None:
    config_options(options)
    text = "machine to compile for that isn't here: a TPU accelerator such as v5litepod-16, v5p-16 "
    text += "or v6e-16, its topology such as v5e:4x4, or a GPU such as h100"
    flags.DEFINE_string("topology", None, text, flag_values=options)
    text = "methods to compare, or all: at their default settings, or with those of --config; with "
    text += "--config and --topology, what each needs of that machine"
    flags.DEFINE_list("methods", None, text, flag_values=options)
    text = "backbone of --methods; vit_b16 where none is given"
    flags.DEFINE_string("backbone", None, text, flag_values=options)
    text = "classes of the head of --methods; 10 where none are given"
    flags.DEFINE_integer("classes", None, text, flag_values=options)


def _eval_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    text = "folder for records and pictures; by default none are written"
    flags.DEFINE_string("out", None, text, flag_values=options)
    text = "another place of labelled data of the same kind; by default that of the training"
    flags.DEFINE_string("data", "", text, flag_values=options)
    adapter_options(options)


def _train(options: flags.FlagValues, overrides: list[str]) -> Answer:
    import jax

    from dynadapt import train
    from dynadapt.runs import profile, report

    folder, spec = need(options, "workdir"), options.config
    traced = profile.window(options.profile) if options.profile else None
    if options.methods is None:
        config = config_of(options, overrides)
        name = config.adapter.name
        result = train.run(config, folder, traced)
        if jax.process_index():
            return Answer(None)
        others = comparison(spec, overrides, folder)
        file = name.partition("#")[0] if choices.is_file(name) else ""
        return Answer(result, lambda: report.show([result], folder, others, file))
    runs = runs_of(options.methods, spec, overrides)
    report.check_all(list(runs.values()))
    results = []
    for method, config in runs.items():
        called = choices.title(method)
        print(f"method {called}", file=sys.stderr)
        results.append(train.run(config, folder / called, traced))
    if jax.process_index():
        return Answer(None)
    return Answer(results, lambda: report.show(results, folder))


def runs_of(
    methods: list[str], spec: str, overrides: list[str], backbone: str | None = None
) -> dict[str, Any]:
    """The config of each method; `all` are those that the config file and the backbone serve.

    With a backbone, the config file is asked for it.

    Raises:
        ConfigError: for a method that does not exist, or that one of them does not serve.
    """
    from dynadapt.commands import config_file
    from dynadapt.plans import compare

    runs, left = {}, {}
    of_backbone = f",backbone={backbone}" if backbone else ""
    for method in compare.chosen(methods):
        try:
            runs[method] = config_file.load(spec, overrides, f"method={method}{of_backbone}")
        except ConfigError as error:
            if methods != ["all"]:
                raise
            left[method] = str(error)
    if not runs:
        raise ConfigError(next(iter(left.values())))
    if methods == ["all"]:
        backbone = next(iter(runs.values())).backbone.name
        settings = {m: {k: v for k, v in c.adapter.items() if k != "name"} for m, c in runs.items()}
        left |= compare.refusals(backbone, settings)
    for method, reason in left.items():
        print(f"dynadapt: {method} is left out: {reason}", file=sys.stderr)
    return {method: config for method, config in runs.items() if method not in left}


def comparison(spec: str, overrides: list[str], folder: Path) -> str:
    """The command that compares methods under this config; "" where its file knows no methods."""
    from dynadapt.commands import config_file

    try:
        config_file.load(spec, [], "method=linear")
    except ConfigError:
        return ""
    argv = ["train", f"--config={spec}", *overrides, "--methods=all"]
    return shlex.join([*argv, f"--workdir={folder.parent / 'all'}"])


def _eval(options: flags.FlagValues, overrides: list[str]) -> Answer:
    import jax

    from dynadapt import evaluate
    from dynadapt.runs import report

    out = out_folder(options) if options.out else None
    adapter = adapter_of(options)
    result = evaluate.run(adapter, out, options.data, options.weights)
    if jax.process_index():
        return Answer(None)
    return Answer(result, lambda: report.show_metrics(result))


def _predict_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    text = "an image, a folder of images at any depth, or a text file with one path a line; clouds "
    text += "where the run is of clouds"
    flags.DEFINE_string("images", None, text, flag_values=options)
    flags.DEFINE_string("out", None, "folder for records and pictures", flag_values=options)
    text = "draw each image with its answer, too"
    flags.DEFINE_bool("pictures", False, text, flag_values=options)
    text = "images that are looked at together"
    flags.DEFINE_integer("batch", 32, text, flag_values=options)
    adapter_options(options)


def _predict(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import predict
    from dynadapt.runs import product

    counts(options, "batch")
    adapter, given = adapter_of(options), need(options, "images")
    source = predict.find(given, predict.takes(product.read(adapter)))
    out = out_folder(options)
    result = predict.run(
        adapter, source, out, batch=options.batch, draw=options.pictures, weights=options.weights
    )
    return Answer(result["records"], lambda: predict.show(result, out), lines=True)


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
    from dynadapt.commands import config_file
    from dynadapt.plans import compare

    if options.topology:
        return _compare_ahead(options, overrides)
    if overrides and not options.config:
        raise ConfigError(f"--methods compares what shapes tell; it takes no {overrides[0]}")
    counts(options, "classes")
    classes = 10 if options.classes is None else options.classes
    backbone, given = options.backbone or "vit_b16", None
    if options.config:
        of_backbone = f"backbone={options.backbone}" if options.backbone else ""
        names = compare.chosen(options.methods)
        given = {
            name: config_file.load(
                options.config, overrides, ",".join(filter(None, (f"method={name}", of_backbone)))
            )
            for name in names
        }
        backbone = given[names[0]].backbone.name
    result = compare.run(backbone, options.methods, classes, given)
    return Answer(result, lambda: compare.show(result))


def _compare_ahead(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.plans import ahead

    if not options.config:
        raise ConfigError(
            "--methods with --topology compiles training steps; give the --config whose batch and "
            "data they have, such as --config=quickstart"
        )
    if options.classes is not None:
        raise ConfigError("--classes goes with --methods alone; the data of --config has its own")
    given = runs_of(options.methods, options.config, overrides, options.backbone)
    result = ahead.run(given, options.topology)
    return Answer(result, lambda: ahead.show(result))


def _verify_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    method_option(options)


def _verify(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.release import export
    from dynadapt.runs import verify, workdir

    give_method(options)
    folder = need(options, "workdir")
    workdir.check_name(folder)
    rows = export.verify(folder) if export.is_folder(folder) else verify.run(folder)
    bad = any(row["fault"] for row in rows)
    return Answer(rows, lambda: verify.show(rows), code=2 if bad else 0)


def _diagnose(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.figures import diagnosis

    result = diagnosis.run(adapter_of(options), options.weights)
    return Answer(result, lambda: diagnosis.show(result))


def _diagnose_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    adapter_options(options)


def _figures_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    text = "figures to draw: kernels, spread, importance, attention, singular, router, tsne, "
    text += "gradcam; or all, which are those that serve the run's method and task"
    flags.DEFINE_list("what", ["all"], text, flag_values=options)
    flags.DEFINE_string("out", None, "folder; figures/ of the run by default", flag_values=options)
    text = "images to look at; by default 6 in a grid, and at most 1,000 for statistics"
    flags.DEFINE_integer("examples", None, text, flag_values=options)
    text = "folder of a run whose singular values are drawn beside this one's"
    flags.DEFINE_string("beside", None, text, flag_values=options)
    adapter_options(options)


def _figures(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.figures import figures

    counts(options, "examples")
    out = out_folder(options) if options.out else None
    beside = need(options, "beside") if options.beside else None
    give_method(options)
    result = figures.run(
        need(options, "workdir"), options.what, out, options.examples, beside, options.weights
    )
    return Answer(result, lambda: figures.show(result))


COMMANDS = {
    "train": Command(
        "train an adapter and evaluate it; started again, it goes on where it was",
        "dynadapt train --config=quickstart --workdir=runs/quickstart",
        _train,
        _train_options,
    ),
    "eval": Command(
        "evaluate a run's adapter in a fresh process",
        "dynadapt eval --workdir=runs/quickstart",
        _eval,
        _eval_options,
    ),
    "predict": Command(
        "answer new images without labels: one record an image, pictures where asked for",
        "dynadapt predict --workdir=runs/flowers --images=photos --out=answers --pictures",
        _predict,
        _predict_options,
    ),
    "plan": Command(
        "show sites, trainable parameters, memory and FLOPs before anything runs",
        "dynadapt plan --config=quickstart",
        _plan,
        _plan_options,
    ),
    "diagnose": Command(
        "tell whether a run's adapter uses its input: kernels, branches, gradients",
        "dynadapt diagnose --workdir=runs/quickstart",
        _diagnose,
        _diagnose_options,
    ),
    "figures": Command(
        "draw what papers draw of a run: kernels, importance maps, routes, t-SNE, Grad-CAM",
        "dynadapt figures --workdir=runs/quickstart --what=kernels,tsne",
        _figures,
        _figures_options,
    ),
    "verify": Command(
        "compare all that a run or an export wrote, and a run's backbone, with their hashes",
        "dynadapt verify --workdir=runs/quickstart",
        _verify,
        _verify_options,
    ),
}
