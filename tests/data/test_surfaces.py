"""Points are uniform on their surfaces, which lie where they were put."""

import math

import numpy as np
import pytest

from dynadapt.data import surfaces
from dynadapt.data.surfaces import ball, box, disc, placed, ring, tube, turned

U = np.random.default_rng(0).random((20000, 2))


def test_points_of_a_box_are_on_its_faces_by_their_area():
    found = box(1.0, 2.0, 0.5)
    assert found.area == pytest.approx(2 * (2 * 4 + 2 * 1 + 4 * 1))
    points = found.at(U)
    near = np.isclose(np.abs(points), [1.0, 2.0, 0.5])
    assert near.any(1).all() and (np.abs(points) <= [1.0, 2.0, 0.5]).all()
    shares = near.mean(0)
    assert shares == pytest.approx(np.array([4, 2, 8]) / 14, abs=0.02)
    assert np.abs(points.mean(0)).max() < 0.05  # both faces of each axis
    face = points[near[:, 0]]
    assert np.abs(np.histogram(face[:, 1], 4, (-2, 2))[0] / len(face) - 0.25).max() < 0.02


def test_points_of_a_cone_are_denser_where_it_is_wide():
    found = tube(1.0, 0.0, 2.0)
    assert found.area == pytest.approx(math.pi * math.sqrt(5))
    points = found.at(U)
    radius = np.hypot(points[:, 0], points[:, 2])
    assert np.allclose(radius, 1 - points[:, 1] / 2)
    assert (points[:, 1] < 1).mean() == pytest.approx(3 / 4, abs=0.02)
    straight = tube(0.5, 0.5, 2.0)
    assert straight.area == pytest.approx(2 * math.pi)
    assert straight.at(U)[:, 1].mean() == pytest.approx(1, abs=0.02)


def test_a_disc_is_flat_and_full():
    points = disc(2.0).at(U)
    assert disc(2.0).area == pytest.approx(4 * math.pi) and not points[:, 1].any()
    assert (np.linalg.norm(points, axis=1) < 1).mean() == pytest.approx(1 / 4, abs=0.02)


def test_balls_and_rings():
    points = ball(1.0, 2.0, 3.0).at(U)
    assert np.allclose(np.linalg.norm(points / [1, 2, 3], axis=1), 1)
    assert ball(1.0, 1.0, 1.0).area == pytest.approx(4 * math.pi)
    half = ring(1.0, 0.1, 0, math.pi)
    points = half.at(U)
    assert np.allclose(np.hypot(np.hypot(points[:, 0], points[:, 1]) - 1, points[:, 2]), 0.1)
    assert points[:, 1].min() > -1e-9 and half.area == pytest.approx(2 * math.pi**2 * 0.1)


def test_turns_are_about_their_axis_and_come_first():
    for axis in range(3):
        matrix = turned(0.7, axis)
        assert np.allclose(matrix @ matrix.T, np.eye(3))
        assert np.linalg.det(matrix) == pytest.approx(1)
        assert np.allclose(matrix @ np.eye(3)[axis], np.eye(3)[axis])
    assert np.allclose(turned(math.pi / 2, 2) @ [1, 0, 0], [0, 1, 0])
    points = placed(box(1.0, 0.1, 0.1), 0, 5, 0, turned(math.pi / 2, 2)).at(U)
    assert points[:, 1].min() == pytest.approx(4) and points[:, 1].max() == pytest.approx(6)


def test_pieces_share_the_points_by_their_area():
    pieces = [(7, disc(1.0)), (3, placed(disc(2.0), y=1)), (7, placed(disc(1.0), y=2))]
    points, numbers = surfaces.draw(pieces, 6000, np.random.default_rng(0))
    assert points.shape == (6000, 3) and numbers.dtype == np.int32
    assert (numbers == 3).mean() == pytest.approx(4 / 6, abs=0.02)
    assert ((points[:, 1] == 1) == (numbers == 3)).all()
