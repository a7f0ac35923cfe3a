"""Where publishers of Swin keep their tensors: Microsoft, detection code, Hugging Face, timm."""

import math
from collections.abc import Mapping
from typing import Any

from dynadapt.errors import CheckpointError
from dynadapt.weights import cards
from dynadapt.weights.layouts.vit import embed, linear, norm, qkv
from dynadapt.weights.tables import COPY, LINEAR, How, Layout, Shapes, TensorRow, count

# OpenMMLab's merging unfolds: its inputs are ordered channel, row, column; ours column, row,
# channel.
UNFOLD = How(
    lambda x: x[0].reshape(len(x[0]), -1, 2, 2).transpose(3, 2, 1, 0).reshape(-1, len(x[0])),
    lambda x, _: [x.reshape(2, 2, -1, x.shape[-1]).transpose(3, 2, 1, 0).reshape(x.shape[-1], -1)],
)
# The same of its norm, which stands before the reduction.
UNFOLD_NORM = How(
    lambda x: x[0].reshape(-1, 2, 2).transpose(2, 1, 0).reshape(-1),
    lambda x, _: [x.reshape(2, 2, -1).transpose(2, 1, 0).reshape(-1)],
)


def _block(at: str, names: Mapping[str, str]) -> tuple[TensorRow, ...]:
    """Rows of one block whose parts have these names."""
    ours = "stages/{i}/blocks/{j}"
    table = TensorRow(f"{at}.{names['table']}", f"{ours}/attn/bias_table")
    return (
        *norm(f"{at}.{names['norm1']}", f"{ours}/attn/norm"),
        *norm(f"{at}.{names['norm2']}", f"{ours}/mlp/norm"),
        *linear(f"{at}.{names['proj']}", f"{ours}/attn/proj"),
        *linear(f"{at}.{names['fc1']}", f"{ours}/mlp/fc1"),
        *linear(f"{at}.{names['fc2']}", f"{ours}/mlp/fc2"),
        table,
    )


def _merge(at: str, how: How = LINEAR, how_norm: How = COPY) -> tuple[TensorRow, ...]:
    return (
        TensorRow(f"{at}.norm.weight", "stages/{i}/merge/norm/scale", how_norm),
        TensorRow(f"{at}.norm.bias", "stages/{i}/merge/norm/bias", how_norm),
        TensorRow(f"{at}.reduction.weight", "stages/{i}/merge/reduction/kernel", how),
    )


_BLOCK = "layers.{i}.blocks.{j}"
_LAYERS = (
    *embed("patch_embed.proj"),
    *norm("patch_embed.norm", "embed/norm"),
    *_block(
        _BLOCK,
        dict(norm1="norm1", norm2="norm2", proj="attn.proj", fc1="mlp.fc1", fc2="mlp.fc2")
        | dict(table="attn.relative_position_bias_table"),
    ),
    *linear(f"{_BLOCK}.attn.qkv", "stages/{i}/blocks/{j}/attn/qkv"),
)
_HF_BLOCK = "encoder.layers.{i}.blocks.{j}"
_HF_TABLE = "attention.self.relative_position_bias_table"
_HF_ENDS = (
    *embed("embeddings.patch_embeddings.projection"),
    *norm("embeddings.norm", "embed/norm"),
    *_merge("encoder.layers.{i}.downsample"),
    *norm("layernorm", "norm"),
    *linear("^classifier", "head/linear"),
)
_HF_NORMS = dict(norm1="layernorm_before", norm2="layernorm_after")
_HF = (
    *_HF_ENDS,
    *_block(
        _HF_BLOCK,
        dict(_HF_NORMS, proj="attention.output.dense", table=_HF_TABLE)
        | dict(fc1="intermediate.dense", fc2="output.dense"),
    ),
    *qkv(
        f"{_HF_BLOCK}.attention.self",
        ("query", "key", "value"),
        "stages/{i}/blocks/{j}/attn/qkv",
    ),
)
# The names of a live model since Transformers 5.
_LIVE_TABLE = "attention.relative_position_bias.relative_position_bias_table"
_LIVE = (
    *_HF_ENDS,
    *_block(
        _HF_BLOCK,
        dict(_HF_NORMS, proj="attention.o_proj", table=_LIVE_TABLE)
        | dict(fc1="mlp.fc1", fc2="mlp.fc2"),
    ),
    *qkv(
        f"{_HF_BLOCK}.attention",
        ("q_proj", "k_proj", "v_proj"),
        "stages/{i}/blocks/{j}/attn/qkv",
    ),
)
_MM_BLOCK = "stages.{i}.blocks.{j}"
_MM = (
    *embed("patch_embed.projection"),
    *norm("patch_embed.norm", "embed/norm"),
    *_block(
        _MM_BLOCK,
        dict(norm1="norm1", norm2="norm2", proj="attn.w_msa.proj", fc1="ffn.layers.0.0")
        | dict(fc2="ffn.layers.1", table="attn.w_msa.relative_position_bias_table"),
    ),
    *linear(f"{_MM_BLOCK}.attn.w_msa.qkv", "stages/{i}/blocks/{j}/attn/qkv"),
    *_merge("stages.{i}.downsample", UNFOLD, UNFOLD_NORM),
    *norm("norm{i}", "norms/{i}"),
)


