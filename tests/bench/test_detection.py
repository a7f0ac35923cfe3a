"""What detection costs beside the network, compiled in tiny shapes."""

import jax
import jax.numpy as jnp
import pytest

from dynadapt import bench, inputs, sharding, tasks
from dynadapt import config as configs
from dynadapt.bench import cases, detection
from dynadapt.main import main
from dynadapt.targets import nms
from tests import tiny_detector

pytestmark = pytest.mark.usefixtures("fast_compiling")

PARTS = ["training step", "targets", "inference", "answers", "suppression"]
BEST = 7


@pytest.fixture(scope="module")
def found():
    c = tiny_detector.get_config()
    c.backbone.update(dict(dim=16, depth=1))
    c.task.update(dict(channels=8, strides=(2.0, 4.0), best=BEST))
    c.input.batch_size = 2
    c = configs.resolve(c)
    split = inputs.open_split(c, "train")
    task = tasks.from_config(c.task, split.source.info)
    return detection.parts(c, task, split.spec, jax.devices()[0])


@pytest.mark.slow
def test_parts_are_less_than_what_they_are_of(found, capsys):
    assert [row["part"] for row in found] == PARTS
    rows = {row["part"]: row for row in found}
    step, look = rows["training step"], rows["inference"]
    for name, whole in (("targets", step), ("answers", look), ("suppression", look)):
        row = rows[name]
        assert 0 < row["gflop"] < whole["gflop"] and 0 < row["mb"] < whole["mb"]
        assert row["of_flops"] == pytest.approx(100 * row["gflop"] / whole["gflop"], rel=2e-3)
        assert row["of_mb"] == pytest.approx(100 * row["mb"] / whole["mb"], rel=2e-3)
    assert rows["suppression"]["gflop"] < rows["answers"]["gflop"]
    bench.show(dict(machine="this", rows=found))
    assert "suppression" in capsys.readouterr().out


@pytest.mark.slow
def test_every_round_of_the_suppression_is_counted(found):
    """The compiler counts one, however many there are."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    shapes = ((50, 4), jnp.float32), ((50,), jnp.float32), ((50,), jnp.int32)
    given = [jax.ShapeDtypeStruct(*pair) for pair in shapes]
    few, many = (
        detection._cost(
            lambda *args, n=n: nms.greedy(*args, threshold=0.5, most=n), mesh, *given
        ).flops
        for n in (2, 90)
    )
    assert few == many > 20 * 50
    # Two levels of 16 x 16 and 8 x 8 cells, four classes, two images.
    rounds = BEST * 2 * (1000 + 256) / 50
    assert 1e9 * found[-1]["gflop"] == pytest.approx(rounds * few, rel=0.05)


def test_images_with_objects_of_eighty_classes():
    c = cases.config("vit_mini", "linear", 3, "instances")
    task, spec = cases.given(c)
    assert len(task.classes) == 80 and spec["instances"].shape == spec["image"].shape[:3]
    assert spec["boxes"].shape[0] == 3 and spec["boxes"].shape[2] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rounds=3"], "bench detection takes no --rounds"),
        (["--methods=lorra"], "did you mean 'lora'"),
        (["--backbone=vit_b16,swin_t"], "bench detection is of one backbone"),
    ],
)
def test_mistakes(options, said, capsys):
    assert main(["bench", "detection", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_method_that_does_not_serve_is_a_reason():
    (row, other) = detection.run("vit_mini", ["dapt"], 1, None)["rows"]
    assert (row["task"], other["task"]) == ("detection", "instances")
    assert "point clouds" in row["reason"] and "point clouds" in other["reason"]
