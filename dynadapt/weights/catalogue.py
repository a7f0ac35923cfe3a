"""Published weights: their names here, the backbones they are of, where they come from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dynadapt.errors import UnknownName


@dataclasses.dataclass(frozen=True)
class Published:
    """One published file of weights.

    Attributes:
        name: what it is called here.
        backbone: the variant that it is loaded into.
        url: where its publisher keeps it.
        licence: of the weights, by SPDX identifier.
        normalise: a name in `data.images.NORMALISATIONS`; "" where the input is no image.
        data: what it was trained on.
        digest: `sha256:` or `md5:` and the first digits of that hash, as far as known; or "".
        fields: further config fields of the backbone.
        points: number of points of the input, for clouds.
    """

    name: str
    backbone: str
    url: str
    licence: str
    normalise: str
    data: str
    digest: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    points: int = 0

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


_META = "https://dl.fbaipublicfiles.com"
_GOOGLE = "https://storage.googleapis.com/vit_models"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download"
_POINT_MAE = "https://github.com/Pang-Yatian/Point-MAE/releases/download/main"


def _augreg(name: str, backbone: str, setting: str) -> Published:
    size = backbone.removeprefix("vit_")[:-2].capitalize()
    url = f"{_GOOGLE}/augreg/{size}_{backbone[-2:]}-i21k-300ep-lr_0.001-{setting}.npz"
    return Published(name, backbone, url, "Apache-2.0", "inception", "ImageNet-21k")


def _first_vit(name: str, backbone: str, file: str) -> Published:
    url = f"{_GOOGLE}/imagenet21k/{file}.npz"
    return Published(name, backbone, url, "Apache-2.0", "inception", "ImageNet-21k")


def _deit(name: str, backbone: str, file: str, side: int = 224) -> Published:
    """The last eight characters of the file's name start its SHA-256."""
    fields = {} if side == 224 else dict(image_size=side)
    url, digest = f"{_META}/deit/{file}.pth", f"sha256:{file[-8:]}"
    return Published(name, backbone, url, "Apache-2.0", "imagenet", "ImageNet-1k", digest, fields)


def _mae(size: str, backbone: str, md5: str) -> Published:
    url = f"{_META}/mae/pretrain/mae_pretrain_vit_{size}.pth"
    data = "ImageNet-1k, no labels"
    name = backbone.replace("mae", "vit") + "_mae"
    return Published(name, backbone, url, "CC-BY-NC-4.0", "imagenet", data, f"md5:{md5}")


def _dinov2(size: str, registers: bool, sha256: str = "") -> Published:
    name, folder = f"dinov2_{size}14", f"dinov2_vit{size}14"
    file = f"{folder}_reg4_pretrain.pth" if registers else f"{folder}_pretrain.pth"
    name, url = name + ("_reg" if registers else ""), f"{_META}/dinov2/{folder}/{file}"
    digest, data = f"sha256:{sha256}" if sha256 else "", "LVD-142M, no labels"
    return Published(name, name, url, "Apache-2.0", "imagenet", data, digest)


def _sam(size: str, md5: str, sha256: str) -> Published:
    url, name = f"{_META}/segment_anything/sam_vit_{size}_{md5}.pth", f"sam_{size}16"
    return Published(name, name, url, "Apache-2.0", "imagenet", "SA-1B", f"sha256:{sha256}")


def _swin(name: str, backbone: str, file: str, version: str = "v1.0.0") -> Published:
    data = "ImageNet-22k" if "in22k" in name else "ImageNet-1k"
    return Published(name, backbone, f"{_SWIN}/{version}/{file}.pth", "MIT", "imagenet", data)


def _point_mae(name: str, backbone: str, file: str, data: str, points: int) -> Published:
    url, fields = f"{_POINT_MAE}/{file}.pth", {}
    return Published(name, backbone, url, "MIT", "", data, "", fields, points)


_WINDOW7, _WINDOW12 = "patch4_window7_224", "patch4_window12_384"

