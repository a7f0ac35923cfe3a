"""Linear probe: the backbone stays as it is, only the head trains."""

from flax import nnx

TRAINS = ()


def adapt(backbone: nnx.Module, *, rngs: nnx.Rngs) -> None:
    """Attaches nothing."""
