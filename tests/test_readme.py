"""Every shell line of README.md runs in a test, or it stands here why it does not."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynadapt.commands import config_file
from dynadapt.main import main
from tests import products

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = "".join(re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)).splitlines()

# Beginnings of lines, each of one line alone.
HERE = ("predict --workdir=runs/flowers", "launch/vtab.sh --config=offline")
ELSEWHERE = {"plan --methods=all": "tests/test_docs.py::test_the_readme_compares_methods"}
NOT_RUN = {
    "train --config=quickstart --workdir=runs/quickstart": "minutes of training",
    "train --config=folder:": "minutes of training",
    "weights dinov2_s14 --download": "a download",
    "train --config=photos": "needs the download",
    "train --config=quickstart --workdir=runs/wide": "minutes of training",
    "sweep run": "dozens of trainings",
    "report runs/compared": "needs the sweep's runs",
    "train --config=segment": "minutes of training",
    "train --config=depth": "minutes of training",
    "train --config=detect": "minutes of training",
    "train --config=instances": "minutes of training",
    "train --config=multitask": "minutes of training",
    "train --config=points": "minutes of training",
    "predict --workdir=runs/segment": "needs the run for segmentation",
    "plan --config=quickstart --topology": "libtpu, a minute of compiling",
    "vtab run": "VTAB's data and published weights",
    "vtab report": "needs the runs of VTAB-1K",
    "launch/test.sh": "the whole suite",
}


def short(line):
    """The line without extras and the script that starts every command."""
    return re.sub(r"^(EXTRAS=\w+ )?(launch/local\.sh )?", "", line)


def line_of(start):
    (line,) = (line for line in LINES if short(line).startswith(start))
    return line


def test_every_line_is_in_one_table():
    starts = [*HERE, *ELSEWHERE, *NOT_RUN]
    for line in LINES:
        assert len([s for s in starts if short(line).startswith(s)]) == 1, line
    for start in starts:
        assert line_of(start)


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_the_other_test_exists(test):
    file, name = test.split("::")
    assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_new_images_are_answered(tmp_path, monkeypatch, fast_compiling):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), "uint8")
    for number, name in enumerate(("train/a", "train/b", "test/a", "test/b", "photos")):
        folder = Path(name if name == "photos" else f"flowers/{name}")
        folder.mkdir(parents=True)
        Image.fromarray(pixels[number]).save(folder / "0.png")
    config = config_file.load(f"folder:path={tmp_path}/flowers", [])
    products.leave(Path("runs/flowers/adapter"), config)
    assert main(shlex.split(short(line_of(HERE[0])))) == 0
    assert len(Path("answers/predictions.csv").read_text().splitlines()) == 2
    assert Path("answers/pictures/0.png").exists()


def test_the_sweep_without_a_download_is_shown():
    script, *options = shlex.split(line_of(HERE[1]))
    call = ["bash", script, "--print", *options]
    found = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(option in found.stdout for option in options)
