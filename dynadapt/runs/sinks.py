"""Dashboards that a run's numbers go to besides: Weights & Biases and MLflow.

A sink is a context manager `open(folder, config)` that gives `write(step, values)`. Its library is
imported when a config names it and at no other time, and is told by its own environment variables
where it writes and whether it may use the network.
"""

import contextlib
import importlib.util
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dynadapt import config as configs
from dynadapt import files
from dynadapt.errors import DynadaptError, MachineError

FILE = "sinks.json"  # by sink, the id of the run there: a run that goes on continues it

Write = Callable[[int, Mapping[str, float]], Any]


@contextlib.contextmanager
def open_wandb(folder: Path, config: Mapping[str, Any]) -> Iterator[Write]:
    """A run of Weights & Biases; its own files lie in `wandb/` of the folder."""
    import wandb

    if (number := _known(folder, "wandb")) is None:
        number = uuid.uuid4().hex[:8]
        _keep(folder, "wandb", number)
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", "dynadapt"),
        name=os.environ.get("WANDB_NAME", folder.absolute().name),
        id=number,
        resume="allow",
        reinit="create_new",  # whatever else the process has open there
        dir=folder,
        config=dict(config),
        settings={"console": "off"},
    ) as run:
        # Steps that are done again after a hard end are there, and are passed over.
        yield lambda step, values: run.log(dict(values), step=step)


@contextlib.contextmanager
def open_mlflow(folder: Path, config: Mapping[str, Any]) -> Iterator[Write]:
    """A run of MLflow."""
    import mlflow

    number = _known(folder, "mlflow")
    name = None if number else folder.absolute().name
    with mlflow.start_run(run_id=number, run_name=name) as run:
        if number is None:
            _keep(folder, "mlflow", run.info.run_id)
            mlflow.log_params(configs.flat(config))
        yield lambda step, values: mlflow.log_metrics(dict(values), step=step)


OPEN = {"wandb": open_wandb, "mlflow": open_mlflow}


def check(names: Iterable[str]) -> None:
    """Raises a MachineError for a sink whose library isn't installed."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # such as the folder that wandb leaves
            raise MachineError(f"log.sinks needs {name}: pip install 'dynadapt[{name}]'")


def started(
    stack: contextlib.ExitStack, names: Iterable[str], folder: Path, config: Mapping[str, Any]
) -> dict[str, Write]:
    """The `write` of each sink, which the stack closes.

    Raises:
        MachineError: for one that does not start, with what it says.
    """
    found = {}
    for name in names:
        try:
            found[name] = stack.enter_context(OPEN[name](folder, config))
        except DynadaptError:
            raise
        except Exception as error:  # of a library: no login, no server, no such project
            reason = files.first_line(error)
            raise MachineError(f"log.sinks: {name} does not start: {reason}") from error
    return found


def _known(folder: Path, name: str) -> str | None:
    path = folder / FILE
    return files.read_json(path).get(name) if path.exists() else None


def _keep(folder: Path, name: str, number: str) -> None:
    path = folder / FILE
    known = files.read_json(path) if path.exists() else {}
    with files.writing(path):
        files.write_json(path, {**known, name: number})