PUBLISHED: tuple[Published, ...] = (
    _augreg("vit_ti16_augreg_in21k", "vit_ti16", "aug_none-wd_0.03-do_0.0-sd_0.0"),
    _augreg("vit_s16_augreg_in21k", "vit_s16", "aug_light1-wd_0.03-do_0.0-sd_0.0"),
    _augreg("vit_s32_augreg_in21k", "vit_s32", "aug_none-wd_0.1-do_0.0-sd_0.0"),
    _augreg("vit_b16_augreg_in21k", "vit_b16", "aug_medium1-wd_0.1-do_0.0-sd_0.0"),
    _augreg("vit_b32_augreg_in21k", "vit_b32", "aug_light1-wd_0.1-do_0.0-sd_0.0"),
    _augreg("vit_l16_augreg_in21k", "vit_l16", "aug_strong1-wd_0.1-do_0.0-sd_0.0"),
    _first_vit("vit_b16_in21k", "vit_b16", "ViT-B_16"),
    _first_vit("vit_l16_in21k", "vit_l16", "ViT-L_16"),
    _first_vit("vit_h14_in21k", "vit_h14", "ViT-H_14"),
    _deit("deit_ti16_in1k", "vit_ti16", "deit_tiny_patch16_224-a1311bcf"),
    _deit("deit_s16_in1k", "vit_s16", "deit_small_patch16_224-cd65a155"),
    _deit("deit_b16_in1k", "vit_b16", "deit_base_patch16_224-b5f2ef4d"),
    _deit("deit_b16_384_in1k", "vit_b16", "deit_base_patch16_384-8de9b5d1", 384),
    *(
        _deit(f"deit_{n}16_distilled_in1k", f"deit_{n}16_distilled", f"deit_{file}")
        for n, file in (
            ("ti", "tiny_distilled_patch16_224-b40b3cf7"),
            ("s", "small_distilled_patch16_224-649709d9"),
            ("b", "base_distilled_patch16_224-df68dfff"),
        )
    ),
    _mae("base", "mae_b16", "8cad7c"),
    _mae("large", "mae_l16", "b8b06e"),
    _mae("huge", "mae_h14", "9bdbb0"),
    _dinov2("s", False, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    _dinov2("s", True),
    _dinov2("b", False, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    _dinov2("b", True),
    _dinov2("l", False, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    _dinov2("l", True),
    _dinov2("g", False),
    _dinov2("g", True),
    _sam("b", "01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    _sam("l", "0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _sam("h", "4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    _swin("swin_t_in1k", "swin_t", f"swin_tiny_{_WINDOW7}"),
    _swin("swin_s_in1k", "swin_s", f"swin_small_{_WINDOW7}"),
    _swin("swin_b_in1k", "swin_b", f"swin_base_{_WINDOW7}"),
    _swin("swin_b_384_in1k", "swin_b_384", f"swin_base_{_WINDOW12}"),
    _swin("swin_t_in22k", "swin_t", f"swin_tiny_{_WINDOW7}_22k", "v1.0.8"),
    _swin("swin_s_in22k", "swin_s", f"swin_small_{_WINDOW7}_22k", "v1.0.8"),
    _swin("swin_b_in22k", "swin_b", f"swin_base_{_WINDOW7}_22k"),
    _swin("swin_b_384_in22k", "swin_b_384", f"swin_base_{_WINDOW12}_22k"),
    _swin("swin_l_in22k", "swin_l", f"swin_large_{_WINDOW7}_22k"),
    _swin("swin_l_384_in22k", "swin_l_384", f"swin_large_{_WINDOW12}_22k"),
    _point_mae("point_mae_s_pretrained", "point_mae_s", "pretrain", "ShapeNet", 1024),
    _point_mae("point_mae_s_modelnet", "point_mae_s", "modelnet_1k", "ModelNet40", 1024),
    *(
        _point_mae(f"point_mae_s_{n}", "point_mae_s_g128", n, "ScanObjectNN", 2048)
        for n in ("scan_objbg", "scan_objonly", "scan_hardest")
    ),
)


def names() -> list[str]:
    """Names of all published weights that are known here."""
    return [p.name for p in PUBLISHED]


def find(name: str) -> Published:
    """The published weights of a name; raises UnknownName with the nearest."""
    for published in PUBLISHED:
        if published.name == name:
            return published
    raise UnknownName("published weights", name, names())