def _config(embedding: str, stage: str, block: str, table: str, fc1: str) -> Any:
    """The config's function for a layout with these names."""

    def config(shapes: Shapes, card: Mapping[str, Any]) -> dict[str, Any]:
        dim, _, patch, _ = shapes[embedding]
        at = stage.replace(".", r"\.")
        depths = tuple(
            count(shapes, rf"{at}\.{i}\.blocks\.(\d+)\.")
            for i in range(count(shapes, rf"{at}\.(\d+)\.blocks"))
        )
        tables = [shapes[f"{stage}.{i}.blocks.0.{table}"] for i in range(len(depths))]
        window = max(_window(t[0]) for t in tables)
        fields = dict(
            patch=patch,
            dim=dim,
            depths=depths,
            heads=tuple(t[1] for t in tables),
            window=window,
            # Every published checkpoint ends in a stage of one window.
            image_size=window * patch * 2 ** (len(depths) - 1),
            mlp_ratio=shapes[f"{stage}.0.blocks.0.{fc1}.weight"][0] / dim,
            level_norms="norm0.weight" in shapes or "norm1.weight" in shapes,
            epsilon=1e-5,
            act="gelu",
        )
        fields |= cards.act(card) | cards.told(card, epsilon="layer_norm_eps")
        fields |= _rules(block, detection=fields["level_norms"])
        if size := cards.image_size(card):
            fields["image_size"] = min(size)
            if size[0] != size[1] and fields["small"] == "built":
                raise CheckpointError(
                    f"a Swin made for images of {size[0]} x {size[1]} is not served: its small "
                    "stages have windows that are not square"
                )
        return fields

    return config


def _window(offsets: int) -> int:
    """Side of the windows whose bias table has this many rows."""
    side = math.isqrt(offsets)
    if side * side != offsets:
        raise CheckpointError(f"a bias table of {offsets} rows is not of a square window")
    return (side + 1) // 2


def _rules(publisher: str, detection: bool) -> dict[str, str]:
    """Whose rule holds at the borders and in small stages."""
    if publisher == "timm":
        return dict(pad="shift_then_pad", small="built")
    if publisher == "hf":
        return dict(pad="pad_then_shift", small="run")
    return dict(pad="pad_then_shift", small="never" if detection else "built")


_BUFFERS = (r".*\.relative_position_index", r".*\.attn_mask")
_ASSUMES = ("image_size",)
_HF_MORE = (*_BUFFERS, r"embeddings\.mask_token", r"pooler\..*")
_NAMES = ("attn.relative_position_bias_table", "mlp.fc1")
_ANCHOR = "layers.0.blocks.0.attn.relative_position_bias_table"
_MM_TABLE = "attn.w_msa.relative_position_bias_table"


def _one_norm(config: Any) -> bool:
    return not config.level_norms


LAYOUTS = (
    Layout(
        "microsoft",
        "swin",
        _ANCHOR,
        (*_LAYERS, *_merge("layers.{i}.downsample"), *norm("norm{i}", "norms/{i}")),
        _config("patch_embed.proj.weight", "layers", "microsoft", *_NAMES),
        serves=lambda c: c.level_norms,
        marks=(r"layers\.0\.downsample\.norm\.weight", r"norm[0-9]\.weight"),
        extras=_BUFFERS,
        assumes=_ASSUMES,
    ),
    Layout(
        "microsoft",
        "swin",
        _ANCHOR,
        (
            *(*_LAYERS, *_merge("layers.{i}.downsample")),
            *(*norm("norm", "norm"), *linear("head", "head/linear")),
        ),
        _config("patch_embed.proj.weight", "layers", "microsoft", *_NAMES),
        serves=_one_norm,
        marks=(r"layers\.0\.downsample\.norm\.weight",),
        extras=_BUFFERS,
        assumes=_ASSUMES,
    ),
    Layout(
        "timm",
        "swin",
        _ANCHOR,
        (
            *(*_LAYERS, *_merge("layers.{i+1}.downsample")),
            *(*norm("norm", "norm"), *linear("head.fc", "head/linear")),
        ),
        _config("patch_embed.proj.weight", "layers", "timm", *_NAMES),
        serves=_one_norm,
        extras=_BUFFERS,
        assumes=_ASSUMES,
    ),
    Layout(
        "hf",
        "swin",
        f"encoder.layers.0.blocks.0.{_HF_TABLE}",
        _HF,
        _config(
            "embeddings.patch_embeddings.projection.weight",
            *("encoder.layers", "hf", _HF_TABLE, "intermediate.dense"),
        ),
        serves=_one_norm,
        extras=_HF_MORE,
        assumes=_ASSUMES,
        before=("", "swin."),
    ),
    Layout(
        "hf",
        "swin",
        f"encoder.layers.0.blocks.0.{_LIVE_TABLE}",
        _LIVE,
        _config(
            "embeddings.patch_embeddings.projection.weight",
            *("encoder.layers", "hf", _LIVE_TABLE, "mlp.fc1"),
        ),
        serves=lambda config: False,
        extras=_HF_MORE,
        assumes=_ASSUMES,
    ),
    Layout(
        "openmmlab",
        "swin",
        f"stages.0.blocks.0.{_MM_TABLE}",
        _MM,
        _config("patch_embed.projection.weight", "stages", "mm", _MM_TABLE, "ffn.layers.0.0"),
        serves=lambda c: c.level_norms,
        extras=_BUFFERS,
        assumes=_ASSUMES,
        before=("backbone.",) * 2,
    ),
)
