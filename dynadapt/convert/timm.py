"""timm's side of a merged run: the model that answers alike, as a config.json or as a call.

https://huggingface.co/docs/timm/models has the names of its models.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynadapt.convert.merged import Merged, Preprocessing

CONFIG, TENSORS = "config.json", "model.safetensors"

POOLS = {"cls": "token", "mean": "avg", "max": "max", "": ""}
# Norm epsilons that timm's classes have by themselves.
EPSILON = {"vit": 1e-6, "swin": 1e-5, "sam": 1e-5}

_VIT = dict(img_size=224, patch_size=16, mlp_ratio=4.0)
_SWIN = dict(img_size=224, patch_size=4, window_size=7, mlp_ratio=4.0)
_SAM = dict(img_size=1024, patch_size=16, window_size=14, mlp_ratio=4.0, neck_chans=256)
_SWIGLU = "vit_giant_patch14_dinov2"
# Registered models and the arguments that they set; all else is given beside them.
_MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "vit": {
        "vit_base_patch16_224": _VIT | dict(embed_dim=768, depth=12, num_heads=12),
        "vit_tiny_patch16_224": _VIT | dict(embed_dim=192, depth=12, num_heads=3),
        "vit_small_patch16_224": _VIT | dict(embed_dim=384, depth=12, num_heads=6),
        "vit_large_patch16_224": _VIT | dict(embed_dim=1024, depth=24, num_heads=16),
        "vit_huge_patch14_224": _VIT | dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
    },
    "swin": {
        f"swin_{name}_patch4_window7_224": _SWIN | dict(embed_dim=d, depths=depths, num_heads=heads)
        for name, d, depths, heads in (
            ("tiny", 96, [2, 2, 6, 2], [3, 6, 12, 24]),
            ("small", 96, [2, 2, 18, 2], [3, 6, 12, 24]),
            ("base", 128, [2, 2, 18, 2], [4, 8, 16, 32]),
            ("large", 192, [2, 2, 18, 2], [6, 12, 24, 48]),
        )
    },
    "sam": {
        f"samvit_{name}_patch16": _SAM
        | dict(embed_dim=d, depth=depth, num_heads=heads, global_attn_indexes=whole)
        for name, d, depth, heads, whole in (
            ("base", 768, 12, 12, [2, 5, 8, 11]),
            ("large", 1024, 24, 16, [5, 11, 17, 23]),
            ("huge", 1280, 32, 16, [7, 15, 23, 31]),
        )
    },
}


def model(merged: Merged) -> tuple[str, dict[str, Any]]:
    """The name of a registered model and the arguments with which it answers alike."""
    family, config = merged.found.family, merged.backbone.config
    wanted = _sizes(family, config)
    if getattr(config, "gated", False):
        # Its MLP, two halves of which one gates the other, can't be told by an argument.
        name, given = _SWIGLU, {}
    else:
        known = _MODELS[family]
        name = min(known, key=lambda n: sum(known[n].get(k) != v for k, v in wanted.items()))
        given = known[name]
    arguments = {k: v for k, v in wanted.items() if k not in given or given[k] != v}
    if merged.pool:
        arguments["global_pool"] = POOLS[merged.pool]
    if family == "vit":
        if not merged.pool:
            arguments["global_pool"] = "token" if config.class_token else "avg"
        arguments["fc_norm"] = "head/norm/scale" in merged.found.head
        if arguments["fc_norm"]:
            arguments.pop("final_norm", None)
    return name, arguments


def _sizes(family: str, c: Any) -> dict[str, Any]:
    """Arguments of timm's class that a backbone's config says."""
    sizes = dict(img_size=c.image_size, patch_size=c.patch, embed_dim=c.dim)
    if family == "swin":
        sizes |= dict(depths=list(c.depths), num_heads=list(c.heads), window_size=c.window)
        return sizes | dict(mlp_ratio=c.mlp_ratio)
    sizes |= dict(depth=c.depth, num_heads=c.heads)
    if family == "sam":
        sizes |= dict(window_size=c.window, global_attn_indexes=sorted(c.whole))
        return sizes | dict(neck_chans=c.neck, mlp_ratio=_ratio(round(c.dim * c.mlp_ratio), c.dim))
    hidden = round(c.dim * c.mlp_ratio)
    sizes["mlp_ratio"] = _ratio(2 * hidden if c.gated else hidden, c.dim)
    if c.layer_scale:
        sizes["init_values"] = c.layer_scale
    if c.registers:
        sizes["reg_tokens"] = c.registers
    if not c.class_token:
        sizes["class_token"] = False
    if _prefix(c) and c.positioned == 0 or 0 < _positioned(c) < _prefix(c):
        sizes["no_embed_class"] = True
    if c.act != "gelu" and not c.gated:
        sizes["act_layer"] = c.act
    if not c.final_norm:
        sizes["final_norm"] = False
    return sizes


def _prefix(c: Any) -> int:
    return int(c.class_token) + c.registers


def _positioned(c: Any) -> int:
    return int(c.class_token) if c.positioned is None else c.positioned


def _ratio(hidden: int, dim: int) -> float:
    """A ratio from which `int(dim * ratio)` is `hidden`."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim


