"""Monocular depth in metres: a dense head, scale-invariant loss, the usual nine errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import heads, pictures
from dynadapt.data import frames
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.layers.resample import resize
from dynadapt.targets.depths import errors, silog, sums

Array = jax.Array
Batch = dict[str, Array]

LOSSES = ("silog", "silog_image", "l1")
SCALES = ("sigmoid", "metres")
# Parts of a picture that are evaluated: size (h, w), rows and columns.
CROPS = {"": None, "eigen": ((480, 640), (45, 471), (41, 601))}


class Task:
    """The distance of each pixel, `info.fields["depth"]`.

    Args:
        info: description of the data set.
        head: name of a dense head, a module of `heads`.
        channels: of the head; -1 is its own.
        dropout: of whole channels before the head's last layer; -1 is its own.
        most: metres that outputs reach; truths beyond are left out of the evaluation, and not of
            the loss.
        least: metres; truths below it are left out of the evaluation.
        scale: of outputs: "sigmoid" for the share of `most` that their sigmoid is, or "metres" as
            they are.
        loss: "silog" over the pixels of a batch (GLPDepth), "silog_image" as the mean over images,
            or "l1", the mean absolute error in metres.
        variance: lambda of the scale-invariant loss.
        crop: part of the picture that is evaluated: "" for all, or "eigen" (of 480 x 640).
        flip: evaluate the mean of the answers to an image and to its mirror image.
        original: evaluate in the pixels of the images as they are stored, instead of those that
            the transforms give; on the host. Pixels that the transforms cut off don't count.
    """

    headline, better, needs = "abs_rel", "lower", ("depth",)

    def __init__(
        self,
        info: Any,
        *,
        head: str = "glpdepth",
        channels: int = -1,
        dropout: float = -1.0,
        most: float = 10.0,
        least: float = 1e-3,
        scale: str = "sigmoid",
        loss: str = "silog",
        variance: float = 0.5,
        crop: str = "",
        flip: bool = False,
        original: bool = False,
    ):
        if loss not in LOSSES:
            raise UnknownName("loss", loss, LOSSES)
        if scale not in SCALES:
            raise UnknownName("scale", scale, SCALES)
        if crop not in CROPS:
            raise UnknownName("crop", crop, CROPS)
        if not 0 < least < most:
            raise ConfigError(f"least {least} must be above 0 and below most, {most}")
        if not 0 <= variance <= 1:
            raise ConfigError(f"variance must be in [0, 1], not {variance}")
        heads.dense_module(head)  # an unknown name is answered here
        self.given = dict(name=head, channels=channels, dropout=dropout)
        self.most, self.least, self.form, self.variance = most, least, loss, variance
        self.crop, self.scale = CROPS[crop], scale
        self.stored = ("depth",) if original else ()
        if flip:
            self.look = self._both_ways
        # A loss that is no sum over images is that of a whole batch.
        self.whole_batch = loss == "silog"

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        return heads.dense_head(like=like, outputs=1, rngs=rngs, **self.given)

    def _both_ways(self, forward: Any, images: Array) -> tuple[Array, ...]:
        """The outputs for images `b h w 3` in an evaluation, and for their mirror images."""
        return forward(images)[0], forward(images[:, :, ::-1])[0][:, :, ::-1]

    def metres(self, outputs: tuple[Array, ...]) -> Array:
        """Depth `b h w`: the mean over outputs."""
        if self.scale == "metres":
            return sum(x[..., 0] for x in outputs) / len(outputs)
        return self.most * sum(jax.nn.sigmoid(x[..., 0]) for x in outputs) / len(outputs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """The batch as it is."""
        return batch

    def _resized(self, outputs: tuple[Array, ...], size: tuple[int, int]) -> Array:
        """Depth `b h w` of a size."""
        return resize(self.metres(outputs)[..., None], size)[..., 0]

    def loss(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, dict]:
        """The loss, summed over the images (`l1`: pixels) that have any depth, and how many."""
        target = batch["depth"]
        depth = self._resized(outputs[:1], target.shape[1:3])
        valid = (target > 0) & (batch["mask"] > 0)[:, None, None]
        if self.form == "l1":
            return (
                jnp.where(valid, jnp.abs(depth - target), 0.0).sum(),
                valid.sum(dtype=jnp.float32),
                {},
            )
        how = dict(variance=self.variance, pooled=self.form == "silog")
        some, depth = valid.any((1, 2)).astype(jnp.float32), jnp.maximum(depth, self.least)
        return (silog(depth, target, valid, **how) * some).sum(), some.sum(), {}

    def rows(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Sums over the pixels of each image, as of `targets.depths.sums`."""
        target = batch["depth"]
        size = target.shape[1:3]
        # Where the host judges, what the transforms gave need not be of the crop's size.
        valid = self._counted(target) if not self.stored else target > 0
        return sums(self._resized(outputs, size).clip(self.least, self.most), target, valid)

    def _counted(self, target: Array | np.ndarray) -> Array:
        """Which pixels `b h w` an evaluation counts."""
        valid, size = (target > self.least) & (target < self.most), target.shape[1:3]
        if not self.crop:
            return valid
        wanted, rows, columns = self.crop
        if size != wanted:
            raise ConfigError(
                f"the Eigen crop is of {wanted[0]} x {wanted[1]} pixels, and "
                f"{'the stored image has' if self.stored else 'input.eval gives'} "
                f"{size[0]} x {size[1]}; resize to that, or set task.crop to ''"
            )
        inside = np.zeros(size, bool)
        inside[slice(*rows), slice(*columns)] = True
        return valid & inside[None]

    def judge(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> dict[str, Any]:
        """The sums over one image, in its own pixels."""
        target, found = (
            x[None] for x in (example["stored"]["depth"], self.restored(answer, example))
        )
        valid = self._counted(target) & (found > 0)
        return {k: v[0] for k, v in sums(found.clip(self.least, self.most), target, valid).items()}

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Nine errors as means over images, `pooled/` over all pixels; shares are in percent."""
        some = {k: v[rows["pixels"] > 0] for k, v in rows.items()}
        if len(rows["pixels"]) and not len(some["pixels"]):
            raise ConfigError(
                f"no pixel has a depth between {self.least} and {self.most} m; see task.most"
            )
        count = max(len(some["pixels"]), 1)
        images = {k: float(v.sum()) / count for k, v in errors(some).items()}
        pooled = errors({k: v.astype(np.float64).sum() for k, v in some.items()})
        found = images | {f"pooled/{k}": float(v) for k, v in pooled.items()}
        shares = {k: 100 * v for k, v in found.items() if k[-2:] in ("d1", "d2", "d3")}
        return {**found, **shares, "examples": len(rows["pixels"])}

    def answer(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Metres `b h w` at the head's own resolution."""
        return {"depth": jnp.maximum(self.metres(outputs), self.least)}

    def restored(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> np.ndarray:
        """Metres in the pixels of the image as stored, `h w`; 0 where it was not seen."""
        return frames.restored(answer["depth"], example["frame"], example["size"])

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File, nearest, median and farthest metres; a PNG of 16 bits with millimetres."""
        found = self.restored(answer, example)
        seen = found[found > 0] if (found > 0).any() else np.zeros(1)
        words = dict(zip(("nearest", "median", "farthest"), (0, 50, 100), strict=True))
        metres = {k: round(float(np.percentile(seen, v)), 4) for k, v in words.items()}
        return {"file": example["name"], **metres}, {".png": millimetres(found)}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image, the truth where it is known, and the answer, with a bar of metres."""
        panels, low, high = self._painted(answer, example)
        return pictures.with_bar(pictures.beside({"image": image, **panels}), low, high, "m")

    def panels(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """The truth where it is known, and the answer."""
        return self._painted(answer, example)[0]

    def _painted(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], float, float]:
        """The panels, and the metres at the ends of their colours."""
        maps = {"answer": self.restored(answer, example)}
        if "depth" in example:
            there = Field("values")
            truth = frames.unwarp(example["depth"], there, example["frame"], example["size"])
            maps = {"truth": truth, **maps}
        seen = np.concatenate([m[m > 0] for m in maps.values()])
        low, high = (float(v) for v in np.percentile(seen, (1, 99))) if len(seen) else (0.0, 1.0)
        panels = {k: pictures.heat(m, low, high, valid=m > 0) for k, m in maps.items()}
        return panels, low, high


def millimetres(depth: np.ndarray) -> bytes:
    """Depth `h w` in metres as a PNG file of 16 bits: millimetres, rounded, at most 65,535."""
    rounded = np.rint(depth * 1000.0).clip(0, 65535).astype(np.uint16)
    return pictures.png(rounded)
