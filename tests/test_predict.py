"""Answers to new images: any file that people have, one record each, gone on with after a stop."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynadapt import data, files, predict
from dynadapt.data import loader, objects, transforms
from dynadapt.errors import DataError
from dynadapt.main import main
from dynadapt.tasks import classification

TINY = str(Path(__file__).with_name("configs_tiny.py"))
pytestmark = pytest.mark.slow

BROKEN = ("cut.jpg", "empty.png", "words.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits."""
    work = tmp_path_factory.mktemp("predict") / "run"
    assert main(["train", f"--config={TINY}:method=linear,steps=6", f"--workdir={work}"]) == 0
    return work


def photo(seed, size=(24, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(255, size=(*size, 3), dtype="u1"))


def write(folder, count=10):
    """Images as people have them: of `count` kinds in turn, and some that are none."""
    (folder / "phone" / "2024").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn to the right
    for number in range(count):
        image, name = photo(number), f"{number:03}"
        match number % 10:
            case 0:
                image.save(folder / "phone" / f"{name}.JPG", "JPEG", exif=turned)
            case 1:
                image.convert("CMYK").save(folder / f"{name}.jpeg")
            case 2:
                deep = np.random.default_rng(number).integers(65535, size=(9, 12), dtype="u2")
                Image.fromarray(deep).save(folder / f"{name}.png")
            case 3:
                more = [photo(number + i) for i in (1, 2)]
                image.save(folder / f"{name}.gif", save_all=True, append_images=more)
            case 4:
                image.quantize(16).save(folder / f"{name}.png", transparency=0)
            case 5:
                image.save(folder / "phone" / "2024" / f"{name}.webp")
            case 6:
                image.save(folder / f"{name}.bmp")
            case 7:
                image.convert("LA").save(folder / f"{name}.png")
            case 8:
                image.convert("1").save(folder / f"{name}.png")
            case 9:
                image.save(folder / f"{name}.tiff")
    content = io.BytesIO()
    photo(77).save(content, "jpeg")
    (folder / "cut.jpg").write_bytes(content.getvalue()[:200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.png").write_text("no picture")
    (folder / "notes.txt").write_text("neither")
    (folder / ".hidden.png").write_bytes(content.getvalue())
    (folder / "album.png").mkdir()
    return folder


def command(run, images, out, *more):
    return ["predict", f"--workdir={run}", f"--images={images}", f"--out={out}", *more]


def rows(out):
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_hundred_images_of_all_kinds(run, tmp_path, capsys, caplog, monkeypatch):
    images, out = write(tmp_path / "photos", 200), tmp_path / "answers"
    monkeypatch.setattr(data, "from_config", None)  # no data set is opened
    assert main(command(run, images, out, "--pictures")) == 0
    said = capsys.readouterr()
    found = rows(out)
    assert len(found) == 200
    assert [r["file"] for r in found] == sorted(r["file"] for r in found)
    assert found[0]["file"] == "001.jpeg" and "phone/2024/005.webp" in {r["file"] for r in found}
    for row in found:
        assert row["prediction"] in "0123456789" and 0.1 <= float(row["probability"]) <= 1
        assert row["top5"].startswith(f"{row['prediction']} ") and row["top5"].count(";") == 4
    for name in BROKEN:
        assert len([m for m in caplog.messages if m.startswith(f"skipped {name}: ")]) == 1
    assert f"wrote 200 records to {out / 'predictions.csv'}, 3 images skipped" in said.out
    drawn = {p.relative_to(out / "pictures").as_posix() for p in out.rglob("*.png")}
    assert len(drawn) == 200 and "phone/2024/005.png" in drawn and "phone/000.png" in drawn
    with Image.open(out / "pictures" / "phone" / "000.png") as picture:
        assert picture.width > picture.height  # 24 x 16, turned upright: wide, with a line below


def test_orientation_is_applied(run, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    folder = tmp_path / "both"
    folder.mkdir()
    photo(3).save(folder / "turned.png", exif=turned)
    photo(3).transpose(Image.Transpose.ROTATE_270).save(folder / "upright.png")
    assert main(command(run, folder, tmp_path / "out")) == 0
    one, other = rows(tmp_path / "out")
    assert one["top5"] == other["top5"]


def test_a_record_does_not_depend_on_the_batch(run, tmp_path):
    images = write(tmp_path / "photos")
    for size in (1, 4, 64, 10**6):
        assert main(command(run, images, tmp_path / str(size), f"--batch={size}")) == 0
    want = rows(tmp_path / "64")
    for size in (1, 4, 10**6):
        for got, row in zip(rows(tmp_path / str(size)), want, strict=True):
            assert (got["file"], got["prediction"]) == (row["file"], row["prediction"])
            assert float(got["probability"]) == pytest.approx(float(row["probability"]), abs=1e-5)


def test_it_goes_on_where_it_was(run, tmp_path, monkeypatch):
    images, whole, out = write(tmp_path / "photos"), tmp_path / "whole", tmp_path / "out"
    assert main(command(run, images, whole)) == 0
    shutil.copytree(whole, out)
    (out / "predictions.csv").unlink()
    lines = (out / predict.LOG).read_text().splitlines(keepends=True)
    (out / predict.LOG).write_text("".join(lines[:5]) + lines[5][:20])  # stopped while writing
    read, real = [], predict.Images.__getitem__
    monkeypatch.setattr(
        predict.Images, "__getitem__", lambda self, i: read.append(self.names[i]) or real(self, i)
    )
    assert main(command(run, images, out)) == 0
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    done = {json.loads(line)["file"] for line in lines[1:5]}
    assert len(done) == 4 and not done & set(read) and len(set(read)) == 10 - 4 + len(BROKEN)
    read.clear()
    assert main(command(run, images, out)) == 0
    assert set(read) == set(BROKEN)  # these may have been mended


def test_results_are_whole_after_a_stop(run, tmp_path, monkeypatch):
    """Of all images in their order, also of those that were answered before."""
    plain = classification.Task.record

    def record(self, answer, example):
        values, content = plain(self, answer, example)
        found = {"image_id": example["name"], "score": values["probability"]}
        return {**values, "results": [found, found]}, content

    monkeypatch.setattr(classification.Task, "record", record)
    monkeypatch.setattr(classification.Task, "results", "found.json", raising=False)
    images, out = write(tmp_path / "photos"), tmp_path / "out"
    assert main(command(run, images, out)) == 0
    whole = (out / "found.json").read_bytes()
    assert "results" not in rows(out)[0]
    names = [row["file"] for row in rows(out) for _ in range(2)]
    assert [found["image_id"] for found in json.loads(whole)] == names and len(names) == 20
    (out / "found.json").unlink()
    lines = (out / predict.LOG).read_text().splitlines(keepends=True)
    (out / predict.LOG).write_text("".join(lines[:2] + lines[5:]))  # 3 of 10 are to be done
    assert main(command(run, images, out, "--batch=10")) == 0
    found, wanted = json.loads((out / "found.json").read_bytes()), json.loads(whole)
    assert [x["image_id"] for x in found] == names
    assert [x["score"] for x in found] == pytest.approx([x["score"] for x in wanted], abs=1e-5)


def test_one_image_and_a_list_of_them(run, tmp_path):
    images = write(tmp_path / "photos")
    assert main(command(run, images / "001.jpeg", tmp_path / "one")) == 0
    (one,) = rows(tmp_path / "one")
    (images / "some.txt").write_text("\ufeffphone/000.JPG\n\n001.jpeg\n", encoding="utf-8")
    assert main(command(run, images / "some.txt", tmp_path / "two")) == 0
    first, second = rows(tmp_path / "two")
    assert (first["file"], second["file"]) == ("phone/000.JPG", "001.jpeg")
    assert second["top5"] == one["top5"]


def test_json_is_a_document_a_line(run, tmp_path, capsys):
    images = write(tmp_path / "photos")
    capsys.readouterr()
    assert main(command(run, images, tmp_path / "out", "--json")) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [row["file"] for row in rows(tmp_path / "out")]


def test_mistakes(run, tmp_path, capsys):
    images = write(tmp_path / "photos")
    (images / "lost.txt").write_text("001.jpeg\nnone.jpg\n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    for given, part in (
        ([tmp_path / "missing", tmp_path / "o"], "no file and no folder"),
        ([tmp_path / "nothing", tmp_path / "o"], "holds no images"),
        ([tmp_path / "bad", tmp_path / "o"], "none of the 1 images can be read"),
        ([images / "lost.txt", tmp_path / "o"], "line 2 of"),
        ([images / "002.png", tmp_path / "o", "--batch=0"], "--batch must be from 1 to 1000000"),
        ([images / "002.png", images / "001.jpeg"], "must be a folder"),
        ([images / "002.png", tmp_path / "o", "--config.seed=1"], "takes no config"),
    ):
        capsys.readouterr()
        assert main(command(run, *given)) == 2, given
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("dynadapt: ") and part in err


def test_answers_of_another_adapter_are_not_mixed(run, tmp_path, capsys):
    images, out = write(tmp_path / "photos"), tmp_path / "out"
    assert main(command(run, images, out)) == 0
    other = tmp_path / "other"
    shutil.copytree(run, other)
    from dynadapt.runs import product

    found = product.read(other / "adapter")
    product.save(other / "adapter", {k: v + 1 for k, v in found.leaves.items()}, found.card)
    before = files.sha256(out / "predictions.csv")
    assert main(command(other, images, out)) == 2
    assert "another adapter" in capsys.readouterr().err
    assert files.sha256(out / "predictions.csv") == before


def test_a_picture_tells_how_much_of_a_canvas_it_fills(tmp_path):
    photo(0, (12, 24)).save(tmp_path / "1.png")
    change = transforms.pipeline("resize_within(8,8)|pad(8)")
    images = predict.Images(tmp_path, ["1.png"], objects.fields(("a",), 5, masks=True))
    batch = next(loader.eval_batches(images, change, batch_size=1))
    assert set(batch) == {"image", "extent", "index", "mask"}
    assert batch["extent"].tolist() == [[4, 8]]


def test_a_listed_image_that_went_away_is_skipped(tmp_path):
    images = predict.Images(tmp_path, ["gone.png"])
    with pytest.raises(DataError, match=r"cannot read the image gone\.png"):
        images[0]
