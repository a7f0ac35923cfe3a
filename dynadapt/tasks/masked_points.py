"""Masked prediction of point clouds: what is where all points were moved to one?

The points of some cells of a cloud all move to the middle of their cell before the backbone sees
it, and a linear layer says, at every group, where its points are (after Point-MAE, arXiv
2203.06604). Because a group of points at one place says nothing, the backbone needs no mask token
and no decoder, and is used unchanged. From the class token another layer says where the groups are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynadapt import choices, pictures
from dynadapt.backbones.point_mae import farthest_points, nearest
from dynadapt.errors import ConfigError
from dynadapt.heads.points import ReconstructionHead
from dynadapt.targets import clouds

Array = jax.Array
Batch = dict[str, Array]

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
    """

    headline, better, needs = "hidden_error", "lower", ("points",)

    def __init__(
        self,
        info: Any,
        *,
        groups: int = 32,
        group_size: int = 16,
        mask_ratio: float = 0.6,
        visible_weight: float = 0.1,
        whole_weight: float = 0.5,
    ):
        for name, value, interval in (
            ("mask_ratio", mask_ratio, "(0, 1)"),
            ("visible_weight", visible_weight, "[0, inf)"),
            ("whole_weight", whole_weight, "[0, inf)"),
            ("groups", groups, "[2, 65536]"),
            ("group_size", group_size, "[1, 65536]"),
        ):
            if not choices.inside(value, interval):
                raise ConfigError(f"{name} must be {choices.words(interval)}, not {value}")
        self.groups, self.group_size, self.mask_ratio = groups, group_size, mask_ratio
        self.visible_weight, self.whole_weight = visible_weight, whole_weight

    def head(self, like: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        """The head for features like these."""
        if like.maps[-1].shape[1] != self.groups:
            raise ConfigError(
                f"task.groups {self.groups} must be the backbone's, {like.maps[-1].shape[1]}"
            )
        return ReconstructionHead(like.maps[-1].shape[-1], self.groups, self.group_size, rngs=rngs)

    def prepare(self, batch: Batch, key: Array | None, train: bool) -> Batch:
        """Hides cells of `points`; adds `target` `b g k 3`, `centers` `b g 3`, `hidden` `b g`.

        The groups are those that the backbone finds in what is left. Clouds are scaled, shifted and
        turned while training.
        """
        key = jax.random.key(0) if key is None else key
        to_vary, to_hide = jax.random.split(key)
        points = batch["points"]
        if train:
            points = clouds.varied(to_vary, points, turn=True, jitter=0.0)
        keys = jax.random.split(to_hide, len(points))
        points, target, centers, hidden = jax.vmap(self._hidden)(points, keys)
        return {**batch, "points": points, "target": target, "centers": centers, "hidden": hidden}

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

    def loss(self, outputs: tuple[Array, Array], batch: Batch) -> tuple[Array, Array, dict]:
        """Weighted Chamfer distances of groups, and of the class token's whole cloud."""
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
        return total, mask.sum(), logs

    def _sums(self, outputs: tuple[Array, Array], batch: Batch) -> tuple[Array, ...]:
        """Of each cloud distance and count of hidden groups, of visible ones, and of the whole."""
        groups, whole = outputs
        distance = jax.vmap(jax.vmap(chamfer))(groups, batch["target"])
        there = batch["mask"][:, None]
        under, open_ = batch["hidden"] * there, ~batch["hidden"] * there
        sums = [x.sum(1) for x in (distance * under, under, distance * open_, open_)]
        return *sums, jax.vmap(chamfer)(whole, batch["centers"]) * batch["mask"]

    def rows(self, outputs: tuple[Array, Array], batch: Batch) -> dict[str, Array]:
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

    def answer(self, outputs: tuple[Array, Array], batch: Batch) -> dict[str, Array]:
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
