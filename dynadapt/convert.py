"""Weights from one publisher's layout to another's or to our own, also those of a merged run.

LoRA and DoRA come from, and go to, the folders of Hugging Face's peft.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import adapters, backbones, files, model, tree, weights
from dynadapt.config import DTYPES
from dynadapt.errors import CheckpointError, ConfigError, UnknownName
from dynadapt.layers import SameKey
from dynadapt.runs import product
from dynadapt.weights import peft
from dynadapt.weights.layouts import LAYOUTS
from dynadapt.weights.published import METADATA, layout_for

OWN = "safetensors"
# Adapters alone, as a folder.
PEFT = "peft"
# Their files are .npz; all others are written as safetensors, with the publisher's names.
NPZ = ("google", "big_vision")


def targets() -> list[str]:
    """What can be written: our own layout, those of all publishers, and peft's adapters."""
    return [OWN, PEFT, *sorted({layout.name for layout in LAYOUTS})]


def run(
    source: Path,
    out: Path,
    to: str = OWN,
    base: str | None = None,
    dtype: str = "",
    **known: Any,
) -> dict[str, Any]:
    """Writes the weights of a file, a folder or a run in another layout.

    A run's adapter is merged into its backbone, and the head of a classification goes along.
    timm reads a head with pool "mean" with `global_pool="avg", fc_norm=False`.

    Args:
        source: weights of any known source, the folder of a run, or a folder of peft.
        out: the file to write, or with `to="peft"` the folder.
        to: one of `targets()`.
        base: the weights that a folder of peft adapts, of any known source.
        dtype: of the values that are written, "" for those of the source.
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
    if dtype and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    if base and not peft.is_folder(source):
        raise ConfigError(f"--base is for a folder of peft, with {peft.CONFIG}; {source} is none")
    if to == PEFT:
        return to_peft(source, out)
    if (out.suffix == ".npz") != (to in NPZ):
        raise ConfigError(f"{to} weights are {'.npz' if to in NPZ else 'safetensors'}, not {out}")
    if (source / "adapter" / "adapter.json").is_file():
        found, backbone = merged(source / "adapter")
    elif peft.is_folder(source):
        found, backbone = merged_peft(source, base, **known)
    else:
        found = weights.read(weights.locate(str(source)))
        backbone = weights.build(found, **known)
        weights.check(backbone, found)
    if dtype:
        kind = jnp.dtype(dtype)
        for values in (found.values, found.head, found.rest):
            values.update({k: v.astype(kind) for k, v in values.items() if v.dtype.kind in "fV"})
    if to == OWN:
        tensors, left = found.values | found.head, []
        tensors |= {f"rest/{k}": v for k, v in found.rest.items()}
        card = dict(family=found.family, publisher=found.publisher, prefix=found.prefix)
        card["config"] = dataclasses.asdict(backbone.config)
        files.write_tensors(out, tensors, {METADATA: json.dumps(card)})
    else:
        tensors, left = renamed(found, backbone.config, to)
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


def renamed(
    found: weights.Checkpoint, config: Any, to: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A checkpoint's tensors in a publisher's layout, and the names that it has no place for."""
    layout = layout_for(to, found.family, config)
    same = layout.name == found.publisher
    prefix = found.prefix if same else layout.usual(bool(found.head))
    heads = config.heads if isinstance(config.heads, int) else 0
    named, left = found.values | found.head, [] if same else sorted(found.rest)
    for path in [p for p in found.head if not layout.source_names(p, prefix)]:
        left.append(path)
        del named[path]
    return layout.to_source(named, prefix, heads) | (found.rest if same else {}), left


def merged(folder: Path) -> tuple[weights.Checkpoint, nnx.Module]:
    """The backbone of a run with its adapter folded in, and its head, as a checkpoint."""
    adapter = product.read(folder)
    config, leaves = adapter.config, adapter.leaves
    product.check_backbone(adapter)
    backbone = model.adapted_backbone(config)
    state = nnx.state(backbone)
    values = tree.leaves(state)
    values |= {k.removeprefix("backbone/"): jnp.asarray(v) for k, v in leaves.items()}
    nnx.update(backbone, tree.replace(state, values))
    adapters.merge(backbone, config.adapter.name)
    plain = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(backbone)).items()}
    classifier = config.task.name == "classification"
    head = {k: v for k, v in leaves.items() if classifier and k.startswith("head/")}
    family = backbones.family(config.backbone.name)
    return weights.Checkpoint(folder, family=family, values=plain, head=head), backbone


