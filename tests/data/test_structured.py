"""Scenes of structured tasks are what their label says, and stay the pictures that they were."""

import math

import numpy as np
import pytest

from dynadapt.data import structured


@pytest.mark.parametrize("task", structured.TASKS)
def test_pictures_are_a_function_of_task_and_index(task):
    first = [structured.draw(task, i).copy() for i in range(24)]
    structured.draw.cache_clear()
    for i in (23, 5, 0):
        np.testing.assert_array_equal(structured.draw(task, i), first[i])
    assert first[0].shape == (64, 64, 3) and first[0].dtype == np.uint8
    assert len({image.tobytes() for image in first}) == 24
    other = next(name for name in structured.TASKS if name != task)
    assert structured.draw(other, 0).tobytes() != first[0].tobytes()
    with pytest.raises(ValueError, match="read-only"):
        structured.draw(task, 0)[0] = 0


@pytest.mark.parametrize("task", structured.TASKS)
def test_every_class_is_drawn_about_as_often(task):
    classes = len(structured.TASKS[task][1])
    counts = np.bincount([structured.label(task, i) for i in range(1000)], minlength=classes)
    assert len(counts) == classes
    assert (abs(counts - 1000 / classes) < 4 * math.sqrt(1000 / classes)).all()


@pytest.mark.parametrize("task", structured.TASKS)
def test_scenes_have_what_their_label_says(task, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        structured, "render", lambda camera, solids, rng: drawn.append(solids) or IMAGE
    )
    structured.draw.cache_clear()
    for i in range(60):
        structured.draw(task, i)
        label, solids = structured.label(task, i), drawn[-1]
        turn = solids[0].yaw
        found = {
            "count": len(solids) - 1,
            "distance": math.floor(min(s.centre[1] for s in solids)) - 2,
            "orientation": math.floor(turn / (math.pi / 8)),
            "azimuth": math.floor(turn / (math.pi / 4)),
        }[task]
        assert found == label
    structured.draw.cache_clear()


IMAGE = np.zeros((64, 64, 3), np.uint8)


def test_pictures_are_those_that_runs_were_trained_on():
    means = {"count": 80.286, "distance": 110.1124, "orientation": 75.8372, "azimuth": 125.0173}
    for task, mean in means.items():
        assert structured.draw(task, 0).mean() == pytest.approx(mean, abs=0.01)
