"""Where the layers that Hugging Face's peft adapts are in our backbone: timm's ViTs and its own."""

import dataclasses
import re

from dynadapt.weights.layouts import LAYOUTS

PREFIX = "base_model.model."
# Our targets in the order in which they are named, and the layers that hold them.
TARGETS = {
    **dict.fromkeys(("q", "k", "v", "qkv"), "attn/qkv"),
    **{"proj": "attn/proj", "fc1": "mlp/fc1", "fc2": "mlp/fc2"},
}
# Targets by timm's names of layers, in the order in which `write` names them.
TIMM = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
# The hub's names, and those of a live model since Transformers 5.
_HF = {
    **{f"attention.attention.{name}": name[0] for name in ("query", "key", "value")},
    **{f"attention.{name}_proj": name for name in "qkv"},
    **{"attention.output.dense": "proj", "attention.o_proj": "proj"},
    **{"intermediate.dense": "fc1", "output.dense": "fc2", "mlp.fc1": "fc1", "mlp.fc2": "fc2"},
}
_BLOCKS = ((r"blocks", TIMM), (r"encoder\.layer|layers", _HF))
# Layers that have no place for an adapter: it is folded into their kernels.
_FOLDED = (
    (r"patch_embed\.proj|embeddings\.patch_embeddings\.projection", "embed"),
    (r"head|classifier", "head/linear"),
)


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer that is adapted.

    Attributes:
        path: of our layer.
        target: LoRA's name of it; "" for a layer into which the adapter is folded.
        prefix: what stands before the names of the backbone's own layers.
    """

    path: str
    target: str
    prefix: str

    @property
    def adapter(self) -> str:
        """Path of the adapter's leaves."""
        return f"{self.path}/adapter/{self.target}"


def plain(name: str) -> str:
    """A tensor's name without what peft and `torch.compile` wrap around the model's own."""
    inside = name.replace("_orig_mod.", "").removeprefix(PREFIX)
    return re.sub(r"\.(base_layer|modules_to_save(\.default)?)\.", ".", inside)


def site(name: str) -> Site | None:
    """The layer of a module's name; None where it is none of a ViT's."""
    for blocks, layers in _BLOCKS:
        found = re.fullmatch(rf"(.*\.|)(?:{blocks})\.(\d+)\.(.*)", name)
        # A Swin's blocks stand below numbered layers.
        numbered = found and any(part.isdigit() for part in found[1].split("."))
        if found and not numbered and found[3] in layers:
            target = layers[found[3]]
            return Site(f"blocks/{found[2]}/{TARGETS[target]}", target, found[1])
    for pattern, path in _FOLDED:
        if found := re.fullmatch(rf"(.*\.|)(?:{pattern})", name):
            return Site(path, "", found[1])
    return None


def bias(name: str, prefix: str) -> tuple[str, int, int] | None:
    """Our leaf of a bias, which of its parts, and of how many; None where it is none of a ViT's."""
    for layout in LAYOUTS:
        for row in layout.rows if layout.family == "vit" else ():
            if path := row.path(name, prefix):
                names = row.names(path, prefix)
                return path, names.index(name), len(names)
    return None
