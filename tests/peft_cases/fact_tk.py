"""FacT's published names, in its Tucker form: twelve columns of P are a block's."""

COLUMNS = {"attn/qkv": (0, 3), "attn/proj": (3, 4), "mlp/fc1": (4, 8), "mlp/fc2": (8, 12)}


def method(meta):
    return "fact"


def settings(meta):
    h = meta["hyperparameters"]
    return dict(form="tk", rank=h["rank"], scale=h["scale"], dropout=0.0)


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {
        "adapter/module/u": published["FacTu.weight"].T,
        "adapter/module/v": published["FacTv.weight"].T,
        "adapter/module/core": published["FacTc"],
    }
    columns = published["FacTp"]
    for block in range(columns.shape[1] // 12):
        for layer, (first, last) in COLUMNS.items():
            at = slice(12 * block + first, 12 * block + last)
            found[f"blocks/{block}/{layer}/adapter/p"] = columns[:, at]
    return found
