"""Where Point-MAE's code keeps its tensors, pre-trained (below `MAE_encoder`) and fine-tuned."""

from collections.abc import Mapping
from typing import Any

from dynadapt.weights.layouts.vit import HEADS, linear, norm
from dynadapt.weights.tables import POINT1D, Layout, Shapes, TensorRow, count


def _conv(source: str, ours: str) -> tuple[TensorRow, TensorRow]:
    return (
        TensorRow(f"{source}.weight", f"{ours}/kernel", POINT1D),
        TensorRow(f"{source}.bias", f"{ours}/bias"),
    )


def _batch_norm(source: str, ours: str) -> tuple[TensorRow, ...]:
    statistics = (("running_mean", "mean"), ("running_var", "var"))
    return (
        *norm(source, ours),
        *(TensorRow(f"{source}.{theirs}", f"{ours}/{own}") for theirs, own in statistics),
    )


_BLOCK, _OURS = "blocks.blocks.{i}", "blocks/{i}"
_ROWS = (
    *_conv("encoder.first_conv.0", "embed/conv1"),
    *_batch_norm("encoder.first_conv.1", "embed/norm1"),
    *_conv("encoder.first_conv.3", "embed/conv2"),
    *_conv("encoder.second_conv.0", "embed/conv3"),
    *_batch_norm("encoder.second_conv.1", "embed/norm2"),
    *_conv("encoder.second_conv.3", "embed/conv4"),
    *linear("pos_embed.0", "position/fc1"),
    *linear("pos_embed.2", "position/fc2"),
    TensorRow("cls_token", "class_token"),
    TensorRow("cls_pos", "class_position"),
    *norm(f"{_BLOCK}.norm1", f"{_OURS}/attn/norm"),
    *linear(f"{_BLOCK}.attn.qkv", f"{_OURS}/attn/qkv"),
    *linear(f"{_BLOCK}.attn.proj", f"{_OURS}/attn/proj"),
    *norm(f"{_BLOCK}.norm2", f"{_OURS}/mlp/norm"),
    *linear(f"{_BLOCK}.mlp.fc1", f"{_OURS}/mlp/fc1"),
    *linear(f"{_BLOCK}.mlp.fc2", f"{_OURS}/mlp/fc2"),
    *norm("norm", "norm"),
)


def _config(shapes: Shapes, card: Mapping[str, Any]) -> dict[str, Any]:
    # The number of groups and their size are in no tensor: the variants' are the published ones.
    dim = shapes["encoder.second_conv.3.weight"][0]
    return dict(
        dim=dim,
        depth=count(shapes, r"blocks\.blocks\.(\d+)\."),
        heads=HEADS.get(dim),
        embed=shapes["encoder.first_conv.0.weight"][0],
        mlp_ratio=shapes["blocks.blocks.0.mlp.fc1.weight"][0] / dim,
        class_token="cls_token" in shapes,
        qkv_bias="blocks.blocks.0.attn.qkv.bias" in shapes,
        epsilon=1e-5,
        act="gelu",
    )


LAYOUTS = (
    Layout(
        *("point_mae", "point_mae", "encoder.first_conv.0.weight", _ROWS, _config),
        extras=(r".*\.num_batches_tracked", r"cls_head_finetune\..*", r"mask_token"),
    ),
)
