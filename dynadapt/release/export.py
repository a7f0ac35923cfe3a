"""An adapted model as one program that jax alone runs: backbone, adapter, head and answer.

out/model.jax            StableHLO for any batch size, as `jax.export` writes it
out/model.safetensors    the weights by path, which are the program's first argument
out/model.json           inputs, preprocessing, outputs, classes, versions, hashes; written last

Weights lie beside the program: as constants in it they take seven times as long to write, four
times as long to load, and twice the memory.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from dynadapt import adapters, files, inputs, model, tree
from dynadapt.context import Context
from dynadapt.errors import CheckpointError, ConfigError, MachineError, UnknownName
from dynadapt.release import described
from dynadapt.runs import product
from dynadapt.runs.journal import show_table, size_text

Array = jax.Array

FORMAT = 1
PROGRAM, WEIGHTS, CARD = "model.jax", "model.safetensors", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")
# These end with a backbone; what their heads say is of no use to anyone.
PRETEXTS = ("masked_points", "pretraining")


def run(
    adapter: Path,
    out: Path,
    platforms: Sequence[str] = PLATFORMS,
    *,
    merge: bool = False,
    weights: str = "",
) -> dict[str, Any]:
    """Writes the model of a run.

    Args:
        adapter: `adapter/` of the run.
        out: folder, empty or not there yet.
        platforms: that the program shall run on, among `PLATFORMS`.
        merge: fold the adapter into the weights.
        weights: where the backbone's weights lie now, if not where they lay in training.

    Returns:
        What `model.json` holds.

    Raises:
        CheckpointError: for a damaged adapter or another backbone than it was trained on.
        ConfigError: for a task without an answer, a model that doesn't serve batches of any size,
            or a folder that holds files.
        MachineError: without flatbuffers, or if the disk is full.
        NotMergeable: for an adapter that can't be folded.
    """
    for name in platforms:
        if name not in PLATFORMS:
            raise UnknownName("platform", name, PLATFORMS)
    if importlib.util.find_spec("flatbuffers") is None:
        raise MachineError(
            "to write a program jax needs flatbuffers, which is not installed; it is in the extra "
            "[export]: pip install 'dynadapt[export]'"
        )
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"the folder {out} holds files; give one that is empty or not there yet")
    trained = product.load(adapter, weights)
    if trained.config.task.name in PRETEXTS:
        raise ConfigError(
            f"the task {trained.config.task.name!r} has no answer to hand on; what it trained is "
            "a backbone, which `dynadapt convert` writes"
        )
    network = nnx.merge(*trained.parts)
    if merge:
        adapters.merge(network.backbone, trained.config.adapter.name)
    program, values = made(trained, network, tuple(dict.fromkeys(platforms)))
    card = {
        "format": FORMAT,
        **described.model(trained, program),
        "merged": merge,
        "adapter_sha256": trained.card["file_sha256"],
        "platforms": list(program.platforms),
        "calling_convention": program.calling_convention_version,
        "versions": product.versions(),
    }
    with files.writing(out, then="nothing of it counts; make room and start again"):
        return _written(out, program, values, card)


def function(
    trained: product.Product, network: nnx.Module
) -> tuple[Callable[..., dict[str, Array]], dict[str, Array]]:
    """A model as a function `(weights, *inputs) -> outputs`, and its weights by path.

    Inputs are those of `described.inputs`; outputs are the task's answer and, where the head gives
    one array, that as `logits`.
    """
    task, config = trained.task, trained.config
    graph, state = nnx.split(network)
    names = described.inputs(trained)

    def forward(weights: dict[str, Array], *given: Array) -> dict[str, Array]:
        batch = {**dict(zip(names, given, strict=True)), "mask": jnp.ones(given[0].shape[0])}
        batch = inputs.normalised(batch, config)
        network = nnx.merge(graph, tree.replace(state, weights))
        outputs = model.outputs(network, batch, Context(), task, config, {}, look=True)
        answer = task.answer(outputs, batch)
        return {"logits": outputs, **answer} if isinstance(outputs, Array) else answer

    return forward, tree.leaves(state)


def made(
    trained: product.Product, network: nnx.Module, platforms: Sequence[str]
) -> tuple[export.Exported, dict[str, Array]]:
    """The program of a model's `function` for any batch size, and the weights by path.

    Raises:
        ConfigError: for a model that does not serve batches of any size.
    """
    config, spec = trained.config, trained.adapter.spec
    forward, values = function(trained, network)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in values.items()}
    (b,) = export.symbolic_shape("b")
    given = (
        jax.ShapeDtypeStruct((b, *spec[n].shape[1:]), spec[n].dtype)
        for n in described.inputs(trained)
    )
    # Of the files that made it, a program shall know names, not where they lie on this machine.
    places = jax.config.jax_hlo_source_file_canonicalization_regex
    try:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
        program = export.export(jax.jit(forward), platforms=platforms)(shapes, *given)
    except Exception as error:  # whatever asks for the number that a batch doesn't have yet
        raise ConfigError(
            f"the method {config.adapter.name!r} with the task {config.task.name!r} can't be "
            f"exported, as its program is not for any batch size: {files.first_line(error)}"
        ) from error
    finally:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", places)
    return program, values


def _written(
    out: Path, program: export.Exported, values: dict[str, Array], card: dict[str, Any]
) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    files.write_bytes(out / PROGRAM, program.serialize())
    files.write_tensors(out / WEIGHTS, {k: np.asarray(v) for k, v in values.items()})
    paths = [out / name for name in (PROGRAM, WEIGHTS)]
    listed = {p.name: {"bytes": p.stat().st_size, "sha256": files.sha256(p)} for p in paths}
    card = {**card, "files": listed}
    card["card_sha256"] = product.card_hash(card)
    files.write_json(out / CARD, card)
    return card


def is_folder(folder: Path) -> bool:
    """Whether a model was exported there."""
    return (folder / CARD).is_file()


def verify(folder: Path) -> list[dict[str, str]]:
    """One row `part, fault` for each file of an exported model; an empty fault is a whole one."""
    return [{"part": name, "fault": fault} for name, fault in _faults(folder)]


def _faults(folder: Path) -> Iterator[tuple[str, str]]:
    try:
        card = files.read_json(folder / CARD)
    except CheckpointError as error:
        yield CARD, str(error)
        return
    yield CARD, "" if card.get("card_sha256") == product.card_hash(card) else f"{CARD} was changed"
    for name in (PROGRAM, WEIGHTS):
        try:
            whole = files.sha256(folder / name) == card["files"][name]["sha256"]
            yield name, "" if whole else f"{name} was changed"
        except FileNotFoundError:
            yield name, f"{name} is missing"
        except (KeyError, TypeError):
            yield name, f"{CARD} has no hash of it"


def show(card: dict[str, Any], out: Path) -> None:
    """Prints what was written, what goes in and what comes out."""
    rows = [["file", n, size_text(f["bytes"]), f["sha256"][:12]] for n, f in card["files"].items()]
    for kind in ("inputs", "outputs"):
        rows += [[kind[:-1], x["name"], described.shape_text(x), ""] for x in card[kind]]
    columns = ["what", "name", "size", "sha256"]
    show_table(f"{out}, for {', '.join(card['platforms'])}", columns, rows)
