import functools
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, tree
from dynadapt.backbones import vit
from dynadapt.context import Context
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers import SameKey
from tests.networks import randomised

pytestmark = pytest.mark.usefixtures("fast_compiling")

SMALL = dict(dim=16, heads=2, depth=3, image_size=16)


def make(seed=0, **changes):
    """A small ViT with random values everywhere, biases and norms too."""
    given = SMALL | changes
    return randomised(lambda r: backbones.create("vit_mini", rngs=r, **given), seed)


def images(b=2, h=16, w=16, seed=1):
    return np.random.default_rng(seed).normal(size=(b, h, w, 3)).astype(np.float32)


@jax.jit
def features(network, x):
    found = network(x, Context())
    return found.maps, found.tokens


def by_hand(network, x, levels=()):
    """The forward pass of a plain ViT in numpy, float64, token by token layout."""
    w = {k: np.asarray(v, np.float64) for k, v in tree.leaves(nnx.state(network)).items()}
    c = network.config
    p, d, hd = c.patch, c.dim, c.dim // c.heads

    def norm(x, path):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + c.epsilon)
        return x * w[f"{path}/scale"] + w[f"{path}/bias"]

    def linear(x, path):
        return x @ w[f"{path}/kernel"] + w[f"{path}/bias"]

    def scale(x, path):
        return x * w.get(f"{path}/scale/scale", 1.0)

    gelu = np.vectorize(lambda v: 0.5 * v * (1 + erf(v / np.sqrt(2))))
    all_maps, all_tokens = [], []
    for image in np.asarray(x, np.float64):
        h, side = image.shape[0] // p, image.shape[1] // p
        tokens = []
        for i in range(h):
            for j in range(side):
                patch = image[i * p : i * p + p, j * p : j * p + p]
                kernel, bias = w["embed/kernel"], w["embed/bias"]
                tokens.append(np.einsum("xyc,xycd->d", patch, kernel) + bias)
        x = np.stack(tokens)
        if c.class_token:
            x = np.concatenate([w["class_token"][0], x]) + w["position"][0]
        else:
            x = x + w["position"][0]
        if c.registers:
            at = int(c.class_token)
            x = np.concatenate([x[:at], w["registers"][0], x[at:]])
        maps = []
        for n in range(c.depth):
            at = f"blocks/{n}"
            qkv = linear(norm(x, f"{at}/attn/norm"), f"{at}/attn/qkv")
            heads = []
            for k in range(c.heads):
                q, key, v = (qkv[:, i * d + k * hd : i * d + (k + 1) * hd] for i in range(3))
                score = q @ key.T / np.sqrt(hd)
                score = np.exp(score - score.max(-1, keepdims=True))
                heads.append(score / score.sum(-1, keepdims=True) @ v)
            y = linear(np.concatenate(heads, -1), f"{at}/attn/proj")
            x = x + scale(y, f"{at}/attn")
            y = linear(norm(x, f"{at}/mlp/norm"), f"{at}/mlp/fc1")
            x = x + scale(linear(gelu(y), f"{at}/mlp/fc2"), f"{at}/mlp")
            if n in levels:
                maps.append(x[-h * side :].reshape(h, side, d))
        y = norm(x, "norm")
        all_maps.append([*maps, y[-h * side :].reshape(h, side, d)])
        all_tokens.append(y[: len(y) - h * side])
    return [np.stack(m) for m in zip(*all_maps, strict=True)], np.stack(all_tokens)


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, ()),
        (dict(registers=2, layer_scale=0.5, levels=(0, 1)), (0, 1)),
        (dict(class_token=False, heads=4, mlp_ratio=2.5), ()),
        (dict(class_token=False, registers=3, epsilon=1e-3), ()),
    ],
)
def test_forward_equals_numpy(changes, levels):
    network = make(3, **changes)
    x = images()
    maps, tokens = features(network, x)
    wanted, wanted_tokens = by_hand(network, x, levels)
    assert len(maps) == len(wanted)
    for own, other in zip(maps, wanted, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)
    assert tokens.shape == wanted_tokens.shape
    np.testing.assert_allclose(tokens, wanted_tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_ti16", 5_524_416),
        ("vit_s16", 21_665_664),
        ("vit_b16", 85_798_656),
        ("vit_l16", 303_301_632),
        # DINOv2: the published models less their mask token of one width.
        ("dinov2_b14", 86_580_480 - 768),
        ("dinov2_b14_reg", 86_583_552 - 768),
        ("dinov2_g14", 1_136_480_768 - 1536),
        # Swin: timm's models without head.
        ("swin_t", 27_519_354),
        ("swin_s", 48_837_258),
        ("swin_b", 86_743_224),
        ("swin_l", 194_995_476),
        # SAM: `ImageEncoderViT` of the three published models.
        ("sam_b16", 89_670_912),
        ("sam_l16", 308_278_272),
        ("sam_h16", 637_026_048),
    ],
)
def test_parameter_counts(name, count):
    network = backbones.abstract(name)
    assert tree.size(nnx.state(network)) == count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(class_token=False),
        dict(registers=4),
        dict(layer_scale=1e-5),
        dict(mlp_ratio=2.0, patch=8),
        dict(image_size=32, depth=1),
    ],
)
def test_counts_by_formula(changes):
    c = vit.Config(**(dict(patch=4) | SMALL | changes))
    d, cls = c.dim, int(c.class_token)
    hidden = int(d * c.mlp_ratio)
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (2 * d * hidden + hidden + d)
    block += 2 * d * bool(c.layer_scale)
    tokens = (c.image_size // c.patch) ** 2 + cls
    stem = c.patch**2 * 3 * d + d + d * (cls + c.registers + tokens)
    network = nnx.eval_shape(lambda: vit.Backbone(c, rngs=SameKey()))
    assert tree.size(nnx.state(network)) == stem + c.depth * block + 2 * d


def test_paths():
    network = make(depth=1, registers=1, layer_scale=1.0)
    linear, norm = ("bias", "kernel"), ("bias", "scale")
    wanted = {"class_token", "position", "registers", *(f"norm/{n}" for n in norm)}
    wanted |= {f"embed/{n}" for n in linear}
    for branch, layers in (("attn", ("qkv", "proj")), ("mlp", ("fc1", "fc2"))):
        wanted |= {f"blocks/0/{branch}/norm/{n}" for n in norm} | {f"blocks/0/{branch}/scale/scale"}
        wanted |= {f"blocks/0/{branch}/{layer}/{n}" for layer in layers for n in linear}
    assert set(tree.leaves(nnx.state(network))) == wanted


def test_shapes_and_attributes():
    network = make(levels=(0, -2), registers=2)
    maps, tokens = features(network, images(3))
    assert [m.shape for m in maps] == [(3, 4, 4, 16)] * 3 and tokens.shape == (3, 3, 16)
    assert (network.dims, network.strides, network.patch) == ((16,) * 3, (4,) * 3, 4)
    assert network.levels == (0, 1, 2) and network.prefix == 3 and network.dim == 16
    assert features(make(class_token=False), images())[1].shape == (2, 0, 16)


def test_levels_given_as_a_list_are_the_same_compiled_model():
    one, two = make(levels=[1]), make(levels=(1,))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert hash(nnx.graphdef(one)) == hash(nnx.graphdef(two))


def test_other_image_sizes_change_the_grid():
    network = make()
    for h, w in ((32, 16), (8, 24), (16, 16)):
        maps, tokens = features(network, images(1, h, w))
        assert maps[0].shape == (1, h // 4, w // 4, 16) and tokens.shape == (1, 1, 16)
        assert np.isfinite(maps[0]).all()


def test_levels_change_nothing_but_what_is_returned():
    """Keys and drop rates of a block do not depend on where the fold is cut."""
    x = images()

    @jax.jit
    def tokens(network, key):
        return network(x, Context(train=True, key=key, drop_path=0.5)).tokens

    for seed in (1, 2):
        whole, cut = (tokens(make(levels=at), jax.random.key(seed)) for at in ((), (0, 1)))
        np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-5)


def test_each_image_is_seen_alone():
    network, x = make(), images(4)
    order = np.array([2, 0, 3, 1])
    whole = features(network, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[order], rtol=1e-5, atol=1e-5),
        features(network, x[order]),
        whole,
    )
    single = features(network, x[1:2])
    np.testing.assert_allclose(single[0][0], whole[0][0][1:2], rtol=1e-5, atol=1e-5)


