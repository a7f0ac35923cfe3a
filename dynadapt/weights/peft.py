"""LoRA and DoRA as Hugging Face's peft keeps them, for ViTs with timm's names or its own.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, with A `r d_in`, B `d_out r`
and DoRA's lengths `d_out` under `base_model.model.blocks.{i}.{layer}.lora_A.weight` and so on. The
increment is alpha / r B A, or alpha / sqrt(r) B A where the config says `use_rslora`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt import files
from dynadapt.errors import CheckpointError, ConfigError
from dynadapt.weights import peft_config, peft_names, source
from dynadapt.weights.peft_names import Site

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
METHODS = ("lora", "dora")

_SPLIT = ("q", "k", "v")
_FIELDS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
_PUBLISHED = {ours: name for name, ours in _FIELDS.items()}
_HEAD = {"weight": "head/linear/kernel", "bias": "head/linear/bias"}
_PATH = re.compile(r"(blocks/\d+/(?:attn|mlp))/(\w+)/adapter/(\w+)/(a|b|magnitude)")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a folder holds.

    Attributes:
        method: "lora" or "dora".
        settings: of the method: rank, targets, scale, dropout.
        leaves: by path within the backbone, and `head/…` where the head was saved; in our
            orientation and the file's dtype.
        base: leaves of the base and of its head that it changes besides, as they become: biases,
            and kernels where our method has no adapter.
    """

    method: str
    settings: dict[str, Any]
    leaves: dict[str, np.ndarray]
    base: dict[str, np.ndarray]


@dataclasses.dataclass
class _Held:
    """A folder's tensors: by module and field those of layers, then biases, then the head."""

    folder: Path
    config: dict[str, Any]
    sites: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    biases: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    head: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def is_folder(folder: Path) -> bool:
    """Whether there is a peft config in the folder."""
    return (folder / CONFIG).is_file()


def read(folder: Path, base: Mapping[str, np.ndarray] | None = None) -> Adapter:
    """Reads a folder.

    Layers of several ranks get the largest, filled up with zeros; where alpha / r differs, it goes
    into B in float32, and the scale is 1.

    Args:
        folder: with a config and tensors.
        base: values of the weights that it adapts and of their head, by our path; needed where it
            changes biases, the patch embedding or the head.

    Raises:
        CheckpointError: for files that are missing or damaged, an option that changes the adapter
            in a way that is not served, or names that no ViT of timm or Hugging Face has.
    """
    config = files.read_json(folder / CONFIG)
    peft_config.check(folder / CONFIG, config)
    held = _held(folder, config)
    places = {module: _place(held, module) for module in held.sites}
    inside = {module: site for module, site in places.items() if site.target}
    if not inside:
        raise CheckpointError(f"{folder / TENSORS} holds no LoRA")
    rank = max(peft_config.rank(config, module) for module in inside)
    scales = {module: peft_config.scale(config, module) for module in inside}
    common = scales[next(iter(scales))] if len({*scales.values()}) == 1 else 1.0
    leaves = dict(held.head)
    for module, site in inside.items():
        values = _padded(held.sites[module], rank)
        if scales[module] != common:
            values["b"] = values["b"].astype(np.float32) * np.float32(scales[module] / common)
        for field, value in values.items():
            if f"{site.adapter}/{field}" in leaves:
                raise CheckpointError(f"two layers in {folder} are {site.path}; one is {module}")
            leaves[f"{site.adapter}/{field}"] = np.ascontiguousarray(value.T)
    targets = {site.target for site in inside.values()}
    settings = dict(
        rank=rank,
        targets=tuple(t for t in peft_names.TARGETS if t in targets),
        scale=common,
        dropout=float(config.get("lora_dropout") or 0.0),
    )
    method = "dora" if config.get("use_dora") else "lora"
    return Adapter(method, settings, leaves, _changed(held, places, base))


def _held(folder: Path, config: dict[str, Any]) -> _Held:
    """Sorts a folder's tensors by what they are."""
    if not (folder / TENSORS).exists() and (folder / PICKLE).exists():
        raise CheckpointError(
            f"{folder} has {PICKLE}; save it as safetensors, with safe_serialization=True"
        )
    tensors = files.read_tensors(folder / TENSORS)
    if bad := source.not_finite(tensors):
        raise CheckpointError(f"the tensor {bad} in {folder} is not finite")
    held, saved = _Held(folder, config), tuple(config.get("modules_to_save") or [])
    learned = config.get("bias", "none") != "none"
    for name, value in tensors.items():
        if ".original_module." in name:
            continue  # what a module in `modules_to_save` was before
        inside = peft_names.plain(name)
        module, _, field = inside.partition(".lora_")
        owner, _, kind = inside.rpartition(".")
        if f"lora_{field}" in _FIELDS and peft_names.site(module):
            held.sites.setdefault(module, {})[_FIELDS[f"lora_{field}"]] = value
        elif owner in saved and kind in _HEAD:
            held.head[_HEAD[kind]] = np.ascontiguousarray(value.T)
        elif learned and kind == "bias":
            held.biases[inside] = value
        else:
            raise CheckpointError(
                f"the tensor {name} in {folder} is not one of a LoRA on a ViT of timm or Hugging "
                f"Face; served are {peft_names.PREFIX}blocks.{{i}}."
                f"{{{','.join(peft_names.TIMM)}}}, their like at Hugging Face, the patch embedding "
                "and the head"
            )
    if learned and not held.biases:
        peft_config.refuse(folder / CONFIG, config, "bias", "but the folder holds no bias")
    return held


