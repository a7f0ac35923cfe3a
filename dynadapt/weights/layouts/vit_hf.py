"""Where Hugging Face keeps the tensors of ViTs: in the hub's files, and in a live model.

From version 5 on, Transformers renames on loading; `state_dict()` then has the new names, while
`save_pretrained` still writes the hub's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dynadapt.weights import cards
from dynadapt.weights.layouts.vit import HEADS, embed, linear, norm, qkv, sizes
from dynadapt.weights.tables import GATED, GATED_BIAS, Layout, Shapes, TensorRow, count

_ENDS = (
    *embed("embeddings.patch_embeddings.projection"),
    TensorRow("embeddings.cls_token", "class_token"),
    TensorRow("embeddings.position_embeddings", "position"),
    *norm("layernorm", "norm"),
)
_REGISTERS = TensorRow("embeddings.register_tokens", "registers")
# DeiT's second token is a register with a position; the teacher's classifier is left aside.
_DISTILLED = (
    TensorRow("embeddings.distillation_token", "registers"),
    *linear("^cls_classifier", "head/linear"),
)
_HEAD = linear("^classifier", "head/linear")
_HUB, _LIVE = "encoder.layer.{i}", "layers.{i}"


def _attention(block: str) -> tuple[TensorRow, ...]:
    """Rows of attention in the hub's names."""
    return (
        *qkv(f"{block}.attention.attention", ("query", "key", "value"), "blocks/{i}/attn/qkv"),
        *linear(f"{block}.attention.output.dense", "blocks/{i}/attn/proj"),
    )


def _live_attention(block: str) -> tuple[TensorRow, ...]:
    return (
        *qkv(f"{block}.attention", ("q_proj", "k_proj", "v_proj"), "blocks/{i}/attn/qkv"),
        *linear(f"{block}.attention.o_proj", "blocks/{i}/attn/proj"),
    )


def _norms(block: str, first: str, second: str) -> tuple[TensorRow, ...]:
    return (
        *norm(f"{block}.{first}", "blocks/{i}/attn/norm"),
        *norm(f"{block}.{second}", "blocks/{i}/mlp/norm"),
    )


def _mlp(block: str, first: str, second: str) -> tuple[TensorRow, ...]:
    return (
        *linear(f"{block}.{first}", "blocks/{i}/mlp/fc1"),
        *linear(f"{block}.{second}", "blocks/{i}/mlp/fc2"),
    )


def _live_gated(block: str) -> tuple[TensorRow, ...]:
    two = [f"{block}.mlp.{n}_proj" for n in ("gate", "up")]
    return (
        TensorRow(tuple(f"{n}.weight" for n in two), "blocks/{i}/mlp/fc1/kernel", GATED),
        TensorRow(tuple(f"{n}.bias" for n in two), "blocks/{i}/mlp/fc1/bias", GATED_BIAS),
        *linear(f"{block}.mlp.down_proj", "blocks/{i}/mlp/fc2"),
    )


_DINOV2 = (
    *(*_ENDS, _REGISTERS, *_HEAD, *_norms(_HUB, "norm1", "norm2")),
    TensorRow(f"{_HUB}.layer_scale1.lambda1", "blocks/{i}/attn/scale/scale"),
    TensorRow(f"{_HUB}.layer_scale2.lambda1", "blocks/{i}/mlp/scale/scale"),
)
_VIT_HUB = (
    *(*_ENDS, *_attention(_HUB), *_norms(_HUB, "layernorm_before", "layernorm_after")),
    *_mlp(_HUB, "intermediate.dense", "output.dense"),
)
_VIT_LIVE = (
    *(*_ENDS, *_live_attention(_LIVE), *_norms(_LIVE, "layernorm_before", "layernorm_after")),
    *_mlp(_LIVE, "mlp.fc1", "mlp.fc2"),
)


def _config(
    blocks: str, firsts: tuple[str, ...], last: str
) -> Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]:
    """The config's function for blocks of this name, whose MLP has these layers."""

    def config(shapes: Shapes, card: Mapping[str, Any]) -> dict[str, Any]:
        dim, _, patch, _ = shapes["embeddings.patch_embeddings.projection.weight"]
        dinov2 = f"{blocks}.0.norm1.weight" in shapes
        extra = ("embeddings.register_tokens", "embeddings.distillation_token")
        registers = sum(shapes[n][1] for n in extra if n in shapes)
        fields = dict(
            heads=HEADS.get(dim),
            registers=registers,
            layer_scale=float(dinov2),
            final_norm="layernorm.weight" in shapes,
            epsilon=1e-6 if dinov2 else 1e-12,
            resample="antialias" if registers and dinov2 else "cubic",
        )
        fields |= sizes(
            card,
            patch=patch,
            dim=dim,
            depth=count(shapes, blocks.replace(".", r"\.") + r"\.(\d+)\."),
            tokens=shapes["embeddings.position_embeddings"][1],
            prefix=registers + 1,
            fc1=sum(shapes[f"{blocks}.0.{n}.weight"][0] for n in firsts),
            fc2=shapes[f"{blocks}.0.{last}.weight"][1],
        )
        return fields | cards.told(card, epsilon="layer_norm_eps")

    return config


