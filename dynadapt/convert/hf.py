"""Hugging Face's side of a merged run: class, config.json, preprocessor_config.json and head.

The classes are those of `transformers`; a head that none of them has is written beside the model.
"""

import dataclasses
from typing import Any

import numpy as np

from dynadapt import weights
from dynadapt.convert.merged import POOLED, Merged, Preprocessing
from dynadapt.errors import ConfigError

CONFIG, TENSORS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
HEAD = "head.safetensors"

# Model type: prefix of the classifier's class, class without and with classifier.
CLASSES = {
    "vit": ("vit.", "ViTModel", "ViTForImageClassification"),
    "dinov2": ("dinov2.", "Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": (
        "dinov2_with_registers.",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersForImageClassification",
    ),
    "swin": ("swin.", "SwinModel", "SwinForImageClassification"),
    "sam_vision_model": ("vision_encoder.", "SamVisionModel", ""),
}
ACTS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}
ACTS |= {"quick_gelu": "quick_gelu"}
# Pillow's numbers of filters.
FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
_OUTPUTS = {
    "cls": "model(pixel_values=x).last_hidden_state[:, 0]",
    "mean": "model(pixel_values=x).last_hidden_state[:, {first}:].mean(1)",
    "max": "model(pixel_values=x).last_hidden_state[:, {first}:].amax(1)",
}
_MAPS = {
    "mean": "model(pixel_values=x).last_hidden_state.mean((2, 3))",
    "max": "model(pixel_values=x).last_hidden_state.amax((2, 3))",
}


@dataclasses.dataclass(frozen=True)
class Written:
    """What goes into a folder.

    Attributes:
        kind: the model's type in `CLASSES`.
        found: the weights, with the head as the class has it, or without.
        head: `weight` `c d` and `bias` `c` of a head that the class can't have.
        config: the values of config.json.
    """

    kind: str
    found: weights.Checkpoint
    head: dict[str, np.ndarray]
    config: dict[str, Any]

    @property
    def prefix(self) -> str:
        """What stands before the names of the backbone."""
        prefix = CLASSES[self.kind][0]
        return prefix if self.found.head or self.kind == "sam_vision_model" else ""


def describe(merged: Merged) -> Written:
    """How Hugging Face has a backbone and its head.

    Raises:
        ConfigError: for a backbone that no class has, saying why.
    """
    family, c = merged.found.family, merged.backbone.config
    kind = _kind(family, c)
    if why := unlike(kind, c):
        raise ConfigError(f"no class of Hugging Face is like this backbone: {why}")
    inside, beside = _head(kind, merged)
    found = dataclasses.replace(merged.found, head=inside)
    name = CLASSES[kind][2 if inside else 1]
    config = {"architectures": [name], "model_type": kind, **_sizes(kind, merged)}
    config |= {"hidden_act": ACTS[c.act], "layer_norm_eps": c.epsilon, "num_channels": 3}
    config |= {"image_size": c.image_size, "patch_size": c.patch, "qkv_bias": True}
    config["torch_dtype"] = str(merged.found.values["embed/kernel"].dtype)
    if inside:
        labels = merged.classes or [f"LABEL_{i}" for i in range(len(inside["head/linear/bias"]))]
        config["id2label"] = {str(i): name for i, name in enumerate(labels)}
        config["label2id"] = {name: i for i, name in enumerate(labels)}
        if merged.classes:
            kind_of = "multi" if merged.multilabel else "single"
            config["problem_type"] = f"{kind_of}_label_classification"
    return Written(kind, found, beside, config)


def _kind(family: str, c: Any) -> str:
    if family == "vit" and c.layer_scale:
        return "dinov2_with_registers" if c.registers else "dinov2"
    return "sam_vision_model" if family == "sam" else family


def unlike(kind: str, c: Any) -> str:
    """Why the class of a model type can't be like a backbone, or ""."""
    if c.act not in ACTS:
        return f"it has no activation {c.act!r}"
    if kind == "sam_vision_model":
        return "" if c.neck else "its SAM has a neck"
    if kind == "swin":
        return _unlike_swin(c)
    if not c.class_token:
        return "its ViT has a class token"
    if not c.final_norm:
        return "its ViT ends in a norm"
    if c.positioned not in (None, 1):
        return "its class token has a position, and no other leading token has"
    if c.gated and round(c.dim * c.mlp_ratio) % 8:
        return "the width of its gated MLP is a multiple of 8"
    if kind != "vit" and _ratio(c) % 1:
        return "its MLP is a whole number of times as wide as its tokens"
    return ""


def _ratio(c: Any) -> float:
    # A gated MLP is two thirds as wide as the ratio says, rounded up to a multiple of 8.
    return round(c.dim * c.mlp_ratio) * (1.5 if c.gated else 1.0) / c.dim