def tensors(given: Mapping[str, np.ndarray], config: Any) -> dict[str, np.ndarray]:
    """A ViT's tensors as `model` takes them, from those with timm's names.

    timm adds positions to all leading tokens or to none: those of some are added here. A
    distillation token is one more register for it.
    """
    made = {("reg_token" if k == "dist_token" else k): v for k, v in given.items()}
    count, leading = _positioned(config), ("cls_token", "reg_token")
    if not 0 < count < _prefix(config):
        return made
    made["pos_embed"], first = made["pos_embed"][:, count:], made["pos_embed"][:, :count]
    for name in leading:
        if name in made and first.shape[1]:
            now = min(made[name].shape[1], first.shape[1])
            value = np.array(made[name])
            value[:, :now] += first[:, :now]
            made[name], first = value, first[:, now:]
    return made


def unlike(family: str, c: Any) -> str:
    """Why no model of timm answers like a backbone, as a sentence; "" where one does."""
    if family != "swin":
        return ""
    sides = [-(-c.image_size // (c.patch * 2**i)) for i in range(len(c.depths))]
    if c.small != "built" and min(sides) <= c.window:
        return "timm shrinks the windows of stages that fit into one, and this Swin does not"
    if c.pad != "shift_then_pad" and any(s > c.window and s % c.window for s in sides):
        return "timm shifts maps that are no multiple of the window before it pads, this Swin after"
    return ""


def epsilon(family: str, config: Any) -> float | None:
    """The norms' epsilon, where it is not the one that timm's class has."""
    return None if config.epsilon == EPSILON[family] else config.epsilon


def create(merged: Merged) -> str:
    """The Python that builds the model."""
    name, arguments = model(merged)
    given = [f"num_classes={_classes(merged)}", *(f"{k}={v!r}" for k, v in arguments.items())]
    if (own := epsilon(merged.found.family, merged.backbone.config)) is not None:
        given.append(f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={own!r})")
    return f"timm.create_model({name!r}, {', '.join(given)})"


def call(merged: Merged, file: str) -> str:
    """The Python that builds the model and loads a file of weights into it."""
    load = f"model.load_state_dict(safetensors.torch.load_file({file!r}))"
    return f"model = {create(merged)}.eval(); {load}"


def card(merged: Merged) -> dict[str, Any]:
    """The config.json that `timm.create_model("local-dir:…", pretrained=True)` reads."""
    name, arguments = model(merged)
    count, family = _classes(merged), merged.found.family
    pretrained = {
        "input_size": [3, merged.backbone.image_size, merged.backbone.image_size],
        "fixed_input_size": True,
        "num_classes": count,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head" if family == "vit" else "head.fc",
    }
    if merged.preprocessing:
        pretrained |= _preprocessing(merged.preprocessing)
    if merged.classes:
        pretrained["label_names"] = list(merged.classes)
    pool = {k: v for k, v in arguments.items() if k == "global_pool"}
    return {
        "architecture": name,
        "num_classes": count,
        "num_features": merged.backbone.dims[-1],
        **pool,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }


def _preprocessing(given: Preprocessing) -> dict[str, Any]:
    height, width = given.size
    return {
        "input_size": [3, height, width],
        "mean": list(given.mean),
        "std": list(given.std),
        "interpolation": given.method,
        "crop_pct": height / given.short if given.short else 1.0,
        "crop_mode": "center" if given.short else "squash",
    }


def _classes(merged: Merged) -> int:
    head = merged.found.head.get("head/linear/bias")
    return 0 if head is None else len(head)
