import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, model, tree
from dynadapt.context import Context
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads.necks import neck
from dynadapt.layers import SameKey
from tests import dense_heads

pytestmark = pytest.mark.usefixtures("fast_compiling")


def plain(dim=8, size=(9, 10), stride=16):
    like = dense_heads.vit(dim, size, levels=2)
    return backbones.Features(like.maps, like.tokens, strides=(stride, stride))


def staged(dims=(4, 8, 12, 16), size=(26, 18)):
    like = dense_heads.swin(dims, size)
    return backbones.Features(like.maps, like.tokens, strides=(4, 8, 16, 32))


def made(name, like, channels=8, strides=()):
    return nnx.eval_shape(lambda: neck(name, like, channels, strides, rngs=SameKey()))


def shapes(network, like):
    return [x.shape for x in jax.eval_shape(lambda n, x: n(x, Context()), network, like)]


@pytest.mark.parametrize(
    ("dim", "wanted"), [(768, 4_231_552), (256, 2_723_968), (1280, 6_787_712), (384, 3_002_560)]
)
def test_parameters_of_the_neck_of_vfm_adapter(dim, wanted):
    assert tree.size(nnx.state(made("vfm", plain(dim), 256))) == wanted
    assert wanted == 2 * dim**2 + 896.5 * dim + 2_363_392


@pytest.mark.parametrize(
    ("name", "strides", "sizes"),
    [
        ("vfm", (8, 16, 32, 64, 128), ((18, 20), (9, 10), (4, 5), (2, 2), (1, 1))),
        ("vitdet", (4, 8, 16, 32, 64), ((36, 40), (18, 20), (9, 10), (4, 5), (2, 3))),
    ],
)
def test_levels_of_one_map(name, strides, sizes):
    network = made(name, plain())
    assert network.strides == strides and network.dims == (8,) * 5
    assert shapes(network, plain()) == [(1, *size, 8) for size in sizes]


@pytest.mark.parametrize(
    ("name", "strides", "sizes"),
    [
        ("fpn", (8, 16, 32, 64, 128), ((13, 9), (7, 5), (4, 3), (2, 2), (1, 1))),
        ("fpn_pool", (4, 8, 16, 32, 64), ((26, 18), (13, 9), (7, 5), (4, 3), (2, 2))),
    ],
)
def test_levels_of_several_maps(name, strides, sizes):
    network = made(name, staged())
    assert network.strides == strides and network.dims == (8,) * 5
    assert shapes(network, staged()) == [(1, *size, 8) for size in sizes]


def test_parameters_of_the_pyramid_of_swin():
    """A detector's FPN on Swin-B: three laterals, and five 3x3 convolutions."""
    found = tree.size(nnx.state(made("fpn", staged((128, 256, 512, 1024)), 256)))
    assert found == (256 + 512 + 1024 + 3) * 256 + 5 * (9 * 256 + 1) * 256


@pytest.mark.parametrize(
    ("name", "like", "strides", "learned"),
    [
        ("vfm", plain(stride=4), (4, 8, 16), 3),
        ("vitdet", plain(stride=4), (4, 8, 16), 2),
        ("vfm", plain(stride=14), (14, 28), 2),
        ("fpn", staged(), (16, 32, 64), 2),
        ("fpn_pool", staged(), (32,), 1),
    ],
)
def test_chosen_strides(name, like, strides, learned):
    network = made(name, like, strides=strides)
    found = shapes(network, like)
    assert network.strides == strides and len(found) == len(strides)
    assert len(network.levels if hasattr(network, "levels") else network.lateral) == learned


def test_strides_of_a_backbone_reach_its_neck():
    """Patches of 14 pixels: the coarser levels drop what fills no window."""
    sizes = dict(dim=16, depth=1, heads=2, image_size=112)
    for name, strides in (("dinov2_s14", (7, 14, 28)), ("vit_s16", (8, 16, 32))):
        backbone = backbones.abstract(name, **sizes)
        image = jax.ShapeDtypeStruct((2, 112, 112, 3), jnp.float32)
        like = model.features(backbone, {"image": image})
        assert made("", like).strides[:3] == strides
    swin = backbones.abstract("swin_t", dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    like = model.features(swin, {"image": image})
    assert made("", like).strides == (8, 16, 32, 64, 128)


def test_the_last_level_is_every_other_entry():
    like = dense_heads.filled(plain(size=(12, 10)))
    network = neck("vfm", like, 8, rngs=nnx.Rngs(0))
    *_, before, last = network(like, Context())
    np.testing.assert_array_equal(last, before[:, ::2, ::2])


@pytest.mark.parametrize(
    ("name", "like", "strides", "said"),
    [
        ("fpn", plain(), (), "'fpn' can't serve maps of one stride; choose among vfm, vitdet"),
        ("vfm", staged(), (), "of several strides; choose among fpn, fpn_pool"),
        ("vfm", plain(), (4, 8), "'vfm' start with one of 8, 16, 32, 64 .* not 4"),
        ("vitdet", plain(stride=14), (8, 16), "'vitdet' start with one of 3.5, 7, 14, 28"),
        ("vfm", plain(), (8, 32), "must double from level to level, and 8, 32 don't"),
        ("fpn", staged(), (8, 16), "must reach the backbone's last, 32, and 8, 16 don't"),
        ("", dense_heads.vit(), (), "a backbone of images"),
        ("vfm", plain(6), (), "width 6 is not divisible by 4"),
    ],
)
def test_what_cannot_be_served(name, like, strides, said):
    with pytest.raises(ConfigError, match=said):
        made(name, like, strides=strides)


def test_an_unknown_neck_names_the_nearest():
    with pytest.raises(UnknownName, match="unknown neck 'vitdt'; did you mean 'vitdet'"):
        made("vitdt", plain())


def test_maps_too_small_for_the_coarsest_level():
    with pytest.raises(ConfigError, match="a map of 3x5 is too small to quarter"):
        shapes(made("vfm", plain(size=(3, 5))), plain(size=(3, 5)))
