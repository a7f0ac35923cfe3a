import pytest

from tests import dense_heads
from tests.dense_heads import SWIN, counts, swin, vit


@pytest.mark.parametrize(
    ("dims", "wanted"),
    [
        ((192, 384, 768, 768), 843_926),
        ((256,) * 4, 565_398),
        ((768,) * 4, 1_089_686),
        (SWIN, 671_894),
        ((128, 256, 512, 1024), 794_774),
        ((192, 384, 768, 1536), 1_040_534),
    ],
)
def test_parameters(dims, wanted):
    assert sum(counts("segformer", swin(dims, (64, 64)), 150).values()) == wanted


def test_parameters_with_levels_of_a_plain_backbone():
    found = counts("segformer", vit(768, (14, 14)), 150)
    assert found["levels"] == 2_655_936 and sum(found.values()) == 3_499_862


def test_channels():
    like = dense_heads.swin((4, 8))
    assert sum(counts("segformer", like, 5, channels=6).values()) == (
        6 * 12 + 2 * 12 + 6 * 12 + 12 + 5 * 7
    )
