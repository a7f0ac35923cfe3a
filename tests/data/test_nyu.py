"""Lists of images and depth maps, as NYU Depth v2 is prepared for training."""

import io

import numpy as np
import pytest
from PIL import Image

from dynadapt.data import loader, nyu, transforms
from dynadapt.errors import DataError, UnknownName
from tests.data import layouts


def depth(source, index=0):
    values, about = loader.example(source, transforms.pipeline(""), index, None)
    return values["depth"], about["name"]


def test_training_and_test_images_lie_apart(tmp_path):
    layouts.nyu(tmp_path)
    for split, place in (
        ("train", "sync/kitchen_0001"),
        ("test", "official_splits/test/kitchen"),
    ):
        source = nyu.source(split, path=str(tmp_path))
        found, name = depth(source, 1)
        np.testing.assert_allclose(found[0, ::4], [0, 0.5, 2.5, 9.999], rtol=1e-6)
        assert name == str(tmp_path / place / "rgb_00001.jpg")  # in the list's order
        assert len(source) == 3 and source.info.fields["depth"].fill == 0


def test_one_folder_other_lists_and_another_scale(tmp_path):
    layouts.nyu(tmp_path, train="", test="")
    (tmp_path / "lists").mkdir()
    (tmp_path / "train_list.txt").rename(tmp_path / "lists" / "nyu_train.txt")
    source = nyu.source("train", str(tmp_path), list="lists/nyu_{split}", scale=256.0)
    assert depth(source)[0][0, 8] == pytest.approx(2500 / 256)
    whole = str(tmp_path / "lists" / "nyu_{split}.txt")
    assert len(nyu.source("train[1:]", str(tmp_path), list=whole)) == 2


def test_lines_without_a_depth_map_are_counted(tmp_path, caplog):
    layouts.nyu(tmp_path)
    file = tmp_path / "test_list.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], "a/1.jpg None 721.5", "", ""]))
    assert len(nyu.source("test", path=str(tmp_path))) == 2
    assert caplog.messages == [f"passed over 1 lines of {file} without a depth map"]


def test_what_is_missing_is_said(tmp_path):
    layouts.nyu(tmp_path)
    with pytest.raises(DataError, match="no list .*/val_list.txt"):
        nyu.source("val", path=str(tmp_path))
    (tmp_path / "sync/kitchen_0001/rgb_00001.jpg").unlink()
    with pytest.raises(DataError, match="names 1 files .* first of them sync/kitchen_0001/rgb_0"):
        nyu.source("train", path=str(tmp_path))
    (tmp_path / "train_list.txt").write_text("a.jpg\n")
    with pytest.raises(DataError, match=r"line 1 of .* is not `image depth \[focal\]`: a.jpg"):
        nyu.source("train", path=str(tmp_path))
    (tmp_path / "train_list.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no images"):
        nyu.source("train", path=str(tmp_path))
    with pytest.raises(DataError, match="no folder ''; put the images"):
        nyu.source("train")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What TFDS's own builder writes, of other pictures: one for training, two for validation."""
    import tensorflow_datasets

    real = tensorflow_datasets.builder_cls("nyu_depth_v2")

    def examples(count):
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(np.full((480, 640, 3), 10 * i + count, np.uint8)).save(file, "PNG")
            file.seek(0)
            values = np.array([0, np.nan, -1, 2.5 + i], np.float16)
            yield f"room_{i}", {"image": file, "depth": np.tile(values, (480, 160))}

    body = {
        "_split_generators": lambda self, manager: {
            "train": examples(1),
            "validation": examples(2),
        },
        "name": "nyu_depth_v2",
        "pkg_dir_path": real.pkg_dir_path,
        "url_infos": {},
        "__module__": __name__,
    }
    folder = str(tmp_path_factory.mktemp("tfds"))
    with tensorflow_datasets.core.registered.skip_registration():
        made = type("Builder", (real,), body)(data_dir=folder, file_format="array_record")
        made.download_and_prepare()
    return folder


def test_as_tfds_prepares_it(prepared):
    source = nyu.source("validation", prepared, form="tfds")
    assert len(source) == 2 and source.info.counts == {"train": 1, "validation": 2}
    values, about = loader.example(source, transforms.pipeline(""), 0, None)
    assert about["name"] == "validation[0]"
    assert values["image"].shape == (480, 640, 3) and values["depth"].dtype == np.float32
    metres = {loader.example(source, transforms.pipeline(""), i, None)[0]["depth"][7, 3] for i in
              range(2)}  # fmt: skip
    assert metres == {2.5, 3.5}
    assert values["depth"][0, :3].tolist() == [0, 0, 0]


def test_tfds_says_what_is_missing(prepared, tmp_path):
    with pytest.raises(DataError, match="no split 'test'.*train, validation"):
        nyu.source("test", prepared, form="tfds")
    with pytest.raises(DataError, match="nyu_depth_v2/0.0.1 is not in .*download_and_prepare"):
        nyu.source("train", str(tmp_path), form="tfds")
    with pytest.raises(UnknownName, match="did you mean 'tfds'"):
        nyu.source("train", prepared, form="tfd")
