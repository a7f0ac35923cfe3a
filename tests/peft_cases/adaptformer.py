"""AdaptFormer's published names."""

LAYERS = {"adapter_layer_norm_before": "norm", "down_proj": "down", "up_proj": "up"}


def settings(meta):
    h = meta["hyperparameters"]
    learned = h["scalar"] == "learnable_scalar"
    return dict(
        rank=h["bottleneck"],
        form=h["option"],
        scale=1.0 if learned else float(h["scalar"]),
        learn_scale=learned,
        norm=h["layernorm"] == "in",
        dropout=0.0,
    )


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {}
    for name, value in published.items():
        _, block, _, *layer = name.split(".")
        path = f"blocks/{block}/mlp/adapter"
        if layer == ["scale"]:
            found[f"{path}/scale"] = value.reshape(())
            continue
        ours, kind = LAYERS[layer[0]], layer[1]
        kind = {"weight": "scale" if ours == "norm" else "kernel", "bias": "bias"}[kind]
        found[f"{path}/{ours}/{kind}"] = value.T
    return found