def _plain(config: Any) -> bool:
    return not config.layer_scale and not config.registers


def _never(config: Any) -> bool:
    """Names of a live model are read alone: files have the hub's."""
    return False


_ANCHOR = "embeddings.patch_embeddings.projection.weight"
_MASK = (r"embeddings\.mask_token",)
_MORE = (*_MASK, r"decoder\..*", r"pooler\..*")
_BLOCK, _LIVE_BLOCK = r"encoder\.layer\.0\.", r"layers\.0\."
_DISTILLED_MARK = r"embeddings\.distillation_token"

LAYOUTS = (
    Layout(
        *("hf", "vit", _ANCHOR),
        (*_DINOV2, *_attention(_HUB), *_mlp(_HUB, "mlp.weights_in", "mlp.weights_out")),
        _config("encoder.layer", ("mlp.weights_in",), "mlp.weights_out"),
        serves=lambda c: bool(c.layer_scale) and c.gated,
        marks=(_BLOCK + r"mlp\.weights_in\.weight",),
        extras=_MASK,
        before=("", "dinov2."),
    ),
    Layout(
        *("hf", "vit", _ANCHOR),
        (*_DINOV2, *_attention(_HUB), *_mlp(_HUB, "mlp.fc1", "mlp.fc2")),
        _config("encoder.layer", ("mlp.fc1",), "mlp.fc2"),
        serves=lambda c: bool(c.layer_scale) and not c.gated,
        marks=(_BLOCK + r"layer_scale1\.lambda1", _BLOCK + r"attention\.attention\.query\.weight"),
        extras=_MASK,
        before=("", "dinov2."),
    ),
    Layout(
        *("hf", "vit", _ANCHOR, (*_DINOV2, *_live_attention(_HUB), *_live_gated(_HUB))),
        _config("encoder.layer", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
        serves=_never,
        marks=(_BLOCK + r"mlp\.gate_proj\.weight",),
        extras=_MASK,
    ),
    Layout(
        *("hf", "vit", _ANCHOR),
        (*_DINOV2, *_live_attention(_HUB), *_mlp(_HUB, "mlp.fc1", "mlp.fc2")),
        _config("encoder.layer", ("mlp.fc1",), "mlp.fc2"),
        serves=_never,
        marks=(_BLOCK + r"layer_scale1\.lambda1", _BLOCK + r"attention\.q_proj\.weight"),
        extras=_MASK,
    ),
    Layout(
        *("hf", "vit", _ANCHOR, (*_VIT_HUB, *_DISTILLED)),
        _config("encoder.layer", ("intermediate.dense",), "output.dense"),
        serves=lambda c: not c.layer_scale and c.registers == 1 and c.positioned == 2,
        marks=(_DISTILLED_MARK, _BLOCK + r"layernorm_before\.weight"),
        extras=_MORE,
        before=("", "deit."),
    ),
    Layout(
        *("hf", "vit", _ANCHOR, (*_VIT_LIVE, *_DISTILLED)),
        _config("layers", ("mlp.fc1",), "mlp.fc2"),
        serves=_never,
        marks=(_DISTILLED_MARK, _LIVE_BLOCK + r"layernorm_before\.weight"),
        extras=_MORE,
    ),
    Layout(
        *("hf", "vit", _ANCHOR, (*_VIT_HUB, *_HEAD)),
        _config("encoder.layer", ("intermediate.dense",), "output.dense"),
        serves=_plain,
        marks=(_BLOCK + r"layernorm_before\.weight",),
        extras=_MORE,
        before=("", "vit."),
    ),
    Layout(
        *("hf", "vit", _ANCHOR, (*_VIT_LIVE, *_HEAD)),
        _config("layers", ("mlp.fc1",), "mlp.fc2"),
        serves=_never,
        marks=(_LIVE_BLOCK + r"layernorm_before\.weight",),
        extras=_MORE,
    ),
)
