"""What the `config.json` beside weights says, in Hugging Face's words or in timm's."""

from collections.abc import Mapping
from typing import Any

# Activations by the names of both.
ACTS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def told(card: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """What a card says, by our names: `told(card, heads="num_attention_heads")`."""
    return {ours: card[theirs] for ours, theirs in names.items() if theirs in card}


def act(card: Mapping[str, Any]) -> dict[str, str]:
    """The activation of the MLPs as a config field; nothing where the card does not say."""
    name = card.get("hidden_act", _inside(card, "model_args").get("act_layer"))
    return {"act": ACTS.get(name, name)} if isinstance(name, str) else {}


def heads(card: Mapping[str, Any]) -> dict[str, Any]:
    """The number of heads as a config field; nothing where the card does not say."""
    return told(card, heads="num_attention_heads") or told(
        _inside(card, "model_args"), heads="num_heads"
    )


def image_size(card: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in pixels of the images that the weights are made for."""
    published = _inside(card, "pretrained_cfg")
    values = (
        card.get("image_size"),
        _inside(card, "model_args").get("img_size"),
        # Of an input, the channels come first.
        *(v[1:] for v in (published.get("input_size"), card.get("input_size")) if _numbers(v, 3)),
    )
    for value in values:
        pair = [value, value] if isinstance(value, int) else value
        if _numbers(pair, 2):
            return (pair[0], pair[1])
    return None


def model(card: Mapping[str, Any]) -> str:
    """What the card calls the model: timm's architecture or Hugging Face's type; or ""."""
    name = card.get("architecture", card.get("model_type"))
    return name if isinstance(name, str) else ""


def _inside(card: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = card.get(name)
    return value if isinstance(value, Mapping) else {}


def _numbers(value: Any, count: int) -> bool:
    """Whether a value is this many whole numbers above 0."""
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(isinstance(v, int) and v > 0 for v in value)
    )
