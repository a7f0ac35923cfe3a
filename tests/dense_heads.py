"""Features that dense heads are made for, and what their layers do, in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import heads, tree
from dynadapt.backbones import Features
from dynadapt.layers import SameKey
from dynadapt.layers.resample import linear

SWIN = (96, 192, 384, 768)  # widths of a Swin-T's maps


def shapes(dims, sizes, b=1, dtype=jnp.float32):
    """Shapes of features with these maps."""
    maps = [jax.ShapeDtypeStruct((b, *s, d), dtype) for s, d in zip(sizes, dims, strict=True)]
    return Features(tuple(maps), jax.ShapeDtypeStruct((b, 0, dims[-1]), dtype))


def vit(dim=8, size=(3, 4), levels=3, **options):
    """Of a plain backbone: several maps of one stride."""
    return shapes((dim,) * levels, (size,) * levels, **options)


def swin(dims=(4, 8, 12, 16), size=(9, 7), **options):
    """Of a backbone in stages, each half as fine as the one before, rounded up."""
    sizes = [tuple(-(-n // 2**i) for n in size) for i in range(len(dims))]
    return shapes(dims, sizes, **options)


def filled(like, seed=0):
    """Features of these shapes with random values."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), like)


def counts(name, like, outputs, **settings):
    """Parameters of a head by its part, nothing of it allocated."""

    def make():
        return heads.dense_head(name, like, outputs, rngs=SameKey(), **settings)

    found = {}
    for path, leaf in tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)).items():
        part = path.split("/")[0]
        found[part] = found.get(part, 0) + leaf.size
    return found


def weights(head):
    """The head's leaves by path, in float64."""
    return {k: np.asarray(v, np.float64) for k, v in tree.leaves(nnx.state(head)).items()}


def conv(x, w, at, rate=1):
    """Convolution `b h w d` with the kernel and bias at a path: 1x1 or, padded by zeros, 3x3."""
    kernel, bias = w[f"{at}/kernel"], w.get(f"{at}/bias", 0.0)
    if kernel.ndim == 2:
        return x @ kernel + bias
    h, wide = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (rate, rate), (rate, rate), (0, 0)))
    steps = [(i, j, rate * i, rate * j) for i, j in np.ndindex(3, 3)]
    return bias + sum(padded[:, y : y + h, z : z + wide] @ kernel[i, j] for i, j, y, z in steps)


def norm_relu(x, w, at):
    """Stored statistics, scale and shift, then ReLU."""
    x = (x - w[f"{at}/mean"]) / np.sqrt(w[f"{at}/var"] + 1e-5)
    return np.maximum(x * w[f"{at}/scale"] + w[f"{at}/bias"], 0.0)


def conv_norm(x, w, at, rate=1):
    return norm_relu(conv(x, w, f"{at}/conv", rate), w, f"{at}/norm")


def resized(x, size):
    rows, columns = (linear(n, m) for n, m in zip(x.shape[1:3], size, strict=True))
    return np.einsum("yh,xw,bhwd->byxd", rows, columns, x)
