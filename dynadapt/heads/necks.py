"""Necks: from a backbone's features to levels of one width, whose strides a detector knows."""

from collections.abc import Sequence
from typing import Any

from flax import nnx

from dynadapt.errors import ConfigError, UnknownName
from dynadapt.heads.fpn import FPN
from dynadapt.heads.pyramid import VITDET, SimplePyramid

# Of one map: the scales with weights. One level more is subsampled.
PLAIN = {
    "vfm": (2, 1, 0.5, 0.25),  # VFM-Adapter's, from its counts of parameters
    "vitdet": VITDET,
}
# Of maps at several strides: the first that is taken, the levels, whether further ones are learned.
STAGED = {
    "fpn": (1, 5, True),  # as detectors of one stage have it
    "fpn_pool": (0, 5, False),
}
NAMES = (*PLAIN, *STAGED)

Strides = Sequence[float]


def neck(
    name: str, like: Any, channels: int = 256, strides: Strides = (), *, rngs: nnx.Rngs
) -> nnx.Module:
    """The neck of that name for features like these: levels `b h w channels`, fine to coarse.

    It has the attributes `dims` and `strides`: of each level the width, and the pixels of the image
    between its entries.

    Args:
        name: one of `NAMES`; "" is "fpn" where maps have several strides, and else "vfm".
        like: shapes of the adapted backbone's features, and their strides.
        channels: width of the levels.
        strides: of the levels, each twice the one before; () for the neck's own.
        rngs: source of the random weights.

    Raises:
        UnknownName: for a neck that does not exist, naming the nearest.
        ConfigError: for features or strides that it can't serve.
    """
    if not like.strides:
        raise ConfigError("a neck needs a backbone of images, whose maps have strides")
    staged = len(set(like.strides)) > 1
    name = name or ("fpn" if staged else "vfm")
    if name not in NAMES:
        raise UnknownName("neck", name, NAMES)
    if staged != (name in STAGED):
        others = ", ".join(STAGED if staged else PLAIN)
        kind = "several strides" if staged else "one stride"
        raise ConfigError(f"the neck {name!r} can't serve maps of {kind}; choose among {others}")
    if any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
        raise ConfigError(f"strides must double from level to level, and {_list(strides)} don't")
    make = _staged if staged else _plain
    made, strides = make(name, like, channels, strides, rngs=rngs)
    made.strides = tuple(strides)
    return made


def _plain(
    name: str, like: Any, channels: int, strides: Strides, *, rngs: nnx.Rngs
) -> tuple[nnx.Module, Strides]:
    base, scales = like.strides[-1], PLAIN[name]
    known = [base / s for s in scales]
    strides = strides or (*known, 2 * known[-1])
    _check_first(name, strides, known)
    taken = tuple(s for s, stride in zip(scales, known, strict=True) if stride in strides)
    options = dict(subsampled=len(strides) - len(taken), rngs=rngs)
    return SimplePyramid(like.maps[-1].shape[-1], channels, taken, **options), strides


def _staged(
    name: str, like: Any, channels: int, strides: Strides, *, rngs: nnx.Rngs
) -> tuple[nnx.Module, Strides]:
    start, count, learned = STAGED[name]
    strides = strides or [like.strides[start] * 2**n for n in range(count)]
    _check_first(name, strides, like.strides)
    if strides[-1] < like.strides[-1]:
        raise ConfigError(
            f"strides of the neck {name!r} must reach the backbone's last, {like.strides[-1]}, "
            f"and {_list(strides)} don't"
        )
    dims = [m.shape[-1] for m, s in zip(like.maps, like.strides, strict=True) if s in strides]
    options = dict(extra=len(strides) - len(dims), learned=learned, rngs=rngs)
    return FPN(dims, channels, **options), strides


def _check_first(name: str, strides: Strides, known: Strides) -> None:
    if strides[0] not in known:
        raise ConfigError(
            f"strides of the neck {name!r} start with one of {_list(known)} on this backbone, not "
            f"{strides[0]:g}"
        )


def _list(values: Strides) -> str:
    return ", ".join(f"{v:g}" for v in values)
