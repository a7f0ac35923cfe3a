"""Weights from one publisher's layout to another's or to our own, also those of a merged run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import adapters, backbones, checkpoint, evaluate, files, model, tree, weights
from dynadapt import config as configs
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.weights.layouts import LAYOUTS
from dynadapt.weights.published import METADATA, layout_for

OWN = "safetensors"
# Their files are .npz; all others are written as safetensors, with the publisher's names.
NPZ = ("google", "big_vision")


def targets() -> list[str]:
    """What can be written: our own layout, and those of all publishers."""
    return [OWN, *sorted({layout.name for layout in LAYOUTS})]


def run(source: Path, out: Path, to: str = OWN, **known: Any) -> dict[str, Any]:
    """Writes the weights of a file, a folder or a run in another layout.

    A run's adapter is merged into its backbone, and its head goes along as classifier.

    Args:
        source: weights of any known source, or the folder of a run.
        out: the file to write.
        to: one of `targets()`.
        **known: config fields that the file can't tell, such as `heads=4`.

    Returns:
        The file, its SHA-256, the family and the names that were left behind.

    Raises:
        UnknownName: for a layout that does not exist or does not serve this backbone.
        CheckpointError: for weights that are damaged or incomplete.
        NotMergeable: for a run whose adapter depends on the input.
    """
    if to not in targets():
        raise UnknownName("layout", to, targets())
    if (out.suffix == ".npz") != (to in NPZ):
        raise ConfigError(f"{to} weights are {'.npz' if to in NPZ else 'safetensors'}, not {out}")
    if (source / "adapter" / "adapter.json").is_file():
        found, backbone = merged(source / "adapter")
    else:
        found = weights.read(weights.locate(str(source)))
        backbone = weights.build(found, **known)
        weights.check(backbone, found)
    config = dataclasses.asdict(backbone.config)
    if to == OWN:
        tensors = {**found.values, **found.head, **{f"rest/{k}": v for k, v in found.rest.items()}}
        card = dict(family=found.family, publisher=found.publisher, prefix=found.prefix)
        files.write_tensors(out, tensors, {METADATA: json.dumps(card | dict(config=config))})
        left = []
    else:
        layout = layout_for(to, found.family, backbone.config)
        same = layout.name == found.publisher
        prefix = found.prefix if same else layout.usual(bool(found.head))
        heads = config["heads"] if isinstance(config["heads"], int) else 0
        named, left = found.values | found.head, [] if same else sorted(found.rest)
        for path in [p for p in found.head if not layout.source_names(p, prefix)]:
            left.append(path)
            del named[path]
        tensors = layout.to_source(named, prefix, heads) | (found.rest if same else {})
        if to in NPZ:
            with files.whole(out) as partial, open(partial, "wb") as file:
                np.savez(file, **tensors)
        else:
            files.write_tensors(out, tensors, {"format": "pt"})
    return {
        "file": str(out),
        "sha256": files.sha256(out),
        "family": found.family,
        "tensors": len(tensors),
        "left": left,
    }


def merged(folder: Path) -> tuple[weights.Checkpoint, nnx.Module]:
    """The backbone of a run with its adapter folded in, and its head, as a checkpoint."""
    leaves, card = checkpoint.load_adapter(folder)
    config = configs.from_plain(card["config"])
    evaluate.check_backbone(config, card)
    backbone = model.adapted_backbone(config)
    state = nnx.state(backbone)
    values = tree.leaves(state)
    values |= {k.removeprefix("backbone/"): jnp.asarray(v) for k, v in leaves.items()}
    nnx.update(backbone, tree.replace(state, values))
    adapters.merge(backbone, config.adapter.name)
    plain = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(backbone)).items()}
    head = {k: v for k, v in leaves.items() if k.startswith("head/")}
    family = backbones.family(config.backbone.name)
    return weights.Checkpoint(folder, family=family, values=plain, head=head), backbone


def show(result: dict[str, Any]) -> None:
    """Prints what was written."""
    print(f"wrote {result['file']}: {result['tensors']} tensors, sha256 {result['sha256']}")
    if result["left"]:
        some = ", ".join(result["left"][:5]) + (", …" if len(result["left"]) > 5 else "")
        print(f"left behind {len(result['left'])} that this layout has no place for: {some}")
