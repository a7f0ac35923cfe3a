"""Handing a model on: as a program, as a card, through the hub."""

from absl import flags

from dynadapt.commands.base import (
    Answer,
    Command,
    adapter_of,
    adapter_options,
    give_method,
    method_option,
    only,
    out_folder,
    workdir_options,
)
from dynadapt.errors import ConfigError, UnknownName


def _export_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    adapter_options(options)
    flags.DEFINE_string("out", None, "folder, empty or not there yet", flag_values=options)
    text = "machines that the program shall run on"
    flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], text, flag_values=options)
    text = "fold the adapter into the weights, where its method can"
    flags.DEFINE_bool("merge", False, text, flag_values=options)


def _export(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.release import export

    adapter, out = adapter_of(options), out_folder(options)
    merge, weights = options.merge, options.weights
    card = export.run(adapter, out, options.platforms, merge=merge, weights=weights)
    return Answer(card, lambda: export.show(card, out))


def _card_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    method_option(options)


def _card(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.release import model_card

    file = model_card.write(adapter_of(options))
    return Answer(
        {"file": str(file)}, lambda: print(f"wrote {file}; read it before you publish it")
    )


def _hub_options(options: flags.FlagValues) -> None:
    workdir_options(options)
    method_option(options)
    text = "owner/name; of pull also owner/name@revision"
    flags.DEFINE_string("repo", None, text, flag_values=options)
    flags.DEFINE_bool("private", False, "of push: hide it from others", flag_values=options)
    text = "of pull: folder that gets the adapter, in adapter/"
    flags.DEFINE_string("out", None, text, flag_values=options)


def _hub(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.release import hub

    what = options["what"].value
    if what not in ("push", "pull"):
        raise UnknownName("part of hub", str(what), ("push", "pull"))
    if not options.repo:
        raise ConfigError("give --repo=owner/name")
    if what == "push":
        only(options, "hub push", "workdir", "method", "repo", "private")
        result = hub.push(adapter_of(options), options.repo, private=options.private)
        return Answer(result, lambda: hub.show_pushed(result))
    only(options, "hub pull", "method", "repo", "out")
    give_method(options)
    out = out_folder(options)
    result = hub.pull(options.repo, out)
    return Answer(result, lambda: hub.show_pulled(result, out))


COMMANDS = {
    "export": Command(
        "write a run's whole model as one program that jax alone runs, for CPU, GPU and TPU",
        "dynadapt export --workdir=runs/quickstart --out=model",
        _export,
        _export_options,
    ),
    "card": Command(
        "write a model card for a run's adapter: adapter/README.md",
        "dynadapt card --workdir=runs/quickstart",
        _card,
        _card_options,
    ),
    "hub": Command(
        "push a run's adapter to the Hugging Face hub, or pull one from there",
        "dynadapt hub push --workdir=runs/quickstart --repo=owner/name --private",
        _hub,
        _hub_options,
        ("what",),
    ),
}
