"""Small backbones with methods of several tasks, and what a ViT with them does, in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import adapters, backbones, heads, model, tree
from dynadapt.context import Context
from dynadapt.heads import several
from dynadapt.layers import SameKey
from tests.networks import randomised

TASKS = ("semseg", "normals")
METHODS = {"mtlora": dict(rank=3, task_rank=2), "tadformer": dict(rank=3)}
SIZES = {
    # Maps of 6x6 and 3x3 tokens in windows of 4, which shift: both are padded.
    "swin": dict(dim=8, depths=(1, 3), heads=(1, 2), window=4, patch=2, image_size=12,
                 small="never"),
    "vit": dict(dim=16, depth=2, heads=2, patch=4, image_size=8, registers=1),
}  # fmt: skip
SIDES = {"swin": 12, "vit": 8}


def backbone(family, method, tasks=TASKS, sizes=None, **given):
    """With random values everywhere; increments are smaller than what they are added to."""

    def make(rngs):
        network = backbones.of(family, **SIZES[family] | (sizes or {}))(rngs)
        adapters.adapt(
            network, method, rngs=rngs, tasks=tasks, **METHODS[method] | dict(dropout=0.0) | given
        )
        return network

    made = randomised(make)
    state = nnx.state(made)
    nnx.update(made, tree.map_leaves(lambda p, v: 0.1 * v if p.endswith("/b") else v, state))
    return made


def network(family, method, outputs=3, **given):
    """A model of such a backbone and a head for each task."""
    bare = backbone(family, method, **given)
    like = model.features(bare, {"image": jax.ShapeDtypeStruct(images(family, 1).shape, "float32")})
    makers = {
        task: lambda own: heads.dense_head("hrnet", own, outputs, channels=2, rngs=SameKey())
        for task in given.get("tasks", TASKS)
    }
    return model.Model(bare, randomised(lambda rngs: several.made_for(like, makers), seed=1))


def images(family, b, seed=3):
    side = SIDES[family]
    return jnp.asarray(np.random.default_rng(seed).normal(size=(b, side, side, 3)), jnp.float32)


@jax.jit
def features(network, x):
    """Maps and tokens of each task."""
    found = network(x, Context())
    return {t: (*f.maps, f.tokens) for t, f in found.items()}


# By hand, of one image and a ViT whose blocks are a stage each.

_erf = np.vectorize(math.erf)


def gelu(x):
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


class ByHand:
    """The blocks of a ViT with a method, for one image, in float64."""

    def __init__(self, network, tasks, grid):
        self.w = {k: np.asarray(v, np.float64) for k, v in tree.leaves(nnx.state(network)).items()}
        self.tasks, self.grid, self.seen = tasks, grid, []
        self.heads, self.epsilon = network.config.heads, network.config.epsilon

    def norm(self, x, at, epsilon=None):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + (epsilon or self.epsilon))
        return x * self.w[f"{at}/scale"] + self.w[f"{at}/bias"]

    def frozen(self, x, at):
        return x @ self.w[f"{at}/kernel"] + self.w[f"{at}/bias"]

    def shared(self, x, at):
        return self.frozen(x, at) + 4.0 * self.down(x, at) @ self.w[f"{at}/adapter/low/b"]

    def down(self, x, at):
        return x @ self.w[f"{at}/adapter/low/a"]

    def own(self, x, x_t, at, t):
        """What a layer answers a task."""
        if f"{at}/adapter/a" in self.w:
            more = x_t @ self.w[f"{at}/adapter/a"][t] @ self.w[f"{at}/adapter/b"][t]
        else:
            u = self.filtered(self.down(x_t, at), f"{at}/adapter/filter", t)
            more = u @ self.w[f"{at}/adapter/low/b"]
        return self.frozen(x, at) + 4.0 * more

    def filtered(self, u, at, t):
        h, w = self.grid
        m = u[-h * w :].reshape(h, w, -1)
        if f"{at}/taps" in self.w:
            taps, bias = self.w[f"{at}/taps"][t].reshape(9, -1), self.w[f"{at}/bias"][t]
        else:
            taps = self.frozen(m.mean((0, 1)), f"{at}/dense").reshape(9, -1)
            taps = (taps - taps.mean(0)) / taps.std(0, ddof=1)
            taps, bias = taps * self.w[f"{at}/scale"] + self.w[f"{at}/shift"], 0.0
        padded = np.pad(m, ((1, 1), (1, 1), (0, 0)))
        out = u.copy()
        for i, j in np.ndindex(h, w):
            window = padded[i : i + 3, j : j + 3].reshape(9, -1)
            out[len(u) - h * w + i * w + j] = (window * taps).sum(0) + bias
        return out

    def split(self, x):
        return x.reshape(len(x), self.heads, -1).transpose(1, 0, 2)

    def mlp(self, x, at):
        y = gelu(self.shared(self.norm(x, f"{at}/mlp/norm"), f"{at}/mlp/fc1"))
        return self.shared(y, f"{at}/mlp/fc2")

    def block(self, p, x, at):
        """Prompts, tokens, streams and their skips behind one block, which ends a stage."""
        n = len(p)
        both = self.norm(np.concatenate([p, x]), f"{at}/attn/norm")
        q, k, v = map(self.split, np.split(self.shared(both, f"{at}/attn/qkv"), 3, -1))
        raw = np.einsum("hqd,hkd->hqk", q, k)
        scores = raw / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        f = np.einsum("hqk,hkd->qhd", weights, v).reshape(len(both), -1)
        proj = f"{at}/attn/proj"
        seen, f = self.shared(f[:n], proj), f[n:]
        z = x + self.shared(f, proj)
        streams, skips = [], []
        y = self.norm(z, f"{at}/mlp/norm")
        hidden = gelu(self.shared(y, f"{at}/mlp/fc1"))
        for t in range(self.tasks):
            given = f
            if n:
                attention = gelu(raw[:, t, n:])
                self.seen.append(attention.mean(0))
                skips.append((attention[..., None] * self.split(f)).transpose(1, 0, 2))
                skips[-1] = skips[-1].reshape(f.shape)
                given = self.norm(f + skips[-1], f"{proj}/adapter/norm", 1e-5)
            own = x + self.own(f, given, proj, t)
            h = self.own(y, self.norm(own, f"{at}/mlp/norm"), f"{at}/mlp/fc1", t)
            streams.append(own + self.own(hidden, gelu(h), f"{at}/mlp/fc2", t))
        z = z + self.mlp(z, at)
        return (p + self.mlp(seen, at) if n else p), z, streams, skips

    def run(self, x, depth):
        """The streams at the end of each stage, of the tokens before the first block."""
        p, found = self.w.get("adapter/prompts", x[:0]), []
        for number in range(depth):
            p, x, streams, skips = self.block(p, x, f"blocks/{number}")
            if skips:
                share = 1.0 / (1.0 + np.exp(-self.w["adapter/gates"][number]))
                pairs = zip(skips, streams, strict=True)
                streams = [share * g + (1.0 - share) * out for g, out in pairs]
            found.append(streams)
        found[-1] = [self.norm(s, "norm") for s in found[-1]]
        return found
