import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import adapters, backbones, dynamic, tree
from dynadapt.adapters import vfm_adapter
from dynadapt.context import Context
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import standard

pytestmark = pytest.mark.usefixtures("fast_compiling")

VIT = ("vit", dict(dim=12, depth=2, heads=2, patch=4, image_size=16))
SWIN = ("swin", dict(dim=8, depths=(2, 2), heads=(2, 4), window=4, image_size=32))
SAM = ("sam", dict(dim=8, depth=2, heads=2, patch=4, image_size=16, window=3, whole=(1,), neck=0))


def make(family=VIT, seed=0, **settings):
    network = backbones.of(family[0], **family[1])(nnx.Rngs(seed))
    given = dict(rank=3, z=4, prompts=2) | settings
    adapters.adapt(network, "vfm_adapter", rngs=nnx.Rngs(seed + 1), **given)
    rng = np.random.default_rng(seed)
    state = nnx.state(network)
    change = lambda p, v: v + 0.3 * rng.normal(size=v.shape).astype(np.float32)  # noqa: E731
    nnx.update(network, tree.map_leaves(lambda p, v: change(p, v) if "/up/" in p else v, state))
    return network


def images(b=2, side=16, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(b, side, side, 3)), jnp.float32)


def run(network, x):
    tape = {}
    return network(x, Context(tape=tape)), tape


@pytest.mark.slow
def test_a_site_by_hand():
    network = make(scale=0.7)
    host, shared = network.blocks[1].mlp, network.adapter.module
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 17, 12)), jnp.float32)
    ctx = Context(grid=(4, 4), prefix=1, shared={type(shared): shared})
    normed, own = host.norm(x), host.adapter
    prompts = shared.prompts["d12"][...]
    maps = dynamic.importance(normed[:, 1:], prompts, 1 / 12)
    pooled = standard(dynamic.pool_by_importance(normed[:, 1:], maps))
    hyper, h = shared.mlp, pooled @ shared.project["d12"].kernel[...] / 12
    kernel = dynamic.hypernetwork(
        h, hyper.hidden[...] / 4, hyper.hidden_bias[...], hyper.out[...] / 4, hyper.out_bias[...]
    )
    kernel = (kernel / np.sqrt(27)).at[:, 1, 1].add(jnp.eye(3)[None])
    code = jax.nn.relu(own.down(normed))
    m = dynamic.full_reference(code[:, 1:].reshape(2, 4, 4, 3), kernel).reshape(2, 16, 3)
    code = jnp.concatenate([code[:, :1], m], axis=1)
    wanted = host.bare(x, ctx) + 0.7 * own.up(code)
    np.testing.assert_allclose(host(x, ctx), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [VIT, SWIN, SAM])
@pytest.mark.slow
def test_it_serves_every_family(family):
    network = make(family)
    side = family[1]["image_size"]
    x = images(side=side)
    found, tape = run(network, x)
    bare = backbones.of(family[0], **family[1])(nnx.Rngs(0))(x, Context())
    assert np.abs(found.maps[-1] - bare.maps[-1]).max() > 1e-3
    kernels = [v for k, v in tape.items() if k.startswith("kernel")]
    assert all(np.abs(k[:, 0] - k[:, 1]).max() > 1e-6 for k in kernels)
    widths = {d for d in getattr(network, "dims", (network.dim,))}
    held = set(network.adapter.module.prompts)
    assert held == {f"d{d}" for d in widths}


@pytest.mark.parametrize("kernels", vfm_adapter.KERNELS)
def test_the_ablations(kernels):
    network = make(kernels=kernels)
    found, tape = run(network, images())
    kernel = tape.get("kernel")
    paths = tree.leaves(nnx.state(network))
    assert (kernels == "none") == (kernel is None)
    if kernel is not None:
        one_for_all = np.abs(kernel[:, 0] - kernel[:, 1]).max() == 0
        assert one_for_all == (kernels != "input")
    assert any("adapter/module/attn" in p for p in paths) == (kernels in ("input", "layer"))
    assert any("prompts" in p for p in paths) == (kernels == "input")
    assert np.isfinite(found.tokens).all()


def test_a_learned_embedding_in_place_of_the_inputs():
    """`layer` is `input` with the embedding replaced: the same hypernetworks make the kernels."""
    network = make(kernels="layer")
    _, tape = run(network, images())
    shared = network.adapter.module
    wanted = shared.attn(network.blocks[0].attn.adapter.embedding[...])
    np.testing.assert_allclose(tape["kernel"][0, 0], wanted[0], rtol=1e-5)


def test_the_papers_formulas():
    assert vfm_adapter.static_count(12, 768, 64) == 3_244_032
    assert vfm_adapter.dynamic_count(12, 768, 64, 48) == 2_709_504
    assert vfm_adapter.dynamic_count(12, 768, 60, 64) == 2_772_480
    assert vfm_adapter.dynamic_count(32, 1280, 160, 64) == 27_709_440


def test_plain_kernels_start_at_the_scale_of_a_random_convolution():
    hyper = vfm_adapter.Hypernetwork(32, 24, 3, scaled=False, bias=True, rngs=nnx.Rngs(0))
    embedding = jnp.asarray(np.random.default_rng(0).normal(size=(16, 24)), jnp.float32)
    assert float(hyper(embedding).var()) == pytest.approx(1 / (9 * 32), rel=0.3)


@pytest.mark.parametrize(
    ("given", "error", "problem"),
    [
        (dict(kernel=4), ConfigError, "kernel must be odd, such as 5, not 4"),
        (dict(rank=-1), ConfigError, "rank must be at least 1, not -1"),
        (dict(rank=13), ConfigError, "rank must be at most the width 12 at .*, not 13"),
        (dict(z=0), ConfigError, "z must be at least 1"),
        (dict(prompts=0), ConfigError, "prompts must be at least 1"),
        (dict(kernels="dynamic"), UnknownName, "unknown kind of kernels 'dynamic'"),
    ],
)
def test_mistakes(given, error, problem):
    with pytest.raises(error, match=problem):
        make(**given)
