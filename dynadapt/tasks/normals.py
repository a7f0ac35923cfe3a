"""Surface normals: the unit vector that stands on the surface at each pixel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import heads, pictures
from dynadapt.data import frames
from dynadapt.data.fields import Field
from dynadapt.errors import DataError
from dynadapt.layers.resample import resize

Array = jax.Array
Batch = dict[str, Array]

WITHIN = (11.25, 22.5, 30)  # degrees
_TINY = 1e-24  # a vector whose square is shorter has no direction


class Task:
    """A unit vector for each pixel, `info.fields["normals"]`; zero where none is known.

    Args:
        info: description of the data set.
        head: name of a dense head, a module of `heads`.
        channels: of the head; -1 is its own.
        dropout: of whole channels before the head's last layer; -1 is its own.
    """

    headline, better, needs = "mean_deg", "lower", ("normals",)
    beside = ("rmse_deg",)

    def __init__(
        self, info: Any, *, head: str = "hrnet", channels: int = -1, dropout: float = -1.0
    ):
        heads.dense_module(head)  # an unknown name is answered here
        self.given = dict(name=head, channels=channels, dropout=dropout)

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        return heads.dense_head(like=like, outputs=3, rngs=rngs, **self.given)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """The batch as it is."""
        return batch

    def _read(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, Array]:
        """Unit vectors answered, those given as true, `b h w 3`, and which are known, `b h w`."""
        target = batch["normals"]
        found = unit(resize(outputs[0], target.shape[1:3]))
        return found, target, jnp.square(target).sum(-1) > _TINY

    def loss(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, dict]:
        """The absolute error of the three axes, summed over known pixels, and how many count."""
        found, target, known = self._read(outputs, batch)
        known &= (batch["mask"] > 0)[:, None, None]
        total = jnp.where(known[..., None], jnp.abs(found - target), 0.0).sum()
        return total, 3.0 * known.sum(dtype=jnp.float32), {}

    def rows(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Of the known pixels of each image: sums of degrees and of their squares, their median,
        how many are `WITHIN` so many degrees, and how many there are."""
        found, target, known = self._read(outputs, batch)
        angle = degrees(found, unit(target))
        some = jnp.where(known, angle, 0.0)
        within = [((angle < limit) & known).sum((1, 2)) for limit in WITHIN]
        # Row by row: a float32 sum over a whole picture is off in the sixth digit.
        return {
            "degrees": some.sum(2).sum(1),
            "square": jnp.square(some).sum(2).sum(1),
            "median": median(angle, known),
            "within": jnp.stack(within, axis=1),
            "pixels": known.sum((1, 2)),
        }

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """`mean_deg` and `rmse_deg`, degrees over all pixels; `median_deg`, the mean over images of
        their medians; `within_…`, percent of all pixels."""
        if len(rows["pixels"]) and not rows["pixels"].any():
            raise DataError("no pixel of the evaluated images has a known normal")
        pixels = max(int(rows["pixels"].sum(dtype=np.int64)), 1)
        some = rows["median"][rows["pixels"] > 0].astype(np.float64)
        within = 100 * rows["within"].sum(0, dtype=np.int64) / pixels
        return {
            "mean_deg": float(rows["degrees"].sum(dtype=np.float64)) / pixels,
            "rmse_deg": float(np.sqrt(rows["square"].sum(dtype=np.float64) / pixels)),
            "median_deg": float(some.sum()) / max(len(some), 1),
            **{f"within_{k}": float(v) for k, v in zip(WITHIN, within, strict=True)},
            "examples": len(rows["pixels"]),
        }

    def answer(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Unit vectors `b h w 3` at the head's own resolution."""
        return {"normals": unit(outputs[0])}

    def restored(self, answer: dict[str, np.ndarray], example: dict[str, Any]) -> np.ndarray:
        """Unit vectors in the pixels of the image as stored, `h w 3`; 0 where it was not seen."""
        frame, size = example["frame"], example["size"]
        found = frames.restored(answer["normals"], frame, size, kind="vectors")
        length = np.linalg.norm(found, axis=-1, keepdims=True)
        return found / np.where(length > 0, length, 1)

    def _truth(self, example: dict[str, Any]) -> np.ndarray:
        """The true vectors in the pixels of the image as stored."""
        field = Field("vectors")
        return frames.unwarp(example["normals"], field, example["frame"], example["size"])

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File, and the mean degrees where the truth is known; a PNG of x, y, z as red, green and
        blue, 0 for -1 and 255 for 1."""
        found, values = self.restored(answer, example), {"file": example["name"]}
        if "normals" in example:
            truth = self._truth(example)
            known = (truth != 0).any(-1) & (found != 0).any(-1)
            angle = np.asarray(degrees(found, truth))[known]
            values["mean_deg"] = round(float(angle.mean()) if len(angle) else 0.0, 4)
        return values, {".png": pictures.png(pictures.directions(found))}

    def panels(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """The truth where it is known, and the answer."""
        truth = {"truth": self._truth(example)} if "normals" in example else {}
        maps = {**truth, "answer": self.restored(answer, example)}
        return {k: pictures.directions(m) for k, m in maps.items()}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """The image, the truth where it is known, and the answer."""
        return pictures.beside({"image": image, **self.panels(answer, example)})


def unit(vectors: Array) -> Array:
    """Vectors `… 3` of length 1; those of none stay as they are."""
    square = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.where(square > _TINY, square, 1.0))


def degrees(one: Any, other: Any) -> Array:
    """Angles `…` between unit vectors `… 3`; exact where they are small, as arc cosines are not."""
    apart, along = (jnp.sqrt(jnp.square(x).sum(-1)) for x in (one - other, one + other))
    return 2 * jnp.degrees(jnp.arctan2(apart, along))


def median(values: Array, known: Array) -> Array:
    """The median over the known ones of each of `b h w`; 0 without any."""
    count = known.sum((1, 2))
    order = jnp.sort(jnp.where(known, values, jnp.inf).reshape(len(values), -1), axis=1)
    middle = jnp.stack([jnp.maximum(count - 1, 0) // 2, count // 2], axis=1)
    found = jnp.take_along_axis(order, middle, axis=1, mode="clip").mean(1)
    return jnp.where(count > 0, found, 0.0)