def merged_peft(
    folder: Path, base: str | None, **known: Any
) -> tuple[weights.Checkpoint, nnx.Module]:
    """The base weights with a folder of peft folded in, in the dtypes of the base."""
    if not base:
        raise ConfigError(
            f"{folder} is an adapter alone; give the weights that it adapts, --base=…"
        )
    adapter, found = peft.read(folder), weights.read(weights.locate(base))
    backbone = weights.build(found, **known)
    _serves_peft(backbone, found.family)
    weights.fill(backbone, found)
    adapters.adapt(backbone, adapter.method, rngs=nnx.Rngs(0), **adapter.settings)
    state = nnx.state(backbone)
    own = tree.leaves(state)
    given = {k: v for k, v in adapter.leaves.items() if not k.startswith("head/")}
    for path, value in given.items():
        if path not in own or own[path].shape != value.shape:
            raise CheckpointError(f"the adapter in {folder} does not fit {base!r} at {path}")
    # A layer of a target that the folder leaves out starts without effect and stays so.
    values = own | {k: jnp.asarray(v, jnp.float32) for k, v in given.items()}
    nnx.update(backbone, tree.replace(state, values))
    adapters.merge(backbone, adapter.method)
    new = tree.leaves(nnx.state(backbone))
    changed = {f"{path.partition('/adapter/')[0]}/kernel" for path in given}
    values = {
        k: np.asarray(new[k]).astype(v.dtype) if k in changed else v
        for k, v in found.values.items()
    }
    head = {k: v for k, v in adapter.leaves.items() if k.startswith("head/")}
    return dataclasses.replace(found, values=values, head=found.head | head), backbone


def to_peft(source: Path, out: Path) -> dict[str, Any]:
    """Writes the LoRA or DoRA of a run, and its head, as a folder of peft for timm's ViT."""
    if not (source / "adapter" / "adapter.json").is_file():
        raise ConfigError(f"--to={PEFT} needs the folder of a run; {source} is none")
    adapter = product.read(source / "adapter")
    config, leaves = adapter.config, adapter.leaves
    settings = dict(config.adapter)
    method = settings.pop("name")
    product.check_backbone(adapter)
    backbone = nnx.eval_shape(lambda: model.bare_backbone(config, rngs=SameKey()))
    _serves_peft(backbone, backbones.family(config.backbone.name))
    own = {k.removeprefix("backbone/"): v for k, v in leaves.items()}
    kernels = {}
    if method == "dora":
        backbone = model.adapted_backbone(config)
        kernels = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(backbone)).items()}
    name = config.backbone.weights or None
    peft.write(out, method, settings, own, kernels=kernels, base=name)
    file = out / peft.TENSORS
    return {
        "file": str(out),
        "sha256": files.sha256(file),
        "family": backbones.family(config.backbone.name),
        "tensors": len(files.read_tensors(file)),
        "left": [],
    }


def _serves_peft(backbone: Any, family: str) -> None:
    """Raises a ConfigError for a backbone that has no layers of timm's ViT."""
    if family != "vit" or backbone.config.gated:
        what = "a ViT with a gated MLP" if family == "vit" else f"a {family}"
        raise ConfigError(f"folders of peft are served for a plain ViT of timm, not for {what}")


def show(result: dict[str, Any]) -> None:
    """Prints what was written."""
    print(f"wrote {result['file']}: {result['tensors']} tensors, sha256 {result['sha256']}")
    if result["left"]:
        some = ", ".join(result["left"][:5]) + (", …" if len(result["left"]) > 5 else "")
        print(f"left behind {len(result['left'])} that this layout has no place for: {some}")
