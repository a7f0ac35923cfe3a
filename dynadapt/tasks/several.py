"""Several dense tasks at once: each with its head, loss, metrics and answer, from one backbone.

    loss = sum over tasks of weight * (the task's sum / the task's weight)

Tasks, weights and headlines are those that multi-task adapters are compared by (MTLoRA, arXiv
2403.20320; TADFormer, arXiv 2501.04293). Fields, rows, metrics, records and files of a task have
its name before theirs: `normals/mean_deg`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import choices, pictures
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads import several as heads
from dynadapt.targets import mean
from dynadapt.tasks import depth, edges, normals, saliency, segmentation

Array = jax.Array
Batch = dict[str, Array]


class Kind(NamedTuple):
    """One of the tasks.

    Attributes:
        module: of the task.
        field: of the examples, which the module knows as the only one that it needs.
        weight: of its loss.
        headline: the metric that tables show of it.
        better: "higher" or "lower".
        settings: of the module, where they are not its own.
    """

    module: ModuleType
    field: str
    weight: float
    headline: str
    better: str
    settings: Mapping[str, Any] = {}

    def name_inside(self) -> str:
        """What the module calls the field."""
        return self.module.Task.needs[0]


METRES = dict(loss="l1", scale="metres", most=math.inf)
KINDS = {
    "semseg": Kind(segmentation, "labels", 1.0, "miou", "higher"),
    "human_parts": Kind(segmentation, "human_parts", 2.0, "miou", "higher"),
    "saliency": Kind(saliency, "saliency", 5.0, "max_miou", "higher"),
    "normals": Kind(normals, "normals", 10.0, "mean_deg", "lower"),
    "edges": Kind(edges, "edges", 50.0, "edge_f", "higher"),
    "depth": Kind(depth, "depth", 1.0, "pooled/rmse", "lower", METRES),
}
PASCAL = ("semseg", "human_parts", "saliency", "normals")


def needed(tasks: Sequence[str] = PASCAL, **_: Any) -> tuple[str, ...]:
    """The fields that these tasks need, of a config's settings.

    Raises:
        UnknownName: for a task that does not exist.
        ConfigError: for none, or one twice.
    """
    for name in tasks:
        if name not in KINDS:
            raise UnknownName("task", name, KINDS)
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"task.tasks must be one or more tasks, each once, not {tuple(tasks)}")
    return tuple(KINDS[name].field for name in tasks)


class Task:
    """Some of `KINDS`, at once.

    Args:
        info: description of the data set.
        tasks: their names; an adapter with streams of tasks must have the same.
        head: name of the dense head of each, a module of `heads`.
        channels: of the heads; -1 is their own.
        dropout: of whole channels before the heads' last layer; -1 is their own.
        weights: of the tasks' losses; () for the published ones.
        references: of each task the headline of a model for it alone, to which `delta_m` compares;
            () for none.
    """

    whole_batch = True  # each task's loss is divided by a weight of its own

    def __init__(
        self,
        info: Any,
        *,
        tasks: tuple[str, ...] = PASCAL,
        head: str = "hrnet",
        channels: int = -1,
        dropout: float = -1.0,
        weights: tuple[float, ...] = (),
        references: tuple[float, ...] = (),
    ):
        self.needs, self.tasks = needed(tasks), tuple(tasks)
        self.weights = weights or tuple(KINDS[name].weight for name in tasks)
        self.references = tuple(references)
        for what, given in (("weights", weights), ("references", references)):
            if given and len(given) != len(tasks):
                raise ConfigError(
                    f"task.{what} has {len(given)} entries for {len(tasks)} tasks "
                    f"({', '.join(tasks)}); give one each, or ()"
                )
            for value in given:
                if not choices.inside(value, "(0, inf)"):
                    raise ConfigError(f"task.{what} must be numbers above 0, not {value!r}")
        how = dict(head=head, channels=channels, dropout=dropout)
        self.each = {
            name: kind.module.Task(_seen(info, kind), **how, **kind.settings)
            for name, kind in self._kinds().items()
        }
        titles = [f"{name}/{kind.headline}" for name, kind in self._kinds().items()]
        if references:
            self.headline, self.better, self.beside = "delta_m", "higher", tuple(titles)
        else:
            self.headline, self.beside = titles[0], tuple(titles[1:])
            self.better = KINDS[tasks[0]].better

    def _kinds(self) -> dict[str, Kind]:
        return {name: KINDS[name] for name in self.tasks}

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """A head for each task, for features like these."""
        makers = {
            name: lambda own, task=task: task.head(own, rngs=rngs)
            for name, task in self.each.items()
        }
        return heads.made_for(like, makers)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """The batch as it is."""
        return batch

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Array, Array, dict]:
        """The weighted sum of the tasks' mean losses, 1, and `<task>/loss`: the means."""
        means = {}
        for name, task in self.each.items():
            total, weight, _ = task.loss(outputs[name], _view(batch, KINDS[name]))
            means[name] = mean(total, weight)
        pairs = zip(self.weights, means.values(), strict=True)
        logs = {f"{name}/loss": own for name, own in means.items()}
        return sum(w * own for w, own in pairs), jnp.ones(()), logs

    def rows(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
        """The rows of each task."""
        return {
            f"{name}/{k}": v
            for name, task in self.each.items()
            for k, v in task.rows(outputs[name], _view(batch, KINDS[name])).items()
        }

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """The metrics of each task, and, with references, `delta_m`; `examples` once."""
        found: dict[str, Any] = {}
        for name, task in self.each.items():
            own = _part(rows, name)
            if name == "human_parts":  # as published, pictures without people don't count
                people = own["labelled"][:, 1:].any(1)
                own = {k: v[people] for k, v in own.items()}
            values = task.value(own)
            del values["examples"]
            found |= {f"{name}/{k}": v for k, v in values.items()}
        if self.references:
            headlines = [found[title] for title in self.beside]
            better = [kind.better for kind in self._kinds().values()]
            found["delta_m"] = delta_m(headlines, self.references, better)
        return {**found, "examples": len(next(iter(rows.values())))}

    def answer(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
        """What each task answers."""
        return {
            f"{name}/{k}": v
            for name, task in self.each.items()
            for k, v in task.answer(outputs[name], _view(batch, KINDS[name])).items()
        }

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File, and what each task records; its files lie in a folder of its name."""
        values, written = {"file": example["name"]}, {}
        for name, task in self.each.items():
            own, content = task.record(_part(answer, name), _view(example, KINDS[name]))
            values |= {f"{name}/{k}": v for k, v in own.items() if k != "file"}
            written |= {f"{name}/{suffix}": data for suffix, data in content.items()}
        return values, written

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image and the tasks next to each other, their truth above, where any is known."""
        panels = {
            name: task.panels(_part(answer, name), _view(example, KINDS[name]))
            for name, task in self.each.items()
        }
        blank, strips = np.full_like(image, 255), []
        for what in ("truth", "answer"):
            row = {f"{name} {what}": own.get(what, blank) for name, own in panels.items()}
            if any(what in own for own in panels.values()):
                first = {"": blank} if strips else {"image": image}
                strips.append(pictures.beside(first | row))
        return np.concatenate(strips)


def delta_m(found: Sequence[float], references: Sequence[float], better: Sequence[str]) -> float:
    """By how many percent, the mean over tasks, figures are better than those of models for one
    task alone (Maninis et al., arXiv 1904.08918, equation 2)."""
    signs = [1 if b == "higher" else -1 for b in better]
    gains = [
        sign * (own - alone) / alone
        for own, alone, sign in zip(found, references, signs, strict=True)
    ]
    return 100 * sum(gains) / len(gains)


def _seen(info: Any, kind: Kind) -> Any:
    """What a task is told of the data: its own field."""
    return dataclasses.replace(info, fields={kind.name_inside(): info.fields[kind.field]})


def _view(values: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """A batch, or an example, with a task's own field alone, as its module calls it."""
    fields = {k.field for k in KINDS.values()}
    own = {kind.name_inside(): values[kind.field]} if kind.field in values else {}
    return {k: v for k, v in values.items() if k not in fields} | own


def _part(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of one task, without its name."""
    start = f"{name}/"
    return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
