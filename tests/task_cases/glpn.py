"""GLPDepth's decoder in transformers: settings, names, and what its cases expect."""

import re

import jax

CONV = dict(weight="kernel", bias="bias")
NORM = dict(weight="scale", bias="bias", running_mean="mean", running_var="var")
LAYERS = (
    (r"head\.head\.0", "conv", CONV),
    (r"head\.head\.2", "out", CONV),
    (r"decoder\.stages\.(\d+)\.convolution", "project/{projected}", CONV),
    (r"decoder\.stages\.(\d+)\.fusion\.\w+([12])\.0", "select/{level}/conv{1}/conv", CONV),
    (r"decoder\.stages\.(\d+)\.fusion\.\w+([12])\.1", "select/{level}/conv{1}/norm", NORM),
    (r"decoder\.stages\.(\d+)\.fusion\.\w+3", "select/{level}/conv3", CONV),
)


def head(meta):
    """Our head's name, the widths of its levels, its outputs and settings."""
    config = meta["config"]
    return "glpdepth", config["hidden_sizes"], 1, dict(channels=config["decoder_hidden_size"])


def maps(meta):
    """The names of the inputs that the head takes."""
    return [f"x{i}" for i in range(len(meta["config"]["hidden_sizes"]))]


def path(name, meta):
    """Our path of a tensor."""
    dims, channels = meta["config"]["hidden_sizes"], meta["config"]["decoder_hidden_size"]
    layer, leaf = name.rsplit(".", 1)
    for pattern, ours, leaves in LAYERS:
        if found := re.fullmatch(pattern, layer):
            # Their stages go from coarse to fine; a level of the decoder's width has no layer.
            level = len(dims) - 1 - int((found.groups() or "0")[0])
            projected = sum(d != channels for d in dims[:level])
            ours = ours.format(*found.groups(), level=level, projected=projected)
            return f"{ours}/{leaves[leaf]}"
    raise KeyError(name)


def found(meta, run, given, inputs):
    """The depth in metres."""
    logits, _ = jax.jit(run, static_argnums=1)(given, False)
    return {"depth": meta["config"]["max_depth"] * jax.nn.sigmoid(logits[..., 0])}
