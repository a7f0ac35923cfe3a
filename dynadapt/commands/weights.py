"""Weights in and out."""

import sys

from absl import flags

from dynadapt.commands.base import (
    Answer,
    Command,
    counts,
    give_method,
    method_option,
    need,
    out_file,
    out_folder,
)
from dynadapt.errors import ConfigError


def _convert_options(options: flags.FlagValues) -> None:
    text = "layout to write: safetensors (our own), timm, hf, meta, microsoft, google, …; peft: "
    text += "the LoRA or DoRA of a run alone; hf and peft are folders, timm is one unless OUT ends "
    text += "in .safetensors"
    flags.DEFINE_string("to", "safetensors", text, flag_values=options)
    text = "attention heads, where the file can't tell"
    flags.DEFINE_integer("heads", None, text, flag_values=options)
    text = "the weights that a folder of Hugging Face's peft adapts"
    flags.DEFINE_string("base", None, text, flag_values=options)
    text = "side of the images that the weights are made for, where the file can't tell"
    flags.DEFINE_integer("image_size", None, text, flag_values=options)
    text = "of the values: float16, bfloat16 or float32; those of the source where none is given"
    flags.DEFINE_string("dtype", "", text, flag_values=options)
    method_option(options)


def _convert(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt import convert

    counts(options, "heads", "image_size")
    give_method(options)
    folder = convert.is_folder(options.to, need(options, "out"))
    out = out_folder(options) if folder else out_file(options)
    known = {k: options[k].value for k in ("heads", "image_size") if options[k].present}
    result = convert.run(need(options, "in"), out, options.to, options.base, options.dtype, **known)
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    return Answer(result, lambda: convert.show(result))


def _weights_options(options: flags.FlagValues) -> None:
    text = "folder to bring the named weights to; nothing else is ever downloaded"
    flags.DEFINE_string("download", None, text, flag_values=options)
    text = "time forward passes of the smaller backbones here, too"
    flags.DEFINE_bool("measure", False, text, flag_values=options)
    flags.DEFINE_string("out", None, "Markdown file for the table", flag_values=options)


def _weights(options: flags.FlagValues, overrides: list[str]) -> Answer:
    from dynadapt.bench import published
    from dynadapt.plans import weights_table
    from dynadapt.weights import catalogue

    name, out = options["name"].value, out_file(options)
    if name:
        found = catalogue.find(name)
        if options.measure or out:
            raise ConfigError(f"--measure and --out are for the whole table, without {name!r}")
        if not options.download:
            row = weights_table.row(found)
            return Answer(row, lambda: weights_table.show_one(row))
        result = weights_table.download(found, need(options, "download"))
        return Answer(result, lambda: print(f"wrote {result['file']}  sha256 {result['sha256']}"))
    if options.download:
        raise ConfigError("say which weights to download: dynadapt weights NAME --download=DIR")
    table, measured = weights_table.rows(), None
    if options.measure:
        measured = published.run(table, batch=4, rounds=5, limit=40)
        for row in table:
            row["images_per_second"] = measured["images_per_second"].get(published.label(row))
    if out:
        weights_table.write_page(out, weights_table.page(table, measured))
    return Answer(table, lambda: weights_table.show(table))


COMMANDS = {
    "convert": Command(
        "write weights, or a run with its adapter merged, in another layout",
        "dynadapt convert mae_pretrain_vit_base.pth vit.safetensors --to=timm",
        _convert,
        _convert_options,
        ("in", "out"),
    ),
    "weights": Command(
        "list published weights, tell how to obtain and load them, or download one file",
        "dynadapt weights vit_b16_augreg_in21k --download=weights",
        _weights,
        _weights_options,
        ("name",),
    ),
}
