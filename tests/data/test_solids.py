"""Solids are met where they stand, and their normals are those of their surfaces."""

import math

import numpy as np
import pytest

from dynadapt.data import solids

SIZE = 64
KINDS = ("box", "ellipsoid", "cylinder", "cone")


def plain(kind="box", yaw=0.0, centre=(0.0, 3.0, 0.5), half=(0.8, 0.2, 0.5)):
    return solids.Solid(kind, np.array(centre), np.array(half), yaw, np.array([1.0, 0.0, 0.0]))


def meet(solid, camera):
    depth, normal = solids.meet(solid, *solids.cast(camera, SIZE))
    return depth.reshape(SIZE, -1), normal.reshape(SIZE, -1, 3)


def test_a_box_is_where_it_was_put():
    # a camera at half a metre looks straight at the front of the box, 2.8 metres away
    depth, normal = meet(plain(), solids.Camera(0.5, 0.0))
    hit = depth < solids.FAR
    np.testing.assert_allclose(depth[hit], 2.8, rtol=1e-5)
    np.testing.assert_allclose(normal[hit], np.tile([0, -1, 0], (hit.sum(), 1)), atol=1e-5)
    # 1.6 wide and 1 high at that depth, in a view that is 2 * 0.6 * 2.8 wide
    rows, columns = hit.any(1).sum(), hit.any(0).sum()
    assert abs(columns - 64 * 1.6 / (1.2 * 2.8)) <= 1
    assert abs(rows - 64 * 1.0 / (1.2 * 2.8)) <= 1


def test_a_ball_is_round_and_a_turned_box_is_not():
    depth, normal = meet(plain("ellipsoid", half=(0.5, 0.5, 0.5)), solids.Camera(0.5, 0.0))
    assert depth.min() == pytest.approx(2.5, abs=0.01)
    middle = normal[32, 32]
    np.testing.assert_allclose(middle, [0, -1, 0], atol=0.05)
    # turned by a quarter, the box shows its short side
    depth, _ = meet(plain(yaw=math.pi / 2), solids.Camera(0.5, 0.0))
    columns = (depth < solids.FAR).any(0).sum()
    assert abs(columns - 64 * 0.4 / (1.2 * 2.2)) <= 1
    assert depth.min() == pytest.approx(2.2, abs=0.01)


def test_from_above_yaw_turns_against_the_clock():
    solid = plain(yaw=math.pi / 4, centre=(0.0, 0.0, 0.1), half=(0.8, 0.1, 0.1))
    hit = meet(solid, solids.Camera(2.5, math.pi / 2))[0] < solids.FAR
    rows, columns = np.nonzero(hit)
    # from lower left to upper right: columns rise as rows fall
    assert np.corrcoef(rows, columns)[0, 1] < -0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pitch", [0.2, 0.9])
def test_points_lie_on_the_surface_and_normals_stand_on_it(kind, pitch):
    half, centre, yaw = np.array([0.5, 0.3, 0.4]), np.array([0.1, 1.6, 0.4]), 0.7
    solid = plain(kind, yaw=yaw, centre=centre, half=half)
    eye, rays = solids.cast(solids.Camera(1.6, pitch), 48)
    depth, normal = solids.meet(solid, eye, rays)
    hit = depth < solids.FAR
    assert hit.sum() > 50
    sine, cosine = math.sin(yaw), math.cos(yaw)
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    own = (eye + depth[hit, None] * rays[hit] - centre) @ turn.T / half

    def outside(p):  # above 1 outside, 1 on the surface
        x, y, z = p.T
        r = np.hypot(x, y)
        return {
            "box": np.abs(p).max(1),
            "ellipsoid": np.linalg.norm(p, axis=1),
            "cylinder": np.maximum(r, np.abs(z)),
            "cone": np.maximum(2 * r + z, -z),
        }[kind]

    assert np.abs(outside(own) - 1).max() < 2e-3
    assert np.abs(np.linalg.norm(normal[hit], axis=1) - 1).max() < 1e-5
    assert ((normal[hit] * rays[hit]).sum(1) < 1e-3).all()  # they face the camera
    step = normal[hit] @ turn.T / half * 0.02
    assert (outside(own + step) > 1).all()
    # nothing of the solid is before the first point
    for share in (0.5, 0.9, 0.99):
        before = (eye + share * depth[hit, None] * rays[hit] - centre) @ turn.T / half
        assert (outside(before) > 1 - 1e-3).all()


def test_a_cone_tapers_to_its_top_and_a_cylinder_does_not():
    rows = {}
    for kind in ("cone", "cylinder"):
        depth, _ = meet(plain(kind, half=(0.5, 0.5, 0.5)), solids.Camera(0.5, 0.0))
        widths = (depth < solids.FAR).sum(1)
        rows[kind] = widths[widths > 0]
    whole = max(rows["cylinder"])
    assert rows["cone"][0] <= 2 and abs(max(rows["cone"]) - whole) <= 1
    # half as wide at half its height, where the cylinder is as wide as anywhere
    middle = len(rows["cone"]) // 2
    assert abs(rows["cone"][middle] - whole / 2) <= 2
    assert abs(rows["cylinder"][middle] - whole) <= 1
