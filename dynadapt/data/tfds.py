"""Any image-classification builder of TensorFlow Datasets, read from ArrayRecord.

TensorFlow is needed once, to prepare a set; reading never imports it.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynadapt.data import MAX_CLASSES, Info, Rows, labelled, parse
from dynadapt.errors import DataError, DynadaptError, suggest
from dynadapt.files import first_line

OBTAIN = (
    "prepare it once, with the extra dynadapt[data], by "
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder({}, file_format='array_record').download_and_prepare()\""
)
# A builder's name, its config and its version. All else that TFDS takes for a name, such as
# `huggingface:mnist`, it would fetch from elsewhere.
_NAME = re.compile(r"\w{1,99}(/[\w.\-]{1,99})?(:[\d.*]{1,99})?", re.ASCII)
_CLASSES = ("pythonClassName", "python_class_name", "type")  # where features.json names classes


class Tfds:
    """A source over ArrayRecord files; images stay encoded, `name` is `split[position]`.

    `read(example)` gives the fields of an example as TFDS stores it.
    """

    def __init__(
        self, tables: Mapping[str, Any], rows: Sequence, info: Info, read: Callable[[dict], dict]
    ):
        self.info = info
        self._tables, self._rows, self._read = tables, rows, read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        name = f"{split}[{position}]"
        try:
            found = self._read(self._tables[split][position])
        except Exception as error:  # array_record raises no class of its own
            raise DataError(f"cannot read {name} of {self.info.name}: {error}") from error
        label, classes = found.get("label", 0), len(self.info.classes)
        if not 0 <= label < max(classes, 1):
            raise DataError(
                f"{name} of {self.info.name} has label {label}, out of the range 0 to {classes - 1}"
            )
        return {**found, "name": name}


def source(
    split: str,
    builder: str = "",
    data_dir: str = "",
    image_key: str = "image",
    label_key: str = "label",
) -> Tfds:
    """Reads `builder` (`cifar100`, `eurosat/rgb`, `kitti:3.3.0`) from `data_dir`.

    An empty `data_dir` is TFDS's own, `~/tensorflow_datasets` or `$TFDS_DATA_DIR`.
    """
    import tensorflow_datasets as tfds

    obtain = OBTAIN.format(repr(builder) + (f", data_dir={data_dir!r}" if data_dir else ""))
    elsewhere = OBTAIN.format(f"{builder!r}, data_dir='ANOTHER_FOLDER'")
    made = prepared(builder, data_dir, obtain, elsewhere)
    name, features = made.info.full_name, features_of(made)
    for key, kind in ((image_key, tfds.features.Image), (label_key, tfds.features.ClassLabel)):
        if not isinstance(features.get(key), kind):
            fitting = [other for other, feature in features.items() if isinstance(feature, kind)]
            raise DataError(
                f"{name} has no {kind.__name__} feature {key!r}; {suggest(key, fitting)}"
            )
    info = labelled(
        name=name,
        classes=classes_of(made, label_key),
        counts=counts(made),
        obtain=obtain,
        fingerprint=fingerprint(made),
    )
    rows = Rows(split, info.counts)  # a wrong split is refused before any file is opened

    def read(example):
        return {"image": example[image_key], "label": int(example[label_key])}

    return Tfds(tables(made, split), rows, info, read)


def prepared(builder: str, data_dir: str, obtain: str, elsewhere: str) -> Any:
    """The TFDS builder, whose data lie in `data_dir` as ArrayRecord.

    Raises:
        DataError: if they don't, with `obtain` or, for another file format, `elsewhere`.
    """
    made = make(builder, data_dir)
    name, folder = made.info.full_name, made.data_dir
    with _reading(name, folder):
        # TFDS warns of a folder that is not there, which the error says.
        there = made.data_path.is_dir() and made.is_prepared()
        formats = sorted(form.value for form in made.info.available_file_formats()) if there else []
    if not there:
        raise DataError(f"{name} is not in {folder}; {obtain}")
    if "array_record" not in formats:
        raise DataError(
            f"{name} in {folder} is stored as {', '.join(formats)}, which only TensorFlow reads; "
            + elsewhere
        )
    return made


def counts(made: Any) -> dict[str, int]:
    """Examples in each split of a builder, as its metadata says."""
    return {part: given.num_examples for part, given in made.info.splits.items()}


def features_of(made: Any) -> dict[str, Any]:
    """The features of a builder by name; raises DataError where its metadata have none."""
    with _reading(made.info.full_name, made.data_dir):
        return dict(made.info.features.items())


def classes_of(made: Any, key: str) -> tuple[str, ...]:
    """The classes of a builder's feature; raises DataError for more than `MAX_CLASSES`."""
    with _reading(made.info.full_name, made.data_dir):
        feature = made.info.features[key]
        if not 1 <= feature.num_classes <= MAX_CLASSES:
            raise DataError(
                f"{made.info.full_name} in {made.data_dir} has {feature.num_classes:,} classes, "
                f"where 1 to {MAX_CLASSES:,} are served"
            )
        return tuple(feature.names)


