"""What is converted: weights with what stands around them, of a file, a run or a folder of peft."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import adapters, backbones, model, tree, weights
from dynadapt.data import frames, images
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.layers import quantised
from dynadapt.runs import product
from dynadapt.weights import peft

POOLED = {
    "cls": "the class token",
    "mean": "the mean of the patches",
    "max": "the maximum of the patches",
}
CLASSIFIER = {"head/linear/kernel", "head/linear/bias"}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a run's images get to the backbone, as far as other libraries can be told.

    Attributes:
        mean, std: of r g b, for images scaled to 0..1.
        size: height and width that the backbone sees.
        short: what the shorter side is resized to before the middle is cut out; 0 where images are
            stretched to `size`.
        method: of the resize, one of `data.frames.METHODS`.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int]
    short: int = 0
    method: str = "bicubic"


@dataclasses.dataclass(frozen=True)
class Merged:
    """Weights to be written.

    Attributes:
        found: the weights, in our own names.
        backbone: that they are of.
        pool: what the head pools, one of `heads.linear.POOLINGS`; "" where there is no head.
        classes: names of the head's classes, where they are known.
        multilabel: whether an image may be of several classes.
        preprocessing: of a run whose transforms other libraries have; else None.
        notes: sentences on what the written weights do not tell.
        left: what no layout has a place for.
    """

    found: weights.Checkpoint
    backbone: nnx.Module
    pool: str = ""
    classes: tuple[str, ...] = ()
    multilabel: bool = False
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def of_file(found: weights.Checkpoint, **known: Any) -> Merged:
    """Weights of a file; their head pools what the publishers of such weights pool."""
    backbone = weights.build(found, **known)
    weights.check(backbone, found)
    return Merged(found, backbone, usual_pool(found, backbone.config))


def usual_pool(found: weights.Checkpoint, config: Any) -> str:
    """What a published head pools: the class token where there is one, unless a norm follows."""
    if not found.head:
        return ""
    token = getattr(config, "class_token", False) and "head/norm/scale" not in found.head
    return "cls" if token else "mean"


def of_run(folder: Path, *, base: str = "", fitted: bool = False) -> Merged:
    """The backbone of a run with its adapter folded in, and its head.

    A run whose frozen half was quantised is merged into the weights from before.

    Args:
        folder: `adapter/` of the run.
        base: where the backbone's weights lie now, if not where they lay in training.
        fitted: bring position embeddings to the size of the run's images, for layouts whose code
            has another rule for it.
    """
    adapter = product.read(folder)
    config, leaves = adapter.config, adapter.leaves
    config.backbone.weights = base or config.backbone.weights
    product.check_backbone(adapter)
    backbone = model.adapted_backbone(config)
    state = nnx.state(backbone)
    values = tree.leaves(state)
    values |= {k.removeprefix("backbone/"): jnp.asarray(v) for k, v in leaves.items()}
    nnx.update(backbone, tree.replace(state, values))
    adapters.merge(backbone, config.adapter.name)
    plain = {k: np.asarray(v) for k, v in tree.leaves(nnx.state(backbone)).items()}
    own = {k: v for k, v in leaves.items() if k.startswith("head/")}
    classifier = config.task.get("pool") and own.keys() == CLASSIFIER
    family = backbones.family(config.backbone.name)
    found = weights.Checkpoint(folder, family=family, values=plain, head=own if classifier else {})
    notes, given = [], None
    if (kind := config.compute.frozen_dtype) in quantised.KINDS:
        notes.append(f"it was trained on weights in {kind} and is merged into those of the file")
    if backbone.takes == "image":
        shape = adapter.spec["image"].shape[1:3]
        if fitted:
            found, backbone = at_size(found, backbone, shape)
            notes += size_notes(backbone, shape)
        given = preprocessing(config, shape)
        if given is None:
            notes.append(
                f"no other library has the run's transforms {config.input.eval!r}; prepare images "
                "as they do"
            )
    return Merged(
        found,
        backbone,
        config.task.pool if classifier else "",
        tuple(adapter.info.classes) if classifier else (),
        config.task.name == "multilabel",
        given,
        tuple(notes),
        () if classifier else tuple(sorted(own)),
    )


def at_size(
    found: weights.Checkpoint, backbone: Any, shape: tuple[int, int]
) -> tuple[weights.Checkpoint, Any]:
    """Weights and backbone for images `h w`, where there are any that answer alike."""
    if shape[0] != shape[1] or shape[0] == backbone.image_size:
        return found, backbone
    config = {**dataclasses.asdict(backbone.config), "image_size": shape[0]}
    fitted = weights.build(dataclasses.replace(found, config=config))
    # Another size may give a Swin other windows, with which it answers otherwise.
    if _windows(fitted) != _windows(backbone):
        return found, backbone
    return dataclasses.replace(found, values=weights.check(fitted, found)), fitted


def size_notes(backbone: Any, shape: tuple[int, int]) -> list[str]:
    """What to know where a run saw images `h w` of another size than its weights are for."""
    if shape == (backbone.image_size,) * 2:
        return []
    return [
        f"the weights are for images of {backbone.image_size} x {backbone.image_size}, and the run "
        f"saw {shape[0]} x {shape[1]}, to which other libraries bring them by rules of their own"
    ]


def _windows(backbone: Any) -> list[tuple[int, int]]:
    """Side and shift of the windows of each block of a Swin."""
    blocks = [block for stage in getattr(backbone, "stages", ()) for block in stage.blocks]
    return [(block.attn.window, block.attn.shift) for block in blocks]


_METHOD = r"(?:, ?(?:method=)?['\"](\w+)['\"])?"
_STRETCH = re.compile(rf"resize\((?:size=)?(\d+)(?:, ?(?:width=)?(\d+))?{_METHOD}\)")
_CROP = re.compile(rf"resize_short\((?:size=)?(\d+){_METHOD}\) ?\| ?center_crop\((?:size=)?(\d+)\)")


def preprocessing(config: Any, shape: tuple[int, int]) -> Preprocessing | None:
    """A run's preprocessing; None for transforms that other libraries do not have."""
    mean, std = images.NORMALISATIONS[config.input.normalise]
    text = config.input.eval.strip()
    short, method = 0, None
    if found := _STRETCH.fullmatch(text):
        method = found[3]
    elif found := _CROP.fullmatch(text):
        short, method = int(found[1]), found[2]
    elif text:
        return None
    method = method or "bicubic"
    if method not in frames.METHODS or method == "plain_bilinear":  # TensorFlow's alone
        return None
    return Preprocessing(mean, std, shape, short, method)


def of_peft(folder: Path, base: str | None, **known: Any) -> Merged:
    """The base weights with a folder of peft folded in, in the dtypes of the base."""
    if not base:
        raise ConfigError(
            f"{folder} is an adapter alone; give the weights that it adapts, --base=…"
        )
    found = weights.read(weights.locate(base))
    adapter = peft.read(folder, found.values | found.head)
    backbone = weights.build(found, **known)
    check_peft(backbone, found.family)
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
    values |= {k: v for k, v in adapter.base.items() if not k.startswith("head/")}
    own = adapter.base | adapter.leaves
    head = {k: v for k, v in own.items() if k.startswith("head/")}
    found = dataclasses.replace(found, values=values, head=found.head | head)
    return Merged(found, backbone, usual_pool(found, backbone.config))


def check_peft(backbone: Any, family: str) -> None:
    """Raises a ConfigError for a backbone that has no layers of timm's ViT."""
    if family != "vit" or backbone.config.gated:
        what = "a ViT with a gated MLP" if family == "vit" else f"a {family}"
        raise ConfigError(f"folders of peft are served for a plain ViT of timm, not for {what}")