def _place(held: _Held, module: str) -> Site:
    """Our layer of a module; a CheckpointError unless its tensors are whole and as configured."""
    config, values = held.config, held.sites[module]
    rank = peft_config.rank(config, module)
    fields = {"a", "b", "magnitude"} if config.get("use_dora") else {"a", "b"}
    name = peft_names.PREFIX + module
    if missing := sorted({*fields} - {*values}):
        raise CheckpointError(f"{name}.{_PUBLISHED[missing[0]]} is missing in {held.folder}")
    if strange := sorted({*values} - {*fields}):
        raise CheckpointError(
            f"{name}.{_PUBLISHED[strange[0]]} in {held.folder} is of a DoRA, but use_dora is off"
        )
    site = peft_names.site(module)
    for field, axis in (("a", 0), ("b", 1)):
        shape = values[field].shape
        if len(shape) != (4 if site.path == "embed" else 2) or shape[axis] != rank:
            raise CheckpointError(
                f"{name}.{_PUBLISHED[field]} in {held.folder} is {shape}, but r is {rank}"
            )
    if not peft_config.targeted(config, module):
        wanted = config.get("target_modules")
        raise CheckpointError(f"target_modules {wanted!r} in {held.folder} do not name {module}")
    return site


def _padded(values: Mapping[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """A `r d_in` and B `d_out r` filled up to a rank with zeros; the product stays."""
    more = rank - len(values["a"])
    filled = {"a": np.pad(values["a"], ((0, more), (0, 0)))}
    filled["b"] = np.pad(values["b"], ((0, 0), (0, more)))
    return {**values, **filled} if more else dict(values)


def _changed(
    held: _Held, places: Mapping[str, Site], base: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Leaves of the base, as they become, that are changed without an adapter of ours."""
    folded = {module: site for module, site in places.items() if not site.target}
    if base is None and (folded or held.biases):
        what = next(iter((*folded, *held.biases)))
        raise CheckpointError(
            f"{held.folder} changes {what} of its base too; it is read with the base alone"
        )
    new: dict[str, np.ndarray] = {}

    def current(path: str, name: str) -> np.ndarray:
        if path not in new and path not in base:
            raise CheckpointError(f"the base has no {path}, which {name} in {held.folder} changes")
        return new.get(path, base.get(path))

    for module, site in folded.items():
        path = f"{site.path}/kernel"
        scale = peft_config.scale(held.config, module)
        new[path] = _folded(current(path, module), held.sites[module], scale, module)
    prefix = next(site.prefix for site in places.values() if site.target)
    for name, value in held.biases.items():
        found = peft_names.bias(name, prefix)
        if not found:
            raise CheckpointError(f"the tensor {name} in {held.folder} is no bias of a ViT")
        path, part, count = found
        parts = np.split(current(path, name), count)
        if parts[part].shape != value.shape:
            raise CheckpointError(
                f"{name} in {held.folder} is {value.shape}, the base's is {parts[part].shape}"
            )
        parts[part] = value.astype(parts[part].dtype)
        new[path] = np.concatenate(parts)
    return new


def _folded(
    kernel: np.ndarray, values: Mapping[str, np.ndarray], scale: float, module: str
) -> np.ndarray:
    """A kernel `… d_in d_out` with a LoRA or DoRA in it, in the kernel's dtype."""
    a, b = (np.asarray(values[field], np.float32) for field in ("a", "b"))
    if a.ndim == 4:  # a convolution's, `r d_in h w` and `d_out r 1 1`
        a, b = a.transpose(0, 2, 3, 1).reshape(len(a), -1), b[:, :, 0, 0]
    flat = kernel.reshape(-1, kernel.shape[-1])
    if (a.shape[1], len(b)) != flat.shape:
        raise CheckpointError(
            f"{module} is {kernel.shape} in the base, which its LoRA does not fit"
        )
    direction = flat.astype(np.float32) + scale * (b @ a).T
    if "magnitude" in values:
        lengths = np.sqrt(np.square(direction).sum(0))
        direction *= np.asarray(values["magnitude"], np.float32).reshape(-1) / lengths
    return direction.reshape(kernel.shape).astype(kernel.dtype)


def write(
    folder: Path,
    method: str,
    settings: Mapping[str, Any],
    leaves: Mapping[str, np.ndarray],
    *,
    kernels: Mapping[str, np.ndarray] | None = None,
    base: str | None = None,
    rslora: bool = False,
) -> dict[str, Any]:
    """Writes a folder that peft loads on a timm ViT.

    q, k and v with factors of their own become one LoRA on the fused layer, of as many times the
    rank: A side by side, B in blocks, zero where there is no target. The sum is the same. The other
    layers then get as much rank, filled up with zeros.

    Args:
        folder: where to; it is made.
        method: "lora" or "dora".
        settings: of the method.
        leaves: its leaves by path within the backbone, and those of a linear head, if any.
        kernels: kernels of the base by path: a DoRA of q, k and v apart needs their lengths.
        base: name of the base weights.
        rslora: keep the scale as alpha / sqrt(r).

    Returns:
        The config.

    Raises:
        ConfigError: for a method or a leaf that peft's LoRA does not have.
    """
    if method not in METHODS:
        raise ConfigError(f"peft has no {method!r} of ours; it has {' and '.join(METHODS)}")
    parts = max(1, sum(t in _SPLIT for t in settings["targets"]))
    rank = parts * settings["rank"]
    sites: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    tensors = {}
    heads = {ours: f"head.{name}" for name, ours in _HEAD.items()}
    for path, value in leaves.items():
        if found := _PATH.fullmatch(path):
            branch, layer, target, field = found.groups()
            sites.setdefault(f"{branch}/{layer}", {}).setdefault(target, {})[field] = value
        elif path in heads:
            tensors[peft_names.PREFIX + heads[path]] = np.ascontiguousarray(np.asarray(value).T)
        else:
            raise ConfigError(f"peft's LoRA has no place for {path!r}")
    head = bool(tensors)
    for site, targets in sites.items():
        fused = _fused(site, targets, rank, method == "dora", kernels or {})
        for name, field in _FIELDS.items():
            if field in fused:
                tensors[f"{peft_names.PREFIX}{site.replace('/', '.')}.{name}"] = fused[field]
    layers = {site.split("/", 2)[2].replace("/", ".") for site in sites}
    targets = [layer for layer in peft_names.TIMM if layer in layers]
    if settings.get("layers"):  # of the last blocks alone, by their whole names
        targets = [site.replace("/", ".") for site in sites]
    alpha = settings["scale"] * (math.sqrt(rank) if rslora else rank)
    near = round(alpha)
    config = {
        "peft_type": "LORA",
        "auto_mapping": {
            "base_model_class": "VisionTransformer",
            "parent_library": "timm.models.vision_transformer",
        },
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": near if math.isclose(alpha, near, rel_tol=1e-12) else alpha,
        "lora_dropout": settings.get("dropout", 0.0),
        "modules_to_save": ["head"] if head else None,
        "r": rank,
        "target_modules": targets,
        "task_type": None,
        "use_dora": method == "dora",
        "use_rslora": rslora,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.write_tensors(folder / TENSORS, tensors, {"format": "pt"})
    files.write_json(folder / CONFIG, config)
    return config


def _fused(
    site: str,
    targets: dict[str, dict[str, np.ndarray]],
    rank: int,
    lengths: bool,
    kernels: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """A `r d_in`, B `d_out r` and lengths `d_out` of a layer, from those of its targets."""
    first = next(iter(targets.values()))
    (dim_in, own), width = first["a"].shape, first["b"].shape[1]
    slices = {t: "qkv".index(t) if t in _SPLIT else 0 for t in targets}
    split = any(t in _SPLIT for t in targets)
    a = np.zeros((rank, dim_in), first["a"].dtype)
    b = np.zeros((width * (3 if split else 1), rank), first["b"].dtype)
    # In the order of the slices, whatever the order of the leaves.
    for number, target in enumerate(sorted(targets, key=slices.get)):
        rows = slice(number * own, (number + 1) * own)
        outs = slice(slices[target] * width, (slices[target] + 1) * width)
        a[rows] = np.asarray(targets[target]["a"]).T
        b[outs, rows] = np.asarray(targets[target]["b"]).T
    if not lengths:
        return {"a": a, "b": b}
    if len(targets) == (3 if split else 1):
        length = np.zeros(len(b), first["magnitude"].dtype)
    elif f"{site}/kernel" in kernels:
        kernel = np.asarray(kernels[f"{site}/kernel"], np.float32)
        length = np.sqrt(np.square(kernel).sum(0))
    else:
        raise ConfigError(
            f"a DoRA of {' and '.join(targets)} at {site} needs the base's kernels; give them"
        )
    for target, i in slices.items():
        length[i * width : (i + 1) * width] = targets[target]["magnitude"]
    return {"a": a, "b": b, "magnitude": length}