def tables(made: Any, split: str) -> dict[str, Any]:
    """Opens the base splits that `split` names, and no others; images stay encoded."""
    import tensorflow_datasets as tfds

    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features_of(made).items()
        if isinstance(feature, tfds.features.Image)
    }
    with _reading(made.info.full_name, made.data_dir):
        return {
            part: made.as_data_source(part, decoders=decoders, file_format="array_record")
            for part, _ in parse(split)
        }


@contextlib.contextmanager
def _reading(name: str, folder: str) -> Iterator[None]:
    """Turns what TFDS raises over damaged files, which is anything, into a DataError."""
    try:
        yield
    except DynadaptError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise DataError(f"cannot read {name} in {folder}: it is damaged ({reason})") from error


def fingerprint(made: Any) -> str:
    """SHA-256 over name, version and the shards of each split."""
    digest = hashlib.sha256(made.info.full_name.encode())
    for name, part in sorted(made.info.splits.items()):
        digest.update(f"{name} {part.shard_lengths} {part.num_bytes}".encode())
    return digest.hexdigest()


def make(name: str, data_dir: str, **settings: Any) -> Any:
    """The TFDS builder of that name, whether its data are there or not; raises DataError.

    Nothing is fetched, and nothing is imported that is not of TFDS.
    """
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if not name:
        raise DataError("the setting builder is empty; name a TFDS builder, such as cifar100")
    if not _NAME.fullmatch(name):
        raise DataError(
            f"TFDS cannot make the builder {name!r:.200} here; name one of its own, such as "
            "cifar100, eurosat/rgb or kitti:3.3.0"
        )
    if "://" in data_dir:
        raise DataError(
            f"the data folder {data_dir!r:.200} is not on this machine; name one that is"
        )
    stem = re.split("[/:]", name)[0]
    _check_classes(Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)) / stem)
    try:
        return tfds.builder(name, data_dir=data_dir or None, **settings)
    except tfds.core.DatasetNotFoundError:
        near = suggest(stem, known) if _near(stem, known) else "tfds.list_builders() names them"
        raise DataError(f"TFDS has no builder {name!r}; {near}") from None
    except ImportError as error:
        raise DataError(
            f"the TFDS builder {name!r} cannot even be read here, {str(error).split(': ')[-1]}; "
            "choose another"
        ) from None
    except Exception as error:  # over damaged metadata TFDS raises anything
        raise DataError(f"TFDS cannot make the builder {name!r}: {first_line(error)}") from None


def _check_classes(folder: Path) -> None:
    """Raises a DataError where metadata name a class that TFDS would import from elsewhere."""
    for file in sorted(folder.glob("**/features.json")):

        def check(values: dict[str, Any], file: Path = file) -> None:
            for named in (values[key] for key in _CLASSES if key in values):
                if isinstance(named, str) and not named.startswith("tensorflow_datasets."):
                    raise DataError(f"{file} names the class {named!r}, which is none of TFDS")

        try:
            json.loads(file.read_bytes(), object_hook=check)
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"cannot read {file}: {first_line(error)}") from None


def _near(name: str, known: list[str]) -> bool:
    return "did you mean" in suggest(name, known)
