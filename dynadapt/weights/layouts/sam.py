"""Where the publishers of SAM keep the image encoder's tensors: Meta, Hugging Face, timm."""

from collections.abc import Mapping
from typing import Any

from dynadapt.weights import cards
from dynadapt.weights.layouts.vit import BLOCK, FC, HEADS, embed, linear, norm
from dynadapt.weights.tables import CONV, POINT, Layout, Shapes, TensorRow, count

_META = (
    *embed("patch_embed.proj"),
    TensorRow("pos_embed", "position"),
    *BLOCK,
    TensorRow("blocks.{i}.attn.rel_pos_h", "blocks/{i}/attn/rows"),
    TensorRow("blocks.{i}.attn.rel_pos_w", "blocks/{i}/attn/columns"),
    TensorRow("neck.0.weight", "neck/reduce/kernel", POINT),
    *norm("neck.1", "neck/norm1"),
    TensorRow("neck.2.weight", "neck/conv/kernel", CONV),
    *norm("neck.3", "neck/norm2"),
)
_LIN = (
    *linear("blocks.{i}.mlp.lin1", "blocks/{i}/mlp/fc1"),
    *linear("blocks.{i}.mlp.lin2", "blocks/{i}/mlp/fc2"),
)
_HF = (
    *embed("patch_embed.projection"),
    TensorRow("pos_embed", "position"),
    *norm("layers.{i}.layer_norm1", "blocks/{i}/attn/norm"),
    *linear("layers.{i}.attn.qkv", "blocks/{i}/attn/qkv"),
    *linear("layers.{i}.attn.proj", "blocks/{i}/attn/proj"),
    TensorRow("layers.{i}.attn.rel_pos_h", "blocks/{i}/attn/rows"),
    TensorRow("layers.{i}.attn.rel_pos_w", "blocks/{i}/attn/columns"),
    *norm("layers.{i}.layer_norm2", "blocks/{i}/mlp/norm"),
    *linear("layers.{i}.mlp.lin1", "blocks/{i}/mlp/fc1"),
    *linear("layers.{i}.mlp.lin2", "blocks/{i}/mlp/fc2"),
    TensorRow("neck.conv1.weight", "neck/reduce/kernel", POINT),
    *norm("neck.layer_norm1", "neck/norm1"),
    TensorRow("neck.conv2.weight", "neck/conv/kernel", CONV),
    *norm("neck.layer_norm2", "neck/norm2"),
)


def _config(embedding: str, blocks: str, fc1: str, neck: str, epsilon: float = 1e-6) -> Any:
    """The config's function for a layout with these names."""

    def config(shapes: Shapes, card: Mapping[str, Any]) -> dict[str, Any]:
        dim, _, patch, _ = shapes[embedding]
        depth = count(shapes, rf"{blocks}\.(\d+)\.")
        lengths = [shapes[f"{blocks}.{i}.attn.rel_pos_h"][0] for i in range(depth)]
        rows, columns = shapes["pos_embed"][1:3]
        card = card.get("vision_config", card)
        fields = dict(
            patch=patch,
            dim=dim,
            depth=depth,
            image_size=min(rows, columns) * patch,
            grid=() if rows == columns else (rows, columns),
            heads=dim // shapes[f"{blocks}.0.attn.rel_pos_h"][1] or HEADS.get(dim),
            window=(min(lengths) + 1) // 2,
            # A block whose table spans the map is global.
            whole=tuple(i for i, n in enumerate(lengths) if n == 2 * rows - 1),
            mlp_ratio=shapes[f"{blocks}.0.mlp.{fc1}.weight"][0] / dim,
            neck=shapes.get(neck, (0,))[0],
            epsilon=epsilon,
            act="gelu",
        )
        return fields | cards.act(card) | cards.told(card, epsilon="layer_norm_eps")

    return config


_ANCHOR = "blocks.0.attn.rel_pos_h"

LAYOUTS = (
    Layout(
        *("meta", "sam", _ANCHOR, (*_META, *_LIN)),
        _config("patch_embed.proj.weight", "blocks", "lin1", "neck.0.weight"),
        marks=(r"blocks\.0\.mlp\.lin1\.weight",),
        before=("image_encoder.",) * 2,
    ),
    Layout(
        *("timm", "sam", _ANCHOR, (*_META, *FC, *linear("head.fc", "head/linear"))),
        # timm runs the same weights with another epsilon than Meta.
        _config("patch_embed.proj.weight", "blocks", "fc1", "neck.0.weight", epsilon=1e-5),
        marks=(r"blocks\.0\.mlp\.fc1\.weight",),
    ),
    Layout(
        *("hf", "sam", "layers.0.attn.rel_pos_h", _HF),
        _config("patch_embed.projection.weight", "layers", "lin1", "neck.conv1.weight"),
        before=("vision_encoder.",) * 2,
    ),
)
