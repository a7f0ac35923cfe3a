"""The published rows: their arithmetic, and that they speak of our tasks and methods."""

import json

import pytest

from dynadapt import adapters
from dynadapt.data import vtab
from dynadapt.sweep import published

ROWS = {row.title: row for row in published.ROWS}
NATURAL = "cifar100 caltech101 dtd oxford_flowers102 oxford_iiit_pet svhn sun397"
SPECIALIZED = "patch_camelyon eurosat resisc45 diabetic_retinopathy"
STRUCTURED = (
    "clevr_count clevr_dist dmlab kitti dsprites_loc dsprites_ori smallnorb_azi smallnorb_ele"
)
GROUPS = {
    "natural": NATURAL.split(),
    "specialized": SPECIALIZED.split(),
    "structured": STRUCTURED.split(),
}


def mean(values):
    return sum(values) / len(values)


def group_means(row):
    return [mean([row.top1[name] for name in names]) for names in GROUPS.values()]


@pytest.mark.parametrize("row", published.ROWS, ids=ROWS)
def test_the_printed_mean_is_that_of_the_row(row):
    found = {"tasks": mean(list(row.top1.values())), "groups": mean(group_means(row))}
    assert found[row.mean] == pytest.approx(row.printed, abs=0.01)
    other = found["groups" if row.mean == "tasks" else "tasks"]
    assert abs(other - row.printed) > 1  # so a mix-up of the two would show


# Means of the groups' means that the VPT paper prints to two digits; its VPT-Deep is 71.96, where
# the rounded row of tasks gives 71.9702.
@pytest.mark.parametrize(("title", "printed"), [("Full", 68.96), ("VPT-Deep", 71.96)])
def test_mean_of_groups_as_printed_elsewhere(title, printed):
    assert mean(group_means(ROWS[title])) == pytest.approx(printed, abs=0.011)


# Read off a figure of Adapter-X to 0.1. It draws LoRA, 74.5, at another size than LoRA-8.
@pytest.mark.parametrize(
    ("title", "drawn"), [("Linear", 57.6), ("BitFit", 65.2), ("LoRA-8", 74.5), ("SSF", 75.7)]
)
def test_mean_of_groups_as_drawn_elsewhere(title, drawn):
    assert mean(group_means(ROWS[title])) == pytest.approx(drawn, abs=0.11)


def test_groups_of_a_row_by_hand():
    # Full: 531.2 / 7, 333.5 / 4, 381.1 / 8
    assert group_means(ROWS["Full"]) == pytest.approx([75.8857, 83.375, 47.6375], abs=1e-4)


def test_tasks_and_groups_are_the_suite():
    """A row's numbers are printed in this order, by which they are read."""
    assert [(n, g) for g, names in GROUPS.items() for n in names] == [
        (task.name, task.group) for task in vtab.TASKS.values()
    ]


def test_rows_name_our_methods_and_settings():
    for row in published.ROWS:
        assert set(row.top1) == set(vtab.TASKS) and row.source
        assert all(0 < value < 100 for value in row.top1.values())
        if row.method:
            assert set(row.settings) <= set(adapters.settings(row.method)), row.title
        else:
            assert not row.settings
        json.dumps(row.settings)
    assert len(ROWS) == len(published.ROWS) == 13


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ("vit_b16_augreg_in21k", True),
        ("vit_b16_in21k", True),
        ("files/ViT-B_16.npz", True),
        ("vit_base_patch16_224.augreg_in21k.safetensors", True),
        ("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz", True),
        ("B_16-i21k-300ep--imagenet2012-steps_20k-lr_0.01-res_224.npz", False),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", False),
        ("in21k/mae.pth", False),
        ("deit_b16_in1k", False),
        ("vit_b16_mae", False),
        ("ViT-B_16-224.npz", False),
        ("", False),
    ],
)
def test_weights_of_the_same_pretraining(weights, found):
    assert published.pretrained(weights) is found
