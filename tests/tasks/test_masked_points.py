import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynadapt import backbones, model
from dynadapt.backbones import point_mae
from dynadapt.context import Context
from dynadapt.errors import ConfigError
from dynadapt.layers import SameKey
from dynadapt.tasks import masked_points
from tests import infos

pytestmark = pytest.mark.usefixtures("fast_compiling")

INFO = infos.clouds(points=40)
GIVEN = dict(groups=6, group_size=5)


def batch(b=3):
    points = np.random.default_rng(0).normal(size=(b, 40, 3)).astype(np.float32)
    return {"points": jnp.asarray(points), "mask": jnp.ones(b)}


def ready(seed=0, train=False):
    task = masked_points.Task(INFO, **GIVEN)
    return jax.device_get(task.prepare(batch(), jax.random.key(seed), train))


def test_hidden_cells_are_at_one_place_and_others_as_they_were():
    found, whole = ready(), np.asarray(batch()["points"])
    for seen, points, centers, hidden in zip(
        found["points"], whole, found["centers"], found["hidden"], strict=True
    ):
        known = (np.abs(seen[:, None] - points[None]).max(-1) == 0).any(1)
        assert known.all()  # a middle is a point of the cloud
        left, count = np.unique(seen, axis=0, return_counts=True)
        assert len(left) < 40 and count.max() > 1
        np.testing.assert_array_equal(centers, seen[np.asarray(point_mae.farthest_points(seen, 6))])
        for center, gone in zip(centers, hidden, strict=True):
            alone = (seen == center).all(1).sum() == 1
            assert alone or gone
    assert found["hidden"].any() and not found["hidden"].all()


def test_targets_are_groups_of_the_whole_cloud():
    found, whole = ready(), np.asarray(batch()["points"])
    for centers, target, points in zip(found["centers"], found["target"], whole, strict=True):
        for center, group in zip(centers, target, strict=True):
            near = np.square(points - center).sum(1).argsort()[:5]
            wanted = (points[near] - center) / masked_points.UNIT
            np.testing.assert_allclose(np.sort(group, 0), np.sort(wanted, 0), atol=1e-4)


def test_other_draws_hide_other_cells():
    assert (ready(0)["points"] != ready(1)["points"]).any()
    moved = ready(0, train=True)
    assert np.abs(moved["points"] - ready(0)["points"]).max() > 0.01


def test_chamfer_by_hand():
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(2, 7, 3)).astype(np.float32)
    away = np.square(one[:, None] - other[None]).sum(-1)
    wanted = away.min(1).mean() + away.min(0).mean()
    np.testing.assert_allclose(masked_points.chamfer(one, other), wanted, rtol=1e-5)
    assert float(masked_points.chamfer(one, one[::-1])) == 0


def test_loss_and_metrics_weigh_hidden_visible_and_masked():
    task, given = masked_points.Task(INFO, **GIVEN, visible_weight=0.25, whole_weight=2.0), ready()
    given["mask"] = np.float32([1, 0, 1])
    rng = np.random.default_rng(4)
    groups = rng.normal(size=given["target"].shape).astype(np.float32)
    whole = rng.normal(size=(3, 6, 3)).astype(np.float32)
    each = np.asarray(jax.vmap(jax.vmap(masked_points.chamfer))(groups, given["target"]))[[0, 2]]
    all_ = np.asarray(jax.vmap(masked_points.chamfer)(whole, given["centers"]))[[0, 2]]
    hidden = given["hidden"][[0, 2]]
    weight = np.where(hidden, 1, 0.25)
    total, count, logs = task.loss((groups, whole), given)
    wanted = 2 * (each * weight).sum() / weight.sum() + 2 * all_.sum()
    assert count == 2
    np.testing.assert_allclose(total, wanted, rtol=1e-4)
    np.testing.assert_allclose(logs["visible"], each[~hidden].mean(), rtol=1e-4)
    rows = {k: np.asarray(v)[[0, 2]] for k, v in task.rows((groups, whole), given).items()}
    value = task.value(rows)
    np.testing.assert_allclose(value["hidden_error"], each[hidden].mean(), rtol=1e-4)
    np.testing.assert_allclose(value["whole_error"], all_.mean(), rtol=1e-4)


def test_the_backbone_is_used_as_it_is():
    sizes = dict(dim=16, heads=2, depth=1, embed=4, **GIVEN)
    backbone = backbones.create("point_mini", rngs=nnx.Rngs(0), **sizes)
    task = masked_points.Task(INFO, **GIVEN)
    head = task.head(model.features(backbone, infos.spec(INFO)), rngs=nnx.Rngs(1))
    found = ready()
    features = backbone(jnp.asarray(found["points"]), Context())
    np.testing.assert_array_equal(features.places[1], found["centers"])
    groups, whole = head(features, Context())
    assert groups.shape == found["target"].shape and whole.shape == found["centers"].shape
    with pytest.raises(ConfigError, match="task.groups 6 must be the backbone's, 7"):
        other = backbones.abstract("point_mini", **(sizes | dict(groups=7)))
        task.head(model.features(other, infos.spec(INFO)), rngs=SameKey())


def test_refusals():
    for given in (dict(mask_ratio=1.0), dict(visible_weight=-1.0), dict(groups=1)):
        with pytest.raises(ConfigError, match=next(iter(given))):
            masked_points.Task(INFO, **given)
