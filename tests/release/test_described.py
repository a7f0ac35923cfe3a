"""What users of an exported model are told of its inputs and outputs."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dynadapt.commands.config_file import read_config
from dynadapt.data.images import NORMALISATIONS
from dynadapt.release import described
from tests.test_docs import ROOT

SHAPES = {"image": jax.ShapeDtypeStruct((1, 8, 8, 3), np.uint8)}


def told(transforms, file="configs_tiny.py", spec=SHAPES):
    """The preprocessing of a run with these transforms."""
    config = read_config(str(ROOT / "tests" / file), None)
    config.input.eval = transforms
    return described.preprocessing(SimpleNamespace(config=config, spec=spec))


@pytest.mark.parametrize(
    ("transforms", "short", "words"),
    [
        ("resize(8)", 0, "stretched to 8 x 8 pixels"),
        ("resize_short(10, 'bilinear')|center_crop(8)", 10, "brought to 10 pixels, bilinear"),
    ],
)
def test_resizes_that_others_have_are_told_in_numbers(transforms, short, words):
    found = told(transforms)
    assert words in found["words"] and found["shorter_side"] == short
    assert (found["height"], found["width"]) == (8, 8)
    assert (found["mean"], found["std"]) == NORMALISATIONS["inception"]


def test_other_transforms_are_named():
    found = told("resize_within(8, 8)|pad(8)")
    assert "'resize_within(8, 8)|pad(8)'" in found["words"] and "resample" not in found


def test_clouds():
    spec = {"points": jax.ShapeDtypeStruct((1, 40, 3), np.float32)}
    assert (
        "40 points; moved so that their mean is 0" in told("", "configs_clouds.py", spec)["words"]
    )


def test_each_of_several_tasks_has_its_meaning():
    one, other = (SimpleNamespace(answer=f) for f in (told, test_clouds.__class__))
    trained = SimpleNamespace(task=SimpleNamespace(tasks=("a", "b"), each={"a": one, "b": other}))
    assert described.answer(trained)["a"] == "The preprocessing of a run with these transforms."