def test_loop_remat_and_scan_are_equal():
    x = images()
    wanted = features(make(levels=(0,)), x)
    for form in (dict(scan=True), dict(remat=True), dict(scan=True, remat=True)):
        network = make(levels=(0,), **form)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
            features(network, x),
            wanted,
        )


@pytest.mark.parametrize("changes", [{}, dict(registers=2, layer_scale=0.7)])
def test_bfloat16_is_close(changes):
    network, x = make(**changes), images()
    half = features(network, jnp.asarray(x, jnp.bfloat16))
    full = features(network, x)
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = np.asarray(a, np.float32), np.asarray(b)
        assert np.linalg.norm(a - b) < 2e-2 * np.linalg.norm(b)


def test_drop_path_keeps_the_expected_branch():
    network, x = make(layer_scale=0.1), np.random.default_rng(4).normal(size=(64, 5, 16))
    branch, x = network.blocks[1].mlp, jnp.asarray(x, jnp.float32)
    whole = np.asarray(branch(x, Context()))

    @jax.jit
    def draw(key):
        return branch(x, Context(train=True, key=key, drop_path=0.5))

    draws = np.stack([draw(jax.random.key(n)) for n in range(40)])
    shares = draws.mean((2, 3)) / whole.mean((1, 2))
    assert {*np.round(shares, 3).flat} == {0.0, 2.0}
    assert abs(shares.mean() - 1) < 0.06


