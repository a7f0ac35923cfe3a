"""What several tasks cost in one pass, in tiny shapes."""

import jax
import pytest

from dynadapt import bench, sharding
from dynadapt.bench import cases, multitask
from dynadapt.main import main

SIZES = {
    # Maps of 10 x 10 and 5 x 5 tokens in windows of 4: padded.
    "swin_t": dict(dim=8, depths=(1, 2), heads=(1, 2), window=4, small="never"),
    "vit_mini": dict(dim=8, depth=3, heads=2, registers=1),
}


def tiny(backbone, method, **adapter):
    """A config of two tasks."""
    made = cases.config(backbone, method, 2, "several")
    made.backbone.update(SIZES[backbone] | dict(image_size=40))
    made.task.update(dict(tasks=("semseg", "normals"), channels=1))
    made.adapter.update(adapter)
    return made


@pytest.mark.parametrize(
    ("backbone", "method", "given", "absent"),
    [
        ("swin_t", "tadformer", dict(ranks=(1, 2, 3, 4), prompts=2), []),
        ("vit_mini", "mtlora", dict(rank=3, task_rank=2), ["filters", "merging", "prompts"]),
    ],
)
def test_what_a_task_adds_is_what_the_equations_say(backbone, method, given, absent):
    both = tiny(backbone, method, **given)
    network, flops = multitask.passed(multitask._of(both, ("semseg", "normals")))
    one = multitask.passed(multitask._of(both, ("semseg",)))[1]
    first, every = (multitask.equations(network, both, n) for n in (1, 2))
    assert flops - one == sum(every.values()) - sum(first.values()) > 0
    assert [part for part in multitask.PARTS if not every[part]] == absent


def test_a_step_of_all_is_less_than_steps_of_each(capsys):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    row = multitask.measured(tiny("swin_t", "lora", rank=2), mesh)
    assert row["more"] == 0 < row["pass"] < row["step"] < row["alone"] < 2 * row["step"]
    assert row["of_alone"] == pytest.approx(100 * row["step"] / row["alone"], rel=2e-3)
    bench.show(dict(machine="this", rows=[row]))
    assert "of_alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rounds=3"], "bench multitask takes no --rounds"),
        (["--backbone=vit_b16,swin_t"], "bench multitask is of one backbone"),
    ],
)
def test_mistakes(options, said, capsys):
    assert main(["bench", "multitask", *options]) == 2
    assert said in capsys.readouterr().err
