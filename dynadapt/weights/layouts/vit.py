"""Where the publishers of ViTs keep their tensors: timm, Meta, Google."""

import math
from collections.abc import Mapping
from typing import Any

from dynadapt.errors import CheckpointError
from dynadapt.weights import cards
from dynadapt.weights.tables import (
    CONV,
    HEADS_OUT,
    HEADS_QKV,
    HEADS_QKV_BIAS,
    LINEAR,
    QKV,
    QKV_BIAS,
    Layout,
    Shapes,
    TensorRow,
    count,
)

# Heads of the published widths, for files that do not say.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}


def linear(source: str, ours: str) -> tuple[TensorRow, TensorRow]:
    """Rows of a linear layer."""
    return (
        TensorRow(f"{source}.weight", f"{ours}/kernel", LINEAR),
        TensorRow(f"{source}.bias", f"{ours}/bias"),
    )


def norm(source: str, ours: str) -> tuple[TensorRow, TensorRow]:
    """Rows of a norm."""
    return TensorRow(f"{source}.weight", f"{ours}/scale"), TensorRow(
        f"{source}.bias", f"{ours}/bias"
    )


def embed(source: str) -> tuple[TensorRow, TensorRow]:
    """Rows of a patch embedding."""
    return TensorRow(f"{source}.weight", "embed/kernel", CONV), TensorRow(
        f"{source}.bias", "embed/bias"
    )


def qkv(source: str, names: tuple[str, str, str], ours: str) -> tuple[TensorRow, TensorRow]:
    """Rows of three linear layers that are one of ours."""
    return (
        TensorRow(tuple(f"{source}.{n}.weight" for n in names), f"{ours}/kernel", QKV),
        TensorRow(tuple(f"{source}.{n}.bias" for n in names), f"{ours}/bias", QKV_BIAS),
    )


BLOCK = (
    *norm("blocks.{i}.norm1", "blocks/{i}/attn/norm"),
    *linear("blocks.{i}.attn.qkv", "blocks/{i}/attn/qkv"),
    *linear("blocks.{i}.attn.proj", "blocks/{i}/attn/proj"),
    *norm("blocks.{i}.norm2", "blocks/{i}/mlp/norm"),
)
FC = (
    *linear("blocks.{i}.mlp.fc1", "blocks/{i}/mlp/fc1"),
    *linear("blocks.{i}.mlp.fc2", "blocks/{i}/mlp/fc2"),
)
GATED = (
    *linear("blocks.{i}.mlp.w12", "blocks/{i}/mlp/fc1"),
    *linear("blocks.{i}.mlp.w3", "blocks/{i}/mlp/fc2"),
)
_TIMM = (
    *embed("patch_embed.proj"),
    TensorRow("cls_token", "class_token"),
    TensorRow("pos_embed", "position"),
    TensorRow("blocks.{i}.ls1.gamma", "blocks/{i}/attn/scale/scale"),
    TensorRow("blocks.{i}.ls2.gamma", "blocks/{i}/mlp/scale/scale"),
    *norm("norm", "norm"),
    *norm("fc_norm", "head/norm"),
    *linear("head", "head/linear"),
    *BLOCK,
)


