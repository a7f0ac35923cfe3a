"""Full fine-tuning: every parameter of the backbone trains."""

from flax import nnx

TRAINS = (".*",)
PRINTED = {"vit_b16": "85.8 M"}


def adapt(backbone: nnx.Module, *, rngs: nnx.Rngs) -> None:
    """Attaches nothing."""
