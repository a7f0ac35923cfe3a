"""Labels of one's own images go by name, in training, evaluation and elsewhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynadapt.main import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
COLOURS = dict(blue=(20, 30, 220), green=(20, 200, 30), red=(220, 20, 30))
OPTIONS = ("--config.optim.steps=25", "--config.optim.lr=0.05", "--config.input.batch_size=16")


def write(folder, names=COLOURS, count=8, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        place = folder / name
        place.mkdir(parents=True)
        for number in range(count):
            pixels = rng.normal(COLOURS[name], 25, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images of three colours, and a linear head that tells them apart."""
    root = tmp_path_factory.mktemp("own")
    images, work = root / "images", root / "run"
    write(images / "train", count=16)
    write(images / "test", seed=1)
    assert main(["train", *config(images), f"--workdir={work}", *OPTIONS]) == 0
    return images, work


def config(images, method="linear"):
    return [f"--config={ROOT / 'configs' / 'folder.py'}:path={images},method={method}"]


def top1(work, *more, capsys):
    capsys.readouterr()
    assert main(["eval", f"--workdir={work}", *more]) == 0
    rows = capsys.readouterr().out.splitlines()
    return next(float(r.split("│")[2]) for r in rows if "top1" in r)


def test_it_learns(made, capsys):
    assert top1(made[1], capsys=capsys) > 90


def test_a_subset_of_the_classes_keeps_their_numbers(made, tmp_path, capsys):
    """Numbered anew, red would be class 0."""
    write(tmp_path / "test", names=("red",), seed=2)
    assert top1(made[1], f"--data={tmp_path}", capsys=capsys) > 90


def test_a_folder_without_splits_is_evaluated_whole(made, tmp_path, capsys):
    write(tmp_path / "flat", names=("green", "red"), seed=3)
    assert top1(made[1], f"--data={tmp_path / 'flat'}", capsys=capsys) > 90


def test_an_unknown_class_is_refused_by_name(made, tmp_path, capsys):
    images, work = made
    shutil.copytree(images, tmp_path / "other")
    (tmp_path / "other" / "test" / "red").rename(tmp_path / "other" / "test" / "rouge")
    assert main(["eval", f"--workdir={work}", f"--data={tmp_path / 'other'}"]) == 2
    err = capsys.readouterr().err
    assert "rouge is none of the 3 classes; choose one of blue, green, red" in err


def test_records_have_file_and_class(made):
    lines = (made[1] / "predictions" / "predictions.csv").read_text().splitlines()
    assert lines[0] == "file,label,prediction,probability,top5" and len(lines) == 25
    file, label, *_ = lines[1].split(",")
    assert Path(file).parent.name == label


def test_only_data_with_a_path_lie_elsewhere(tmp_path, capsys):
    tiny = ROOT / "tests" / "configs_tiny.py"
    work = tmp_path / "run"
    assert main(["train", f"--config={tiny}:method=linear,steps=2", f"--workdir={work}"]) == 0
    assert main(["eval", f"--workdir={work}", f"--data={tmp_path}"]) == 2
    assert "not for 'digits'" in capsys.readouterr().err


def test_size_and_normalisation_come_from_the_backbone(made, capsys):
    """A larger backbone sees its own size, and what it isn't made for is said."""
    given = ["plan", *config(made[0])]
    assert main([*given, "--config.backbone.name=vit_ti16", "--config.backbone.weights="]) == 0
    out = capsys.readouterr().out
    assert "vit_ti16 sees images of 224 x 224 as 14 x 14 tokens, normalised as inception" in out
    assert "warning" not in out
    odd = ["--config.input.train=resize(40)", "--config.input.normalise=imagenet"]
    assert main([*given, *odd]) == 0
    out = capsys.readouterr().out
    assert "sees images of 40 x 40 as 10 x 10 tokens, normalised as imagenet" in out
    assert "warning: vit_mini is made for images of 32 x 32, not 40 x 40" in out
    assert "warning: weights of vit_mini expect images normalised as inception" in out
    assert main([*given, "--config.input.eval=resize(30)"]) == 2
    assert "the nearest is resize(32)" in capsys.readouterr().err


def test_swin_serves_sizes_that_are_no_multiple_of_its_patch(made, capsys):
    swin = ["--config.backbone.name=swin_t", "--config.backbone.weights="]
    small = ["--config.input.train=resize(30)", "--config.input.eval=resize(30)"]
    small += ["--config.backbone.depths=(1,1,1,1)"]
    assert main(["plan", *config(made[0]), *swin, *small[:2]]) == 0
    assert "30 x 30 as 1 x 1 tokens" in capsys.readouterr().out


def test_the_table_names_a_command_that_runs(made, capsys):
    """The line that compares methods keeps the folder's path."""
    images, _ = made
    work = images.parent / "again"
    assert main(["train", *config(images), f"--workdir={work}", *OPTIONS]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("Compare"))
    assert f"path={images}" in line and "--methods=all" in line and "--config.optim.lr=0.05" in line
