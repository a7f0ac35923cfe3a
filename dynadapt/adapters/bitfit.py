"""BitFit (Ben Zaken et al., arXiv 2106.10199): only the biases of the backbone train.

Count on a ViT of width d and L blocks: 11 d L + 2 d.
"""

from flax import nnx

TRAINS = (r"(.*/)?bias",)
PRINTED = {"vit_b16": "0.10 M"}


def adapt(backbone: nnx.Module, *, rngs: nnx.Rngs) -> None:
    """Attaches nothing."""
