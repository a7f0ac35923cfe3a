"""Full fine-tuning: every parameter of the backbone trains."""

from flax import nnx

TRAINS = (".*",)


def adapt(backbone: nnx.Module, *, rngs: nnx.Rngs) -> None:
    """Attaches nothing."""
