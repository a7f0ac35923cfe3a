"""SSF's published names: a number for each of a module's pairs of scale and shift."""

SITES = {
    "": ("norm",),
    "patch_embed": ("embed",),
    "block": ("attn/norm", "mlp/norm"),
    "attn": ("attn/qkv", "attn/proj"),
    "mlp": ("mlp/fc1", "mlp/fc2"),
}


def settings(meta):
    return {}


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {}
    for name, value in published.items():
        *module, leaf = name.split(".")
        _, kind, number = leaf.split("_")
        prefix, owner = "", "".join(module[:1])
        if module[:1] == ["blocks"]:
            prefix, owner = f"blocks/{module[1]}/", "".join(module[2:]) or "block"
        site = SITES[owner][int(number) - 1]
        found[f"{prefix}{site}/adapter/{kind}"] = value
    return found
