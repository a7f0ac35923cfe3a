"""Normals of depth are those of its surfaces, edges lie between regions, the nearest is salient."""

import numpy as np
import pytest

from dynadapt.data import derived, scenes


def angles(found, wanted):
    """Degrees between vectors where they are known, and the share of which they are."""
    known = found.any(-1)
    cosine = np.clip((found * wanted).sum(-1)[known], -1, 1)
    return np.degrees(np.arccos(cosine)), known.mean()


@pytest.mark.parametrize("centre", [(), (3.0, 9.0)])
def test_a_plane_has_one_normal_wherever_the_axis_is(centre):
    normal = np.array([0.3, -0.6, -0.5]) / np.linalg.norm([0.3, -0.6, -0.5])
    h, w, focal = 24, 320, 300.0
    x, y = centre or ((w - 1) / 2, (h - 1) / 2)
    rays = np.stack(np.meshgrid(np.arange(w) - x, np.arange(h) - y), -1) / focal
    depth = (-1.5 / (rays @ normal[:2] + normal[2])).astype(np.float32)
    found, share = angles(derived.normals(depth, focal, centre), normal)
    assert found.max() < 0.1 and share > 0.8
    tilted, _ = angles(derived.normals(depth, focal, (x + 60, y)), normal)
    assert tilted.min() > 1  # so the axis counts


def test_normals_of_scenes():
    scene = scenes.draw("train", 3, 160, "plain", 0)
    focal = scenes.intrinsics(160)[0, 0]
    found, share = angles(derived.normals(scene["depth"], focal), scene["normals"])
    assert np.median(found) < 0.1 and np.percentile(found, 90) < 1 and share > 0.9


def test_unknown_depths_and_steps_have_no_normals():
    depth = np.ones((20, 20), np.float32)
    depth[:, 10:] = 2
    depth[3, 3] = 0
    found = derived.normals(depth, 20.0)
    assert not found[:, 9:11].any() and not found[3, 3].any()
    np.testing.assert_allclose(found[10, 5], [0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(found[10, 15], [0, 0, -1], atol=1e-6)
    assert found.dtype == np.float32
    assert not derived.normals(np.zeros((4, 4), np.float32), 5.0).any()
    assert not derived.normals(np.ones((1, 2), np.float32), 5.0).any()


def test_edges_are_one_pixel_wide_and_void_has_none():
    regions = np.array([[5, 5, 9], [5, 5, 9], [-1, 7, 9]])
    assert derived.edges(regions, -1).tolist() == [[0, 0, 1], [0, 0, 1], [-1, 1, 1]]
    assert derived.edges(regions).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1]]
    scene = scenes.draw("train", 0, 32, "plain", 0)
    found = derived.edges(scene["labels"])  # of which some are of two things of one class
    assert found.sum() and not (found & ~scene["edges"]).any()


def test_the_nearest_has_the_least_median_depth():
    instances = np.repeat([[0, 2, 5, 9]], 3, axis=0)
    depth = np.float32([[0.1, 3, 2, 0], [0.1, 3, 2, 0], [0.1, 1, 9, 0]])
    assert derived.nearest(instances, depth)[0].tolist() == [0, 0, 1, 0]
    assert not derived.nearest(instances, np.zeros_like(depth)).any()
