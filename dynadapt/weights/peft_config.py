"""The `adapter_config.json` of Hugging Face's peft: what is served, and what it says of a layer."""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynadapt.errors import CheckpointError

# Options whose value is read, or does not matter once the tensors are there.
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout", "target_modules")
_READ += ("bias", "modules_to_save", "init_lora_weights", "rank_pattern", "alpha_pattern")
_FREE = ("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type")
_FREE += ("peft_version", "exclude_modules", "layers_to_transform", "layers_pattern")
_FREE += ("corda_config", "eva_config", "loftq_config", "lora_ga_config", "ensure_weight_tying")
_FREE += ("megatron_config", "megatron_core", "qalora_group_size")
# Starts that leave the base weights as they were; with others the base is not the published one.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
BIASES = ("none", "all", "lora_only")
HEADS = ("head", "classifier")


def refuse(file: Path, config: Mapping[str, Any], name: str, why: str) -> None:
    """Raises a CheckpointError about one option."""
    raise CheckpointError(f"{file} has {name}={config.get(name)!r:.200}; {why}")


def check(file: Path, config: Any) -> None:
    """Raises a CheckpointError for the first option that is not served."""
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is not the config of an adapter")
    if config.get("peft_type") != "LORA":
        refuse(file, config, "peft_type", "only LORA is served")
    if not _is_rank(config.get("r")):
        refuse(file, config, "r", "it must be a whole number of at least 1")
    if not _is_number(config.get("lora_alpha")):
        refuse(file, config, "lora_alpha", "it must be a number")
    for name in ("use_dora", "use_rslora"):
        if not isinstance(config.get(name) or False, bool):
            refuse(file, config, name, "it must be true or false")
    if not _is_number(config.get("lora_dropout") or 0):
        refuse(file, config, "lora_dropout", "it must be a number")
    if not _are_names(config.get("target_modules") or []):
        refuse(file, config, "target_modules", "it must be a text or a list of them")
    if config.get("bias", "none") not in BIASES:
        refuse(file, config, "bias", f"it must be one of {', '.join(BIASES)}")
    saved = config.get("modules_to_save") or []
    if saved not in ([], *([head] for head in HEADS)):
        refuse(file, config, "modules_to_save", "only ['head'] or ['classifier'] is served")
    if config.get("init_lora_weights") not in _STARTS:
        why = "it changes the base weights; convert it with peft to a LoRA"
        refuse(file, config, "init_lora_weights", why)
    for name, fits in (("rank_pattern", _is_rank), ("alpha_pattern", _is_number)):
        values = config.get(name) or {}
        if not isinstance(values, dict) or not all(map(fits, values.values())):
            refuse(file, config, name, "it must be numbers by names of layers")
    for name, value in config.items():
        # What this list does not know may change the result, unless it is switched off.
        if name not in (*_READ, *_FREE) and value not in (None, False, "", [], {}):
            refuse(file, config, name, "this option is not served")


def rank(config: Mapping[str, Any], module: str) -> int:
    """The rank of a layer: that of the first pattern for its name, or the common one."""
    return _of_pattern(config.get("rank_pattern"), module, config["r"])


def scale(config: Mapping[str, Any], module: str) -> float:
    """alpha / r of a layer, or alpha / sqrt(r) for rank-stabilised LoRA."""
    alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    r = rank(config, module)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether a layer is adapted: a text is a pattern of whole names, a list of endings."""
    wanted = config.get("target_modules")
    if wanted is None or wanted == "all-linear":
        return True
    if isinstance(wanted, str):
        return _matches(wanted, module, "target_modules")
    return any(module == name or module.endswith(f".{name}") for name in wanted)


def _of_pattern(patterns: Mapping[str, Any] | None, module: str, common: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if _matches(rf"(.*\.)?({pattern})", module, "the pattern"):
            return value
    return common


def _matches(pattern: str, module: str, what: str) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error as error:
        raise CheckpointError(f"{what} {pattern!r} is no regular expression: {error}") from error


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and abs(value) <= sys.float_info.max  # nor is NaN


def _are_names(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list) and all(isinstance(name, str) for name in names)
