import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt.context import Context
from dynadapt.layers.transformer import (
    Attention,
    Block,
    Branch,
    Mlp,
    PatchEmbed,
    dot_product_attention,
)


def randomised(module, seed=0):
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(module)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(draw, state))


def x(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.slow
def test_patch_embed_is_a_strided_convolution():
    embed = randomised(PatchEmbed(3, 5, rngs=nnx.Rngs(0)))
    images = x(2, 6, 9, 3)
    wanted = jax.lax.conv_general_dilated(
        images,
        embed.kernel[...],
        (3, 3),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    wanted = wanted.reshape(2, 6, 5) + embed.bias[...][None, None]
    np.testing.assert_allclose(embed(images, Context()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
def test_mlp(gated):
    mlp = randomised(Mlp(4, 6, act="silu", gated=gated, epsilon=1e-6, rngs=nnx.Rngs(0)))
    tokens = x(2, 3, 4)
    h = np.asarray(mlp.fc1(mlp.norm(tokens)), np.float64)
    assert h.shape == (2, 3, 12 if gated else 6)
    silu = lambda v: v / (1 + np.exp(-v))  # noqa: E731
    h = silu(h[..., :6]) * h[..., 6:] if gated else silu(h)
    wanted = h @ np.asarray(mlp.fc2.kernel[...]) + np.asarray(mlp.fc2.bias[...])[None, None]
    np.testing.assert_allclose(mlp(tokens, Context()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_block_is_its_branches():
    both = dict(epsilon=1e-6, layer_scale=0.5, rngs=nnx.Rngs(0))
    block = randomised(Block(Attention(8, 2, **both), Mlp(8, 16, **both)))
    tokens, ctx = x(2, 5, 8), Context()
    y = tokens + block.attn(tokens, ctx)
    np.testing.assert_allclose(block(tokens, ctx), y + block.mlp(y, ctx), rtol=1e-6)
    assert block.dim == 8 and isinstance(block.attn, Branch)


@pytest.mark.slow
def test_attention_without_qkv_bias():
    attn = Attention(8, 2, qkv_bias=False, epsilon=1e-6, rngs=nnx.Rngs(0))
    assert attn.qkv.bias is None
    assert attn(x(1, 3, 8), Context()).shape == (1, 3, 8)


def test_drop_path_and_layer_scale_act_on_the_whole_branch():
    mlp = randomised(Mlp(4, 6, epsilon=1e-6, layer_scale=1.0, rngs=nnx.Rngs(0)))
    tokens = x(64, 3, 4)
    ctx = Context(train=True, key=jax.random.key(0), drop_path=0.5)
    kept, full = mlp(tokens, ctx), mlp(tokens, Context())
    dropped = np.asarray((kept == 0).all((1, 2)))
    assert 16 < dropped.sum() < 48
    np.testing.assert_allclose(kept[~dropped], 2 * full[~dropped], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "width", "seen", "how"),
    [
        (jnp.bfloat16, 16, None, "cudnn"),
        (jnp.bfloat16, 16, jnp.ones(5), "xla"),
        (jnp.float32, 16, None, "xla"),
        (jnp.bfloat16, 12, None, "xla"),
    ],
)
def test_which_kernel_attends_on_a_gpu(dtype, width, seen, how, monkeypatch):
    asked = []

    def attend(*_, implementation, mask):
        asked.append(implementation)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    dot_product_attention(*[jnp.ones((2, 5, 3, width), dtype)] * 3, seen)
    assert asked == [how]
