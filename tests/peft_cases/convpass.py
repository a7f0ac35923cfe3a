"""Convpass' published names."""


def settings(meta):
    h = meta["hyperparameters"]
    placement = {"convpass": "both", "convpass_attn": "attn"}[h["placement"]]
    return dict(rank=h["bottleneck"], scale=h["scale"], placement=placement, dropout=0.0)


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {}
    for name, value in published.items():
        _, block, branch, layer, kind = name.split(".")
        branch, layer = branch.removeprefix("adapter_"), layer.removeprefix("adapter_")
        path = f"blocks/{block}/{branch}/adapter/{layer}"
        if kind == "weight":
            found[f"{path}/kernel"] = value.transpose(2, 3, 1, 0) if layer == "conv" else value.T
        else:
            found[f"{path}/bias"] = value
    return found