def _google(position: str, norm2: str, attention: str, mlp: str) -> tuple[TensorRow, ...]:
    """Rows of Flax checkpoints, whose submodules are numbered in two manners."""
    at, ours = "Transformer/encoderblock_{i}", "blocks/{i}"
    three = [f"{at}/{attention}/{n}" for n in ("query", "key", "value")]
    pairs = [
        ("embedding/kernel", "embed/kernel"),
        ("embedding/bias", "embed/bias"),
        ("cls", "class_token"),
        (position, "position"),
        ("Transformer/encoder_norm/scale", "norm/scale"),
        ("Transformer/encoder_norm/bias", "norm/bias"),
        ("head/kernel", "head/linear/kernel"),
        ("head/bias", "head/linear/bias"),
        (f"{at}/{attention}/out/bias", f"{ours}/attn/proj/bias"),
    ]
    for source, branch in (("LayerNorm_0", "attn"), (norm2, "mlp")):
        pairs += [(f"{at}/{source}/{n}", f"{ours}/{branch}/norm/{n}") for n in ("scale", "bias")]
    for source, layer in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
        names = ("kernel", "bias")
        pairs += [(f"{at}/{mlp}/{source}/{n}", f"{ours}/mlp/{layer}/{n}") for n in names]
    return (
        *(TensorRow(source, path) for source, path in pairs),
        TensorRow(tuple(f"{n}/kernel" for n in three), f"{ours}/attn/qkv/kernel", HEADS_QKV),
        TensorRow(tuple(f"{n}/bias" for n in three), f"{ours}/attn/qkv/bias", HEADS_QKV_BIAS),
        TensorRow(f"{at}/{attention}/out/kernel", f"{ours}/attn/proj/kernel", HEADS_OUT),
    )


def sizes(
    card: Mapping[str, Any],
    *,
    patch: int,
    dim: int,
    depth: int,
    tokens: int,
    prefix: int,
    fc1: int,
    fc2: int,
) -> dict[str, Any]:
    """Config fields that every layout tells by these numbers, and by the card."""
    gated = fc1 == 2 * fc2
    fields = dict(patch=patch, dim=dim, depth=depth, mlp_ratio=fc2 / dim, gated=gated)
    fields |= {"act": "silu"} if gated else {"act": "gelu"} | cards.act(card)
    return fields | cards.heads(card) | positions(card, patch, tokens, prefix)