def test_drop_path_rates_by_depth():
    """Of two blocks with rates 0 and 1/2, both branches of the second are left by a quarter."""
    network, x = make(depth=2), images(256)

    @functools.partial(jax.jit, static_argnums=2)
    def last(network, key, train):
        return network(x, Context(train=train, key=key, drop_path=0.5)).tokens

    np.testing.assert_allclose(
        last(network, jax.random.key(0), False), features(network, x)[1], rtol=1e-5, atol=1e-5
    )
    graph, state = nnx.split(network)
    del state["blocks"][1]
    first = make(depth=1)
    nnx.update(first, state)
    found = np.asarray(last(network, jax.random.key(3), True))
    left = np.isclose(found, features(first, x)[1], atol=1e-5).all((1, 2))
    assert abs(left.mean() - 0.25) < 0.08


@pytest.mark.parametrize("size", [(17, 16), (16, 30)])
def test_a_wrong_image_size_is_a_config_error(size):
    with pytest.raises(
        ConfigError,
        match=f"images of {size[0]}x{size[1]} are not divisible by the backbone's patch",
    ):
        make()(images(1, *size), Context())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(image_size=18), "image size 18 is not divisible by patch 4"),
        (dict(heads=3), "width 16 is not divisible by 3 heads"),
        (dict(act="gleu"), "unknown activation 'gleu'"),
        (dict(levels=(3,)), "there is no block 3 among 3"),
        (dict(levels=(-4,)), "there is no block -4 among 3"),
    ],
)
def test_wrong_settings_are_config_errors(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_unknown_names_tell_the_nearest():
    with pytest.raises(UnknownName, match="unknown backbone 'vit_b15'; did you mean .*'vit_b16'"):
        backbones.create("vit_b15", rngs=nnx.Rngs(0))
    with pytest.raises(UnknownName, match="'vit_b16' 'image_siz'; did you mean 'image_size'"):
        backbones.create("vit_b16", rngs=nnx.Rngs(0), image_siz=384)


PUBLISHED_NAMES = {
    "vit_base_patch16_224.augreg_in21k": "vit_b16",
    "vit_base_patch16_224": "vit_b16",
    "timm/vit_small_patch32_384.augreg_in21k_ft_in1k": "vit_s32",
    "vit_large_patch14_224": "vit_l14",
    "vit_base_patch16_224.mae": "mae_b16",
    "vit_base_patch16_224.dino": "vit_b16",
    "vit_small_patch14_dinov2.lvd142m": "dinov2_s14",
    "vit_base_patch14_reg4_dinov2.lvd142m": "dinov2_b14_reg",
    "samvit_base_patch16.sa1b": "sam_b16",
    "deit_base_distilled_patch16_224": "deit_b16_distilled",
    "deit_tiny_patch16_224.fb_in1k": "vit_ti16",
    "swin_tiny_patch4_window7_224": "swin_t",
    "swin_base_patch4_window12_384.ms_in22k": "swin_b_384",
    "google/vit-base-patch16-224-in21k": "vit_b16",
    "google/vit-huge-patch14-224-in21k": "vit_h14",
    "facebook/dinov2-small": "dinov2_s14",
    "facebook/dinov2-giant-imagenet1k-1-layer": "dinov2_g14",
    "facebook/dinov2-with-registers-large": "dinov2_l14_reg",
    "facebook/deit-small-distilled-patch16-224": "deit_s16_distilled",
    "facebook/deit-base-patch16-384": "vit_b16",
    "facebook/vit-mae-huge": "mae_h14",
    "facebook/sam-vit-large": "sam_l16",
    "microsoft/swin-large-patch4-window12-384-in22k": "swin_l_384",
    "dinov2_vits14_reg": "dinov2_s14_reg",
    "dinov2_vitb14": "dinov2_b14",
    "mae_vit_large_patch16": "mae_l16",
    "ViT-B/16": "vit_b16",
    "vit_l_32": "vit_l32",
}
UNREAD_NAMES = {
    "facebook/dinov3-vits16-pretrain-lvd1689m": "DINOv3",
    "vit_small_patch16_dinov3.lvd1689m": "DINOv3",
    "openai/clip-vit-base-patch16": "CLIP",
    "vit_base_patch16_clip_224.openai": "CLIP",
    "google/siglip2-base-patch16-224": "SigLIP",
    "vit_base_patch16_siglip_224": "SigLIP",
    "eva02_base_patch14_448.mim_in22k": "EVA-02",
    "microsoft/beit-base-patch16-224": "BEiT",
    "swinv2_tiny_window8_256": "Swin-V2",
    "convnext_tiny.fb_in22k": "ConvNeXt",
    "facebook/convnextv2-tiny-1k-224": "ConvNeXt",
}


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_names_point_to_ours(name):
    assert backbones.ours(name) == PUBLISHED_NAMES[name] and backbones.unread(name) == ""
    with pytest.raises(ConfigError) as caught:
        backbones.config(name)
    assert str(caught.value) == f"unknown backbone {name!r}; it is our {PUBLISHED_NAMES[name]!r}"


@pytest.mark.parametrize("name", UNREAD_NAMES)
def test_families_that_are_not_read_are_named(name):
    assert backbones.unread(name) == UNREAD_NAMES[name] and backbones.ours(name) == ""
    with pytest.raises(ConfigError, match=f"{name}' is a {UNREAD_NAMES[name]}, which is not"):
        backbones.family(name)


def test_our_own_names_are_no_ones_else():
    for name in backbones.names():
        assert backbones.ours(name) in ("", name) and not backbones.unread(name)
    for name in ("vit_b15", "vit_base_patch7_224", "resnet50", "deit3_base_patch16_224", ""):
        assert backbones.ours(name) == backbones.unread(name) == "", name


def test_names_and_configs():
    assert {"vit_mini", "vit_ti16", "vit_s16", "vit_b16", "vit_l16", "vit_b14"} <= {
        *backbones.names()
    }
    assert len(backbones.names()) == len(set(backbones.names()))
    config = backbones.config("vit_l16", image_size=384)
    assert (config.dim, config.depth, config.heads, config.image_size) == (1024, 24, 16, 384)
    for name in backbones.names():
        assert backbones.family(name) in ("point_mae", "sam", "swin", "vit")
        backbones.config(name)


def test_random_weights_depend_on_the_seed():
    def kernel(seed):
        network = backbones.create("vit_mini", rngs=nnx.Rngs(seed), **(SMALL | dict(depth=1)))
        return np.asarray(network.blocks[0].attn.qkv.kernel[...])

    np.testing.assert_array_equal(kernel(0), kernel(0))
    assert not np.allclose(kernel(0), kernel(1))