def _unlike_swin(c: Any) -> str:
    sides = [-(-c.image_size // (c.patch * 2**i)) for i in range(len(c.depths))]
    if min(sides) < c.window or c.small == "never" and min(sides) == c.window:
        return "its Swin has no stage smaller than a window, nor shifts in one that fits"
    if c.pad != "pad_then_shift" and any(s % c.window for s in sides):
        return "its Swin pads before it shifts maps that are no multiple of the window"
    return ""


def _sizes(kind: str, merged: Merged) -> dict[str, Any]:
    """Fields of the configuration class that say sizes."""
    c = merged.backbone.config
    if kind == "swin":
        sizes = dict(embed_dim=c.dim, depths=list(c.depths), num_heads=list(c.heads))
        return sizes | dict(window_size=c.window, mlp_ratio=c.mlp_ratio, drop_path_rate=0.0)
    hidden = round(c.dim * c.mlp_ratio)
    sizes = dict(hidden_size=c.dim, num_hidden_layers=c.depth, num_attention_heads=c.heads)
    if kind == "sam_vision_model":
        sizes |= dict(output_channels=c.neck, window_size=c.window, mlp_dim=hidden)
        sizes |= dict(global_attn_indexes=sorted(c.whole), num_pos_feats=c.neck // 2)
        return sizes | dict(mlp_ratio=hidden / c.dim, use_abs_pos=True, use_rel_pos=True)
    if kind == "vit":
        return sizes | dict(intermediate_size=hidden)
    sizes |= dict(mlp_ratio=int(_ratio(c)), use_swiglu_ffn=c.gated, layerscale_value=c.layer_scale)
    return sizes | (dict(num_register_tokens=c.registers) if c.registers else {})


def rest(written: Written, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model's class has besides our backbone, of all that came along with it."""
    kept = {}
    if written.kind.startswith("dinov2"):
        name = f"{written.prefix}embeddings.mask_token"
        # It stands for patches that are hidden while pre-training, and nowhere else.
        kept[name] = given.get(name, np.zeros_like(written.found.values["class_token"][0]))
    if not written.found.head:
        kept |= {k: v for k, v in given.items() if k.startswith("pooler.")}
    return kept


def _head(kind: str, merged: Merged) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The head as the model's class has it, and the one that goes beside it; one is empty."""
    head, pool = merged.found.head, merged.pool
    if not head:
        return {}, {}
    kernel, bias = head["head/linear/kernel"], head["head/linear/bias"]
    if "head/norm/scale" in head:
        raise ConfigError("no class of Hugging Face has a norm after pooling, as this head has")
    own = {"vit": "cls", "swin": "mean"}.get(kind)
    if kind.startswith("dinov2") and pool != "max":
        if len(kernel) == merged.backbone.dim:
            # The class joins class token and mean of the patches; one half gets no weight.
            halves = [kernel, np.zeros_like(kernel)]
            kernel = np.concatenate(halves if pool == "cls" else halves[::-1])
        return {**head, "head/linear/kernel": kernel}, {}
    if pool == own:
        return dict(head), {}
    return {}, {"weight": np.ascontiguousarray(kernel.T), "bias": bias}


def call(written: Written, merged: Merged, folder: str) -> str:
    """The Python that loads a folder and, where the head is beside it, gives logits of `x`."""
    plain, full = CLASSES[written.kind][1:]
    name = full if written.found.head else plain
    options = ""
    if plain in ("ViTModel", "SwinModel") and name == plain:
        options = "" if "pooler.dense.weight" in merged.found.rest else ", add_pooling_layer=False"
    model = f"model = transformers.{name}.from_pretrained({folder!r}{options})"
    if not written.head:
        return model
    family = merged.found.family
    first = merged.backbone.prefix
    pooled = (_MAPS if family == "sam" else _OUTPUTS)[merged.pool].format(first=first)
    return (
        f"{model}; head = safetensors.torch.load_file({f'{folder}/{HEAD}'!r}); "
        f'logits = {pooled} @ head["weight"].T + head["bias"]'
    )


def note(written: Written, merged: Merged) -> str:
    """What the folder does not say, or ""."""
    if written.head:
        return (
            f"the head pools {POOLED[merged.pool]}, which no class of Hugging Face does for this "
            f"backbone: the model is written without it, and the head beside it, {HEAD}"
        )
    if written.kind == "dinov2_with_registers" and written.found.head and merged.pool == "mean":
        return "older releases of transformers take the registers into the mean and differ"
    return ""


def preprocessor(given: Preprocessing) -> dict[str, Any]:
    """The values of preprocessor_config.json."""
    height, width = given.size
    crop = {"height": height, "width": width}
    return {
        "image_processor_type": "BitImageProcessor" if given.short else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": given.short} if given.short else crop,
        "resample": FILTERS[given.method],
        **({"do_center_crop": True, "crop_size": crop} if given.short else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(given.mean),
        "image_std": list(given.std),
        "do_convert_rgb": True,
    }
