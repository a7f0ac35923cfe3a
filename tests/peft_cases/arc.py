"""ARC's published names; a block's scale is a row there."""

POSITIONS = {"att": ("attn", "qkv"), "mlp": ("mlp", "fc1")}


def settings(meta):
    return dict(rank=meta["hyperparameters"]["rank"], dropout=0.0)


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {}
    for name, value in published.items():
        if name.startswith("left_u_"):
            position, _ = POSITIONS[name.removeprefix("left_u_")]
            found[f"adapter/module/{position}_{len(value)}"] = value
        else:
            _, block, leaf = name.split(".")
            position, layer = POSITIONS[leaf[:3]]
            kind = "shift" if leaf.endswith("_bias") else "scale"
            found[f"blocks/{block}/{position}/{layer}/adapter/{kind}"] = value.reshape(-1)
    return found
