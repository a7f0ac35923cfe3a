"""LoRA's published names: the PETL benchmark's q and v."""


def settings(meta):
    h = meta["hyperparameters"]
    return dict(rank=h["r"], targets=tuple(h["targets"]), scale=h["scaling"])


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {}
    for name, value in published.items():
        _, block, _, factor, _ = name.split(".")
        _, matrix, target = factor.split("_")
        found[f"blocks/{block}/attn/qkv/adapter/{target}/{matrix}"] = value.T
    return found
