"""LoRA and DoRA as Hugging Face's peft keeps them, for ViTs with timm's names.

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
from dynadapt.weights import source

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
METHODS = ("lora", "dora")

_PREFIX = "base_model.model."
# timm's layers, in the order in which targets are named.
_LAYERS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_SPLIT = ("q", "k", "v")
_FIELDS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
_HEAD = {"head.weight": "head/linear/kernel", "head.bias": "head/linear/bias"}
_SITE = re.compile(rf"blocks\.(\d+)\.({'|'.join(map(re.escape, _LAYERS.values()))})")
_PATH = re.compile(r"(blocks/\d+/(?:attn|mlp))/(\w+)/adapter/(\w+)/(a|b|magnitude)")

# Options whose value is read, or does not matter once the tensors are there.
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout", "target_modules")
_READ += ("bias", "modules_to_save", "init_lora_weights")
_FREE = ("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type")
_FREE += ("peft_version", "exclude_modules", "layers_to_transform", "layers_pattern")
_FREE += ("corda_config", "eva_config", "loftq_config", "lora_ga_config", "ensure_weight_tying")
_FREE += ("megatron_config", "megatron_core", "qalora_group_size")
# Starts that leave the base weights as they were; with others the base is not the published one.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a folder holds.

    Attributes:
        method: "lora" or "dora".
        settings: of the method: rank, targets, scale, dropout.
        leaves: by path within the backbone, and `head/…` where the head was saved; in our
            orientation and the file's dtype.
    """

    method: str
    settings: dict[str, Any]
    leaves: dict[str, np.ndarray]


def is_folder(folder: Path) -> bool:
    """Whether there is a peft config in the folder."""
    return (folder / CONFIG).is_file()


def read(folder: Path) -> Adapter:
    """Reads a folder.

    Raises:
        CheckpointError: for files that are missing or damaged, an option that changes the adapter
            in a way that is not served, or names that timm's ViTs do not have.
    """
    config = files.read_json(folder / CONFIG)
    _check_options(folder, config)
    if not (folder / TENSORS).exists() and (folder / PICKLE).exists():
        raise CheckpointError(
            f"{folder} has {PICKLE}; save it as safetensors, with safe_serialization=True"
        )
    tensors = files.read_tensors(folder / TENSORS)
    if bad := source.not_finite(tensors):
        raise CheckpointError(f"the tensor {bad} in {folder} is not finite")
    saved = config.get("modules_to_save") or []
    leaves, sites = {}, {}
    for name, value in tensors.items():
        inside = name.removeprefix(_PREFIX)
        if saved and inside in _HEAD:
            leaves[_HEAD[inside]] = np.ascontiguousarray(value.T)
            continue
        site, _, field = inside.partition(".lora_")
        if name == inside or f"lora_{field}" not in _FIELDS or not _SITE.fullmatch(site):
            raise CheckpointError(
                f"the tensor {name} in {folder} is not one of a LoRA on a timm ViT; served are "
                f"{_PREFIX}blocks.{{i}}.{{{','.join(_LAYERS.values())}}}"
            )
        sites.setdefault(site, {})[_FIELDS[f"lora_{field}"]] = value
    _check_sites(folder, config, sites)
    for site, values in sites.items():
        for field, value in values.items():
            path = site.replace(".", "/")
            path = f"{path}/adapter/{path.rpartition('/')[2]}/{field}"
            leaves[path] = np.ascontiguousarray(value.T)
    rank = config["r"]
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    settings = dict(
        rank=rank,
        targets=tuple(t for t, layer in _LAYERS.items() if any(s.endswith(layer) for s in sites)),
        scale=config["lora_alpha"] / root,
        dropout=float(config.get("lora_dropout") or 0.0),
    )
    return Adapter("dora" if config.get("use_dora") else "lora", settings, leaves)


def _check_options(folder: Path, config: Any) -> None:
    """Raises a CheckpointError for the first option that is not served."""

    def refuse(name: str, why: str) -> None:
        raise CheckpointError(f"{folder / CONFIG} has {name}={config.get(name)!r}; {why}")

    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} is not the config of an adapter")
    if config.get("peft_type") != "LORA":
        refuse("peft_type", "only LORA is served")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        refuse("r", "it must be a whole number of at least 1")
    if not isinstance(config.get("lora_alpha"), int | float):
        refuse("lora_alpha", "it must be a number")
    if config.get("bias", "none") != "none":
        refuse("bias", "only 'none' is served")
    if list(config.get("modules_to_save") or []) not in ([], ["head"]):
        refuse("modules_to_save", "only ['head'] is served")
    if config.get("init_lora_weights") not in _STARTS:
        refuse("init_lora_weights", "it changes the base weights; convert it with peft to a LoRA")
    for name, value in config.items():
        # What this list does not know may change the result, unless it is switched off.
        if name not in (*_READ, *_FREE) and value not in (None, False, "", [], {}):
            refuse(name, "this option is not served")


def _check_sites(folder: Path, config: dict[str, Any], sites: dict[str, dict]) -> None:
    """Raises a CheckpointError unless the sites are whole and those that the config names."""
    if not sites:
        raise CheckpointError(f"{folder / TENSORS} holds no LoRA")
    wanted, rank = config.get("target_modules"), config["r"]
    fields = {"a", "b", "magnitude"} if config.get("use_dora") else {"a", "b"}
    published = {v: k for k, v in _FIELDS.items()}
    for site, values in sites.items():
        if missing := sorted({*fields} - {*values}):
            raise CheckpointError(f"{_PREFIX}{site}.{published[missing[0]]} is missing in {folder}")
        if strange := sorted({*values} - {*fields}):
            raise CheckpointError(
                f"{_PREFIX}{site}.{published[strange[0]]} in {folder} is of a DoRA, but "
                "use_dora is off"
            )
        for field, axis in (("a", 0), ("b", 1)):
            shape = values[field].shape
            if len(shape) != 2 or shape[axis] != rank:
                raise CheckpointError(
                    f"{_PREFIX}{site}.{published[field]} in {folder} is {shape}, but r is {rank}"
                )
        if not _targeted(site, wanted):
            raise CheckpointError(f"target_modules {wanted!r} in {folder} do not name {site}")


def _targeted(site: str, wanted: Any) -> bool:
    """Whether peft adapts the layer: a text is a pattern of whole names, a list of endings."""
    if wanted is None or wanted == "all-linear":
        return True
    if isinstance(wanted, str):
        try:
            return re.fullmatch(wanted, site) is not None
        except re.error as error:
            raise CheckpointError(
                f"target_modules {wanted!r} is no regular expression: {error}"
            ) from error
    return any(site == name or site.endswith(f".{name}") for name in wanted)


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
    heads = {ours: name for name, ours in _HEAD.items()}
    for path, value in leaves.items():
        if found := _PATH.fullmatch(path):
            branch, layer, target, field = found.groups()
            sites.setdefault(f"{branch}/{layer}", {}).setdefault(target, {})[field] = value
        elif path in heads:
            tensors[_PREFIX + heads[path]] = np.ascontiguousarray(np.asarray(value).T)
        else:
            raise ConfigError(f"peft's LoRA has no place for {path!r}")
    head = bool(tensors)
    for site, targets in sites.items():
        fused = _fused(site, targets, rank, method == "dora", kernels or {})
        for name, field in _FIELDS.items():
            if field in fused:
                tensors[f"{_PREFIX}{site.replace('/', '.')}.{name}"] = fused[field]
    layers = {site.split("/", 2)[2].replace("/", ".") for site in sites}
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
        "target_modules": [layer for layer in _LAYERS.values() if layer in layers],
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
