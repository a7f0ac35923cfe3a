"""Stand-ins for Weights & Biases 0.31 and MLflow 3.17: what of them is called, and a list of it."""

import importlib
import sys

WANDB = """
told = []


class Run:
    def log(self, data, step=None, commit=None):
        told.append(("log", step, data))

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        told.append(("finish", 0 if exc_type is None else 1))


def init(
    entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
    mode=None, reinit=None, resume=None, settings=None,
):
    told.append(("init", dict(project=project, id=id, name=name, resume=resume, config=config)))
    return Run()
"""

MLFLOW = """
import types

told = []


class ActiveRun:
    def __init__(self, number):
        self.info = types.SimpleNamespace(run_id=number)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        told.append(("end", "FINISHED" if exc_type is None else "FAILED"))


def start_run(
    run_id=None, experiment_id=None, run_name=None, nested=False, parent_run_id=None, tags=None,
    description=None, log_system_metrics=None,
):
    told.append(("start", run_id, run_name))
    return ActiveRun(run_id or "0123abcd")


def log_metrics(metrics, step=None, synchronous=None, run_id=None, timestamp=None):
    told.append(("log", step, metrics))


def log_params(params, synchronous=None, run_id=None):
    told.append(("params", params))
"""


def install(folder, monkeypatch):
    """Puts both where imports find them; returns the modules."""
    folder.mkdir()
    made = []
    monkeypatch.syspath_prepend(folder)
    for name, text in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        made.append(importlib.import_module(name))
        monkeypatch.setitem(sys.modules, name, made[-1])
    return made
