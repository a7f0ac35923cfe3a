"""Tuning of the norms: only the scales and biases of the backbone's layer norms train.

Count on a ViT of width d and L blocks: 4 d L + 2 d.
"""

from flax import nnx

TRAINS = (r"(.*/)?norms?(/\d+)?/(scale|bias)",)


def adapt(backbone: nnx.Module, *, rngs: nnx.Rngs) -> None:
    """Attaches nothing."""
