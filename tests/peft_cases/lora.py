"""LoRA's published names: peft's on timm's layers, and the PETL benchmark's q and v."""

import math

FIELDS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_magnitude_vector": "magnitude",
}


def method(meta):
    return "dora" if meta["hyperparameters"].get("use_dora") else "lora"


def settings(meta):
    h = meta["hyperparameters"]
    if "targets" in h:
        return dict(rank=h["r"], targets=tuple(h["targets"]), scale=h["scaling"])
    root = math.sqrt(h["r"]) if h.get("use_rslora") else h["r"]
    names = ("qkv", "proj", "fc1", "fc2")
    present = [n for n in names if any(f".{n}.lora_A." in key for key in meta["expected"])]
    return dict(rank=h["r"], targets=tuple(present), scale=h["lora_alpha"] / root)


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {}
    for name, value in published.items():
        parts = name.removeprefix("base_model.model.").split(".")
        _, block, branch, layer = parts[:4]
        if layer.startswith("linear_"):
            _, matrix, target = layer.split("_")
            found[f"blocks/{block}/attn/qkv/adapter/{target}/{matrix}"] = value.T
        else:
            leaf = FIELDS[".".join(parts[4:])]
            found[f"blocks/{block}/{branch}/{layer}/adapter/{layer}/{leaf}"] = value.T
    return found
