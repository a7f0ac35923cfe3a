import re
from urllib.parse import urlsplit

import pytest

from dynadapt import backbones
from dynadapt.data.images import NORMALISATIONS
from dynadapt.errors import UnknownName
from dynadapt.weights import catalogue

LICENCES = {"Apache-2.0", "MIT", "CC-BY-NC-4.0"}
DIGITS = {"sha256": 64, "md5": 32}


def test_names_and_addresses_are_each_there_once():
    names = catalogue.names()
    assert len(names) == len(set(names)) == len({p.url for p in catalogue.PUBLISHED})


@pytest.mark.parametrize("p", catalogue.PUBLISHED, ids=lambda p: p.name)
def test_entries(p):
    backbones.config(p.backbone, **p.fields)
    points = backbones.family(p.backbone) == "point_mae"
    assert bool(p.points) == points == (p.normalise == "")
    assert points or p.normalise in NORMALISATIONS
    assert p.licence in LICENCES
    assert urlsplit(p.url).scheme == "https" and p.url.endswith("/" + p.file)
    assert re.fullmatch(r"[\w.\-]+\.(pth|npz)", p.file)
    if p.digest:
        kind, _, digits = p.digest.partition(":")
        assert re.fullmatch("[0-9a-f]+", digits) and 6 <= len(digits) <= DIGITS[kind]


@pytest.mark.parametrize(
    "name, end, digest",
    [
        ("deit_b16_in1k", "deit/deit_base_patch16_224-b5f2ef4d.pth", "sha256:b5f2ef4d"),
        ("vit_h14_mae", "mae/pretrain/mae_pretrain_vit_huge.pth", "md5:9bdbb0"),
        ("dinov2_g14_reg", "dinov2/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth", ""),
        (
            "vit_ti16_augreg_in21k",
            "augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz",
            "",
        ),
        ("swin_s_in22k", "v1.0.8/swin_small_patch4_window7_224_22k.pth", ""),
    ],
)
def test_addresses_as_published(name, end, digest):
    found = catalogue.find(name)
    assert found.url.endswith("/" + end) and found.digest == digest


def test_an_unknown_name():
    with pytest.raises(UnknownName, match="'dinov2_b13'; did you mean 'dinov2_b14'"):
        catalogue.find("dinov2_b13")
