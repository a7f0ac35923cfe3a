import pytest
from flax import nnx

from dynadapt import heads
from dynadapt.errors import ConfigError
from tests.dense_heads import counts, swin, vit


@pytest.mark.parametrize(
    ("dims", "wanted"),
    [
        ((64, 128, 320, 512), 378_215),
        ((128, 256, 512, 1024), 439_719),
        ((192, 384, 768, 1536), 501_159),
        ((768,) * 4, 513_447),
    ],
)
def test_parameters(dims, wanted):
    assert sum(counts("glpdepth", swin(dims, (64, 64)), 1).values()) == wanted


def test_levels_of_a_plain_backbone():
    found = counts("glpdepth", vit(768, (14, 14)), 1)
    assert found["levels"] == 2_655_936
    assert found["project"] == 64 * (192 + 384 + 768 + 768) + 4 * 64


def test_channels_are_even():
    with pytest.raises(ConfigError, match="channels must be even, such as 8, not 7"):
        heads.dense_head("glpdepth", vit(), 1, rngs=nnx.Rngs(0), channels=7)
