import math

import numpy as np
import pytest

from dynadapt.data import scenes


def plain(kind="box", yaw=0.0, centre=(0.0, 3.0, 0.5), half=(0.8, 0.2, 0.5)):
    return scenes.Solid(kind, np.array(centre), np.array(half), yaw, np.array([1.0, 0.0, 0.0]))


def meet(solid, camera):
    depth, normal = scenes._meet(solid, *scenes._rays(camera))
    return depth.reshape(scenes.SIZE, -1), normal.reshape(scenes.SIZE, -1, 3)


@pytest.mark.parametrize("task", scenes.TASKS)
def test_pictures_are_a_function_of_task_and_index(task):
    first = [scenes.draw(task, i).copy() for i in range(24)]
    scenes.draw.cache_clear()
    for i in (23, 5, 0):
        np.testing.assert_array_equal(scenes.draw(task, i), first[i])
    assert first[0].shape == (64, 64, 3) and first[0].dtype == np.uint8
    assert len({image.tobytes() for image in first}) == 24
    other = next(name for name in scenes.TASKS if name != task)
    assert scenes.draw(other, 0).tobytes() != first[0].tobytes()
    with pytest.raises(ValueError, match="read-only"):
        scenes.draw(task, 0)[0] = 0


@pytest.mark.parametrize("task", scenes.TASKS)
def test_every_class_is_drawn_about_as_often(task):
    classes = len(scenes.TASKS[task][1])
    counts = np.bincount([scenes.label(task, i) for i in range(1000)], minlength=classes)
    assert len(counts) == classes
    assert (abs(counts - 1000 / classes) < 4 * math.sqrt(1000 / classes)).all()


@pytest.mark.parametrize("task", scenes.TASKS)
def test_scenes_have_what_their_label_says(task, monkeypatch):
    drawn = []
    monkeypatch.setattr(scenes, "render", lambda camera, solids, rng: drawn.append(solids) or IMAGE)
    scenes.draw.cache_clear()
    for i in range(60):
        scenes.draw(task, i)
        label, solids = scenes.label(task, i), drawn[-1]
        turn = solids[0].yaw
        found = {
            "count": len(solids) - 1,
            "distance": math.floor(min(s.centre[1] for s in solids)) - 2,
            "orientation": math.floor(turn / (math.pi / 8)),
            "azimuth": math.floor(turn / (math.pi / 4)),
        }[task]
        assert found == label
    scenes.draw.cache_clear()


IMAGE = np.zeros((64, 64, 3), np.uint8)


def test_a_box_is_where_it_was_put():
    # a camera at half a metre looks straight at the front of the box, 2.8 metres away
    depth, normal = meet(plain(), scenes.Camera(0.5, 0.0))
    hit = depth < scenes.FAR
    np.testing.assert_allclose(depth[hit], 2.8, rtol=1e-5)
    np.testing.assert_allclose(normal[hit], np.tile([0, -1, 0], (hit.sum(), 1)), atol=1e-5)
    # 1.6 wide and 1 high at that depth, in a view that is 2 * 0.6 * 2.8 wide
    rows, columns = hit.any(1).sum(), hit.any(0).sum()
    assert abs(columns - 64 * 1.6 / (1.2 * 2.8)) <= 1
    assert abs(rows - 64 * 1.0 / (1.2 * 2.8)) <= 1


def test_a_ball_is_round_and_a_turned_box_is_not():
    depth, normal = meet(plain("ellipsoid", half=(0.5, 0.5, 0.5)), scenes.Camera(0.5, 0.0))
    assert depth.min() == pytest.approx(2.5, abs=0.01)
    middle = normal[32, 32]
    np.testing.assert_allclose(middle, [0, -1, 0], atol=0.05)
    # turned by a quarter, the box shows its short side
    depth, _ = meet(plain(yaw=math.pi / 2), scenes.Camera(0.5, 0.0))
    columns = (depth < scenes.FAR).any(0).sum()
    assert abs(columns - 64 * 0.4 / (1.2 * 2.2)) <= 1
    assert depth.min() == pytest.approx(2.2, abs=0.01)


def test_from_above_yaw_turns_against_the_clock():
    solid = plain(yaw=math.pi / 4, centre=(0.0, 0.0, 0.1), half=(0.8, 0.1, 0.1))
    hit = meet(solid, scenes.Camera(2.5, math.pi / 2))[0] < scenes.FAR
    rows, columns = np.nonzero(hit)
    # from lower left to upper right: columns rise as rows fall
    assert np.corrcoef(rows, columns)[0, 1] < -0.9