def positions(card: Mapping[str, Any], patch: int, tokens: int, prefix: int) -> dict[str, Any]:
    """Config fields of `tokens` positions, of a grid and of at most `prefix` leading tokens.

    The sides of the grid are those that the card tells, or else a square's; without either, `grid`
    is None.

    Raises:
        CheckpointError: for a `grid` in the card that has another number of positions.
    """
    squares = [math.isqrt(tokens - positioned) for positioned in range(prefix + 1)]
    grids = [(side, side) for side in squares]
    if size := cards.image_size(card):
        grids.insert(0, (size[0] // patch, size[1] // patch))
    if "grid" in card:
        grids = [tuple(card["grid"])]
    for rows, columns in grids:
        positioned = tokens - rows * columns
        if rows * columns and 0 <= positioned <= prefix:
            grid = () if rows == columns else (rows, columns)
            side = min(rows, columns) * patch
            return dict(grid=grid, image_size=side, positioned=positioned)
    if "grid" in card:
        raise CheckpointError(
            f"{tokens} position embeddings are not those of a grid of {rows} x {columns} patches"
        )
    return dict(grid=None, image_size=None, positioned=None)


def _timm_config(shapes: Shapes, card: Mapping[str, Any]) -> dict[str, Any]:
    dim, _, patch, _ = shapes["patch_embed.proj.weight"]
    registers = sum(
        shapes[n][1] for n in ("reg_token", "register_tokens", "dist_token") if n in shapes
    )
    last = "w3" if "blocks.0.mlp.w3.weight" in shapes else "fc2"
    first = "w12" if last == "w3" else "fc1"
    fields = sizes(
        card,
        patch=patch,
        dim=dim,
        depth=count(shapes, r"blocks\.(\d+)\."),
        tokens=shapes["pos_embed"][1],
        prefix=registers + ("cls_token" in shapes),
        fc1=shapes[f"blocks.0.mlp.{first}.weight"][0],
        fc2=shapes[f"blocks.0.mlp.{last}.weight"][1],
    )
    return (
        dict(heads=HEADS.get(dim))
        | fields
        | dict(
            class_token="cls_token" in shapes,
            registers=registers,
            layer_scale=float("blocks.0.ls1.gamma" in shapes),
            final_norm="norm.weight" in shapes,
            epsilon=1e-6,
            resample="antialias",
        )
    )


def _dinov2_config(shapes: Shapes, card: Mapping[str, Any]) -> dict[str, Any]:
    fields = _timm_config(shapes, card)
    return fields | dict(resample="antialias" if fields["registers"] else "offset")


def _mae_config(shapes: Shapes, card: Mapping[str, Any]) -> dict[str, Any]:
    return _timm_config(shapes, card) | dict(resample="cubic")


def _google_config(shapes: Shapes, card: Mapping[str, Any]) -> dict[str, Any]:
    patch, _, _, dim = shapes["embedding/kernel"]
    block = "Transformer/encoderblock_0/"
    query = next(s for n, s in shapes.items() if n.startswith(block) and "query/kernel" in n)
    dense = next(s for n, s in shapes.items() if n.startswith(block) and "Dense_0/kernel" in n)
    tokens = next(s for n, s in shapes.items() if n.endswith("pos_embedding"))[1]
    fields = sizes(
        card,
        patch=patch,
        dim=dim,
        depth=count(shapes, r"Transformer/encoderblock_(\d+)/"),
        tokens=tokens,
        prefix=int("cls" in shapes),
        fc1=dense[1],
        fc2=dense[1],
    )
    # timm's form of GELU; the Flax originals approximate it by tanh ("gelu_tanh").
    fields |= dict(epsilon=1e-6, act="gelu", resample="linear")
    return fields | dict(heads=query[1], class_token="cls" in shapes)


def _plain(config: Any) -> bool:
    return not config.layer_scale and not config.registers


def _dinov2(config: Any) -> bool:
    return bool(config.layer_scale)


_ANCHOR = "blocks.0.attn.qkv.weight"
_REST = (r"mask_token", r"decoder\w*(\..*)?", r"pre_logits\..*", r"head_dist\..*")
_REGISTERS = TensorRow("register_tokens", "registers")

LAYOUTS = (
    Layout(
        *("meta", "vit", _ANCHOR, (*_TIMM, *GATED, _REGISTERS), _dinov2_config),
        serves=lambda c: _dinov2(c) and c.gated,
        marks=(r"mask_token", r"blocks\.0\.mlp\.w12\.weight"),
        extras=_REST,
    ),
    Layout(
        *("meta", "vit", _ANCHOR, (*_TIMM, *FC, _REGISTERS), _dinov2_config),
        serves=lambda c: _dinov2(c) and not c.gated,
        marks=(r"mask_token", r"blocks\.0\.ls1\.gamma"),
        extras=_REST,
    ),
    Layout(
        *("meta", "vit", _ANCHOR, (*_TIMM, *FC), _mae_config),
        serves=_plain,
        marks=(r"decoder_embed\.weight",),
        extras=_REST,
    ),
    Layout(
        *(
            "timm",
            "vit",
            _ANCHOR,
            (*_TIMM, *FC, TensorRow("dist_token", "registers")),
            _timm_config,
        ),
        serves=lambda c: c.registers == 1 and c.positioned == 2,
        marks=(r"dist_token",),
        extras=_REST,
    ),
    Layout(
        *("timm", "vit", _ANCHOR, (*_TIMM, *FC, TensorRow("reg_token", "registers")), _timm_config),
        extras=_REST,
    ),
    Layout(
        "google",
        "vit",
        "embedding/kernel",
        _google(
            "Transformer/posembed_input/pos_embedding",
            "LayerNorm_2",
            "MultiHeadDotProductAttention_1",
            "MlpBlock_3",
        ),
        _google_config,
        serves=_plain,
        marks=(r"Transformer/posembed_input/pos_embedding",),
        extras=(r"pre_logits/.*",),
    ),
    Layout(
        "big_vision",
        "vit",
        "embedding/kernel",
        _google("pos_embedding", "LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0"),
        _google_config,
        serves=_plain,
        marks=(r"pos_embedding",),
        before=("params/",) * 2,
        extras=(r"pre_logits/.*", r"MAPHead_0/.*"),
    ),
)
