"""Masked prediction of point clouds: what is where all points were moved to one?

The points of some cells of a cloud all move to the middle of their cell before the backbone sees
it, and a head says, at every group, where its points are (after Point-MAE, arXiv 2203.06604).
Because a group of points at one place says nothing, the backbone needs no mask token and is used
unchanged. From the class token a layer says where the groups are. In training every second cloud of
a batch gives way to another view of the one before it, scaled, turned and hidden otherwise, and
codes of both shall be nearer to each other than to those of all other clouds (after SimCLR, arXiv
2002.05709).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import choices, pictures
from dynadapt.backbones.point_mae import farthest_points, nearest
from dynadapt.errors import ConfigError
from dynadapt.heads.reconstruction import ReconstructionHead
from dynadapt.targets import clouds

Array = jax.Array
Batch = dict[str, Array]

TEMPERATURE = 0.1  # of the comparison of codes
UNIT = 0.2  # length in which points of a group are measured: about the radius of a group


class Task:
    """Masked prediction; labels are not looked at.

    Args:
        info: description of the data set.
        groups: of the backbone, and cells of a cloud.
        group_size: points of a group, the backbone's.
        mask_ratio: part of the cells that are hidden.
        visible_weight: weight of a visible group's error, where a hidden one's is 1.
        whole_weight: weight of the class token's error.
        pair_weight: weight of the comparison of views.
    """

    headline, better, needs = "hidden_error", "lower", ("points",)
    whole_batch = True  # views are compared with all others

    def __init__(
        self,
        info: Any,
        *,
        groups: int = 32,
        group_size: int = 16,
        mask_ratio: float = 0.6,
        visible_weight: float = 0.1,
        whole_weight: float = 0.5,
        pair_weight: float = 0.2,
    ):
        for name, value, interval in (
            ("mask_ratio", mask_ratio, "(0, 1)"),
            ("visible_weight", visible_weight, "[0, inf)"),
            ("whole_weight", whole_weight, "[0, inf)"),
            ("pair_weight", pair_weight, "[0, inf)"),
            ("groups", groups, "[2, 65536]"),
            ("group_size", group_size, "[1, 65536]"),
        ):
            if not choices.inside(value, interval):
                raise ConfigError(f"{name} must be {choices.words(interval)}, not {value}")
        self.groups, self.group_size, self.mask_ratio = groups, group_size, mask_ratio
        self.visible_weight, self.whole_weight = visible_weight, whole_weight
        self.pair_weight = pair_weight

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        if like.maps[-1].shape[1] != self.groups:
            raise ConfigError(
                f"task.groups {self.groups} must be the backbone's, {like.maps[-1].shape[1]}"
            )
        return ReconstructionHead(like.maps[-1].shape[-1], self.groups, self.group_size, rngs=rngs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Hides cells of `points`; adds `target` `b g k 3`, `centers` `b g 3`, `hidden` `b g`.

        The groups are those that the backbone finds in what is left. While training clouds are
        scaled, shifted and turned, and `pair` `b` is true for views of clouds that have another;
        those are neighbours.
        """
        key = jax.random.key(0) if key is None else key
        to_vary, to_hide = jax.random.split(key)
        points, mask = batch["points"], batch["mask"]
        pair = jnp.zeros(len(points), bool)
        if train and self.pair_weight and len(points) > 1:
            twice = jnp.arange(len(points)) // 2 * 2
            points, mask = points[twice], mask[twice]
            pair = twice + 1 < len(points)
        if train:
            points = clouds.varied(to_vary, points, turn=True, jitter=0.0)
        keys = jax.random.split(to_hide, len(points))
        points, target, centers, hidden = jax.vmap(self._hidden)(points, keys)
        found = {"target": target, "centers": centers, "hidden": hidden, "pair": pair}
        return {**batch, "points": points, "mask": mask, **found}

    def _hidden(self, points: Array, key: Array) -> tuple[Array, ...]:
        """One cloud `n 3` as the backbone sees it, and what it is to say."""
        to_order, to_choose = jax.random.split(key)
        # The first point is a middle always: another one each time.
        points = jax.random.permutation(to_order, points)
        middles = points[farthest_points(points, self.groups)]
        cell = nearest(middles, points, 1)[:, 0]  # of each point, `n`
        order = jax.random.permutation(to_choose, self.groups)
        gone = (order < round(self.mask_ratio * self.groups))[cell]
        left = jnp.where(gone[:, None], middles[cell], points)
        chosen = farthest_points(left, self.groups)
        centers = left[chosen]
        target = points[nearest(points, centers, self.group_size)] - centers[:, None]
        return left, target / UNIT, centers, gone[chosen]

    def loss(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, Array, dict]:
        """Weighted Chamfer distances of groups and of whole clouds, and the codes' entropy."""
        error, groups, open_, visible, whole = self._sums(outputs, batch)
        hidden, weight = error.sum(), self.visible_weight
        count = jnp.maximum(groups.sum() + weight * visible.sum(), 1e-9)
        mask = batch["mask"]
        mean = (hidden + weight * open_.sum()) / count
        logs = {
            "hidden": hidden / jnp.maximum(groups.sum(), 1),
            "visible": open_.sum() / jnp.maximum(visible.sum(), 1),
            "whole": whole.sum() / jnp.maximum(mask.sum(), 1),
        }
        total = mean * mask.sum() + self.whole_weight * whole.sum()
        if self.pair_weight:
            there = mask * batch["pair"]
            pairs = told_apart(outputs[2], there)
            logs["pairs"] = pairs.sum() / jnp.maximum(there.sum(), 1)
            total += self.pair_weight * pairs.sum()
        return total, mask.sum(), logs

    def _sums(self, outputs: tuple[Array, ...], batch: Batch) -> tuple[Array, ...]:
        """Of each cloud distance and count of hidden groups, of visible ones, and of the whole."""
        groups, whole = outputs[:2]
        distance = jax.vmap(jax.vmap(chamfer))(groups, batch["target"])
        there = batch["mask"][:, None]
        under, open_ = batch["hidden"] * there, ~batch["hidden"] * there
        sums = [x.sum(1) for x in (distance * under, under, distance * open_, open_)]
        return *sums, jax.vmap(chamfer)(whole, batch["centers"]) * batch["mask"]

    def rows(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Distance of the hidden groups, their number, and distance of the whole cloud."""
        error, groups, _, _, whole = self._sums(outputs, batch)
        return {"error": error, "groups": groups, "whole": whole}

    def value(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """`hidden_error`: mean Chamfer distance of a hidden group; `whole_error` of a cloud."""
        error, groups, whole = (rows[k].astype(np.float64) for k in ("error", "groups", "whole"))
        return {
            "hidden_error": float(error.sum() / max(groups.sum(), 1)),
            "whole_error": float(whole.sum() / max(len(whole), 1)),
        }

    def answer(self, outputs: tuple[Array, ...], batch: Batch) -> dict[str, Array]:
        """Where the class token says that the groups are, `b g 3`."""
        return {"whole": outputs[1]}

    def record(
        self, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """File and the middle of the answer; there is none for a user here."""
        return {
            "file": example["name"],
            "height": round(float(answer["whole"][:, 1].mean()), 4),
        }, {}

    def draw(
        self, image: np.ndarray, answer: dict[str, np.ndarray], example: dict[str, Any]
    ) -> np.ndarray:
        """Three views of the cloud."""
        return pictures.views(image)


def chamfer(one: Array, other: Array) -> Array:
    """The Chamfer distance of points `n 3` and `m 3`: mean squared distances to the nearest."""
    away = jnp.square(one[:, None] - other[None]).sum(-1)
    return away.min(1).mean() + away.min(0).mean()


def told_apart(codes: Array, there: Array) -> Array:
    """The cross-entropy of each code's neighbour among all codes, `b`; 0 where it is not `there`.

    Args:
        codes: `b c`; numbers 0 and 1 are neighbours, 2 and 3, and so on.
        there: `b`, 1 for those that count and are compared with.
    """
    unit = codes / jnp.maximum(jnp.linalg.norm(codes, axis=-1, keepdims=True), 1e-6)
    number = jnp.arange(len(codes))
    compared = (there > 0)[None] & (number[:, None] != number[None])
    scores = jnp.where(compared, unit @ unit.T / TEMPERATURE, -1e9)
    own = jax.nn.log_softmax(scores)[number, number ^ 1]
    return jnp.where(there > 0, -own, 0.0)
