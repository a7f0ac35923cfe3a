"""AdaptFormer's published names."""


def settings(meta):
    h = meta["hyperparameters"]
    return dict(rank=h["bottleneck"], scale=float(h["scalar"]), dropout=0.0)


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {}
    for name, value in published.items():
        _, block, _, layer, kind = name.split(".")
        path = f"blocks/{block}/mlp/adapter/{layer.removesuffix('_proj')}"
        found[f"{path}/{'kernel' if kind == 'weight' else 'bias'}"] = value.T
    return found
