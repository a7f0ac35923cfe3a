import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dynadapt.data import decode, tfds
from dynadapt.errors import DataError

SIZES = {"train": 12, "test": 5}
NAMES = [f"kind {i}" for i in range(10)]


def picture(split, i):
    """A 32 x 32 image and a label that tell which example this is."""
    return np.full((32, 32, 3), 10 * i + (split == "test"), np.uint8), (3 * i) % 10


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """CIFAR-10 in TFDS's own ArrayRecord format, written by its own builder, with our pictures."""
    import tensorflow_datasets

    real = tensorflow_datasets.builder_cls("cifar10")

    def examples(split):
        for i in range(SIZES[split]):
            pixels, label = picture(split, i)
            file = io.BytesIO()  # given an array, TFDS would import TensorFlow to encode it
            Image.fromarray(pixels).save(file, "PNG")
            file.seek(0)
            yield f"{i:04d}", {"image": file, "label": label, "id": f"{split}_{i}"}

    def split_generators(self, manager):
        self.info.features["label"].names = NAMES
        return {split: examples(split) for split in SIZES}

    folder = str(tmp_path_factory.mktemp("tfds"))
    body = {
        "_split_generators": split_generators,
        "name": "cifar10",
        "pkg_dir_path": real.pkg_dir_path,
        "url_infos": {},  # TFDS would look for its checksums with importlib_resources
        "__module__": __name__,
    }
    with tensorflow_datasets.core.registered.skip_registration():
        made = type("Cifar10", (real,), body)(data_dir=folder, file_format="array_record")
        made.download_and_prepare()
    return folder


def read(source, i):
    return decode.decode(source[i]["image"])[0, 0, 0], source[i]["label"]


def test_reads_each_split_as_encoded_images(prepared):
    for split, count in SIZES.items():
        source = tfds.source(split, builder="cifar10", data_dir=prepared)
        assert len(source) == count
        assert isinstance(source[0]["image"], bytes)
        stored = sorted((int(p[0, 0, 0]), y) for p, y in (picture(split, i) for i in range(count)))
        assert sorted(read(source, i) for i in range(count)) == stored
    assert source.info.name == "cifar10/3.0.2"
    assert source.info.counts == SIZES
    assert source.info.classes == tuple(NAMES)
    assert len(source.info.fingerprint) == 64
    assert type(source[0]["label"]) is int


def test_slices_keep_the_positions_of_the_split(prepared):
    whole = tfds.source("train", builder="cifar10", data_dir=prepared)
    part = tfds.source("train[8:]+test[:2]", builder="cifar10:3.0.2", data_dir=prepared)
    assert len(part) == 6
    assert part[1]["name"] == "train[9]"
    assert part[5]["name"] == "test[1]"
    assert read(part, 1) == read(whole, 9)
    with pytest.raises(DataError, match="runs past the 12 examples"):
        tfds.source("train[:13]", builder="cifar10", data_dir=prepared)
    with pytest.raises(DataError, match="no split 'validation'"):
        tfds.source("validation", builder="cifar10", data_dir=prepared)


def test_reading_never_imports_tensorflow(prepared):
    program = f"""
import sys
from dynadapt.data import loader, tfds
source = tfds.source("train", builder="cifar10", data_dir={prepared!r})
batch = next(loader.train_batches(source, "resize(8)", batch_size=4, seed=0))
assert batch["image"].shape == (4, 8, 8, 3)
print("tensorflow" in sys.modules, "cv2" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2] == "False"


def test_a_set_that_is_not_there_says_how_to_prepare_it(tmp_path):
    with pytest.raises(DataError) as caught:
        tfds.source("train", builder="cifar10", data_dir=str(tmp_path))
    message = str(caught.value)
    assert "cifar10/3.0.2 is not in" in message
    assert "dynadapt[data]" in message
    command = message.split('python -c "')[1].removesuffix('"')
    compile(command, "command", "exec")
    assert f"data_dir={str(tmp_path)!r}, file_format='array_record'" in command


def test_a_set_stored_as_tfrecord_is_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    info["fileFormat"] = "tfrecord"
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match="stored as tfrecord.*file_format='array_record'"):
        tfds.source("train", builder="cifar10", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("", "builder is empty"),
        ("cifra10", "no builder 'cifra10'; did you mean 'cifar10'"),
        ("qqqqqq", "list_builders"),
        ("cifar10:9.9.9", "TFDS cannot make the builder"),
        ("not a name", "TFDS cannot make the builder"),
    ],
)
def test_wrong_builders(builder, message, tmp_path):
    with pytest.raises(DataError, match=message):
        tfds.source("train", builder=builder, data_dir=str(tmp_path))


def test_wrong_features(prepared):
    with pytest.raises(DataError, match="no Image feature 'img'; did you mean 'image'"):
        tfds.source("train", builder="cifar10", data_dir=prepared, image_key="img")
    with pytest.raises(DataError, match="no ClassLabel feature 'id'"):
        tfds.source("train", builder="cifar10", data_dir=prepared, label_key="id")


def test_a_damaged_record_is_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    [file] = (tmp_path / "cifar10" / "3.0.2").glob("*test*array_record*")
    file.write_bytes(file.read_bytes()[:100])
    source = tfds.source("test", builder="cifar10", data_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"cannot read test\[0\] of cifar10/3.0.2"):
        source[0]
