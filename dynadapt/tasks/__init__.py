"""Task families: head, loss, metrics, and the answer for a user. No base class, but a protocol.

    headline, better ("higher" or "lower"), needs (names of fields)
    head(like, rngs=)              like: shapes of the adapted backbone's features
    prepare(batch, key, train)     -> batch; targets, mixing
    loss(outputs, batch)           -> (sum, weight, logs): divided once, over all parts and devices
    rows(outputs, batch)           -> {name: `b …`}: what the metrics need of each example
    value(rows)                    -> metrics; on the host, of the rows of all examples in order
    answer(outputs, batch)         -> {name: `b …`}: what a user asked for
    record(answer, example)        -> plain values, and {suffix: bytes} of files, {folder/suffix:
                                   bytes} of those in a folder of their own; on the host
    draw(image, answer, example)   -> picture `h w 3`; on the host

and, where a task needs it:

    tasks                          names of the tasks in it, whose features may differ: `head` then
                                   gets those of each by its name
    panels(answer, example)        -> {"truth", "answer": picture `h w 3`}, the former where it is
                                   known: what pictures of several tasks are made of
    look(forward, inputs)          -> outputs of an evaluation, by several calls of the model;
                                   `inputs` are what `prepare` keeps as `whole`, or else gives
    beside                         names of metrics that tables show beside the headline
    whole_batch                    whether the loss is of a whole batch, and no sum over its parts
    stored                         names of fields that `judge` is to get as they are stored
    judge(answer, example)         -> rows of one example, in the place of those of `rows`; on the
                                   host, for what takes the stored picture's own pixels
    results                        name of a file, such as "detections.json": one JSON list of all
                                   that records hold under "results", in the order of the examples

`head`, `prepare`, `loss`, `rows`, `answer` and `look` run under `jax.jit`. The `example` of
`record` and `draw` has the fields of the batch, `name`, the stored picture's `size` and the `frame`
that led from there; where a task judges, that of an evaluation has `stored` besides, fields by
their names. Of new images a `record` gets `name`, `size` and `frame` alone; their `index` counts
what was left to do. What a record holds under "results" is a list of plain dicts, which is left
out of the table. Of the metrics one may be a table: values of each class, by their names.
"""

import sys
from types import ModuleType
from typing import Any

from dynadapt import choices
from dynadapt.errors import ConfigError

_HERE = sys.modules[__name__]


def names() -> list[str]:
    """All tasks."""
    return choices.names(_HERE)


def module(name: str) -> ModuleType:
    """The task's module; UnknownName where there is none."""
    return choices.module(_HERE, name, "task")


def settings(name: str) -> dict[str, Any]:
    """The task's settings and their defaults."""
    return choices.settings(module(name).Task, skip=("info",))


def needed(section: Any) -> tuple[str, ...]:
    """The fields that the task of a config's `task` section needs.

    They are its `needs`, or what its module's `needed(**settings)` says.
    """
    given = dict(section)
    found = module(given.pop("name"))
    return found.needed(**given) if hasattr(found, "needed") else found.Task.needs


def from_config(section: Any, info: Any) -> Any:
    """The task of a config's `task` section, for a data set described by `info`.

    Raises:
        ConfigError: for a setting that the task does not have, or data without a field it needs.
    """
    given = dict(section)
    name = given.pop("name")
    choices.check_settings(f"task {name!r}", given, settings(name))
    kind = module(name).Task
    for field in needed(section):
        if field not in info.fields:
            raise ConfigError(
                f"the task {name!r} needs the field {field!r}, and the data set {info.name!r} has "
                f"{', '.join(info.fields)}"
            )
    return kind(info, **given)
