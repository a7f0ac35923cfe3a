"""What a user of an exported model must know: what goes in, how it is prepared, what comes out."""

import inspect
from typing import Any

import jax
from jax import export

from dynadapt import predict
from dynadapt.convert import merged
from dynadapt.data import images
from dynadapt.runs import product

EXTENT = "extent"


def inputs(trained: product.Product) -> list[str]:
    """Names of the fields that a model's answer needs, in order."""
    fields = trained.adapter.info.fields
    return [name for name in ("image", "points", EXTENT) if name in fields]


def model(trained: product.Product, program: export.Exported) -> dict[str, Any]:
    """What is known of a model and its program, as JSON values."""
    card, config, info = trained.card, trained.config, trained.adapter.info
    names = inputs(trained)
    shapes = dict(zip(names, program.in_avals[-len(names) :], strict=True))
    answered = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {
        "call": f"outputs = program.call(weights, {', '.join(names)})",
        "inputs": [{"name": k, **_shape(v), "what": _meaning(k, v)} for k, v in shapes.items()],
        "preprocessing": preprocessing(trained.adapter),
        "outputs": [{"name": name, **_shape(v)} for name, v in answered.items()],
        "answer": answer(trained),
        "classes": list(info.classes),
        "task": config.task.name,
        "method": config.adapter.name,
        "backbone": config.backbone.name,
        "backbone_sha256": card["weights_sha256"],
        "data": card["data"],
    }


def _shape(aval: Any) -> dict[str, Any]:
    return {
        "shape": [n if isinstance(n, int) else str(n) for n in aval.shape],
        "dtype": aval.dtype.name,
    }


def shape_text(described: dict[str, Any]) -> str:
    """Shape and dtype in a few words."""
    return f"{' '.join(map(str, described['shape']))} {described['dtype']}"


def _meaning(name: str, aval: Any) -> str:
    if name == "image":
        h, w = aval.shape[1:3]
        return f"red, green, blue from 0 to 255, resized to {h} x {w} (height x width) already"
    if name == EXTENT:
        return "height and width in pixels that the picture fills of its canvas, at the top left"
    return "x, y, z of each point"


def answer(trained: product.Product) -> dict[str, str]:
    """What the outputs of each task mean."""
    task = trained.task
    each = task.each if hasattr(task, "tasks") else {trained.config.task.name: task}
    return {k: " ".join(inspect.getdoc(v.answer).split()) for k, v in each.items()}


def preprocessing(adapter: product.SavedAdapter) -> dict[str, Any]:
    """What is to be done to an image or a cloud before it goes in, in numbers and words."""
    config, spec = adapter.config, adapter.spec
    if "image" not in spec:
        words = f"float32, {spec['points'].shape[1]} points"
        if predict.in_unit_sphere(config):
            words += "; moved so that their mean is 0, then divided by the largest distance from 0"
        return {"words": words}
    mean, std = images.NORMALISATIONS[config.input.normalise]
    inside = "the program itself computes (image / 255 - mean) / std; give it plain uint8"
    found = merged.preprocessing(config, spec["image"].shape[1:3])
    h, w = spec["image"].shape[1:3]
    values = dict(height=h, width=w, normalise=inside, mean=mean, std=std)
    if found is None:
        words = f"RGB, as the transforms {config.input.eval!r} of dynadapt do (docs/transforms.md)"
        return {"words": words, **values}
    method = f"{found.method}, antialiased as Pillow's resize is"
    words = f"RGB, stretched to {w} x {h} pixels (width x height), {method}"
    if found.short:
        words = f"RGB, the shorter side brought to {found.short} pixels, {method}; then the middle "
        words += f"{w} x {h} pixels cut out"
    return {"words": words, "shorter_side": found.short, "resample": found.method, **values}
