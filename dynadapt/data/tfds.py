"""Any image-classification builder of TensorFlow Datasets, read from ArrayRecord.

TensorFlow is needed once, to prepare a set; reading never imports it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynadapt.data import Info, Rows, labelled, parse
from dynadapt.errors import DataError, suggest

OBTAIN = (
    "prepare it once, with the extra dynadapt[data], by "
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder({}, file_format='array_record').download_and_prepare()\""
)


class Tfds:
    """A source over ArrayRecord files; images stay encoded, `name` is `split[position]`.

    `read(example)` gives the image and the label of an example as TFDS stores it.
    """

    def __init__(
        self, tables: Mapping[str, Any], rows: Sequence, info: Info, read: Callable[[dict], tuple]
    ):
        self.info = info
        self._tables, self._rows, self._read = tables, rows, read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        name = f"{split}[{position}]"
        try:
            image, label = self._read(self._tables[split][position])
        except Exception as error:  # array_record raises no class of its own
            raise DataError(f"cannot read {name} of {self.info.name}: {error}") from error
        classes = len(self.info.classes)
        if not 0 <= label < classes:
            raise DataError(
                f"{name} of {self.info.name} has label {label}, out of the range 0 to {classes - 1}"
            )
        return {"image": image, "label": int(label), "name": name}


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
    name, features = made.info.full_name, dict(made.info.features.items())
    for key, kind in ((image_key, tfds.features.Image), (label_key, tfds.features.ClassLabel)):
        if not isinstance(features.get(key), kind):
            fitting = [other for other, feature in features.items() if isinstance(feature, kind)]
            raise DataError(
                f"{name} has no {kind.__name__} feature {key!r}; {suggest(key, fitting)}"
            )
    info = labelled(
        name=name,
        classes=tuple(features[label_key].names),
        counts=counts(made),
        obtain=obtain,
        fingerprint=fingerprint(made),
    )
    rows = Rows(split, info.counts)  # a wrong split is refused before any file is opened

    def read(example):
        return example[image_key], int(example[label_key])

    return Tfds(tables(made, split), rows, info, read)


def prepared(builder: str, data_dir: str, obtain: str, elsewhere: str) -> Any:
    """The TFDS builder, whose data lie in `data_dir` as ArrayRecord.

    Raises:
        DataError: if they don't, with `obtain` or, for another file format, `elsewhere`.
    """
    made = make(builder, data_dir)
    name, folder = made.info.full_name, made.data_dir
    # TFDS warns of a folder that is not there, which the error says.
    if not (made.data_path.is_dir() and made.is_prepared()):
        raise DataError(f"{name} is not in {folder}; {obtain}")
    formats = sorted(form.value for form in made.info.available_file_formats())
    if "array_record" not in formats:
        raise DataError(
            f"{name} in {folder} is stored as {', '.join(formats)}, which only TensorFlow reads; "
            + elsewhere
        )
    return made


def counts(made: Any) -> dict[str, int]:
    """Examples in each split of a builder, as its metadata says."""
    return {part: given.num_examples for part, given in made.info.splits.items()}


def tables(made: Any, split: str) -> dict[str, Any]:
    """Opens the base splits that `split` names, and no others; images stay encoded."""
    import tensorflow_datasets as tfds

    features = made.info.features.items()
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features
        if isinstance(feature, tfds.features.Image)
    }
    return {
        part: made.as_data_source(part, decoders=decoders, file_format="array_record")
        for part, _ in parse(split)
    }


def fingerprint(made: Any) -> str:
    """SHA-256 over name, version and the shards of each split."""
    digest = hashlib.sha256(made.info.full_name.encode())
    for name, part in sorted(made.info.splits.items()):
        digest.update(f"{name} {part.shard_lengths} {part.num_bytes}".encode())
    return digest.hexdigest()


def make(name: str, data_dir: str, **settings: Any) -> Any:
    """The TFDS builder of that name, whether its data are there or not; raises DataError."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if not name:
        raise DataError("the setting builder is empty; name a TFDS builder, such as cifar100")
    try:
        return tfds.builder(name, data_dir=data_dir or None, **settings)
    except tfds.core.DatasetNotFoundError:
        stem = name.split("/")[0].split(":")[0]
        near = suggest(stem, known) if _near(stem, known) else "tfds.list_builders() names them"
        raise DataError(f"TFDS has no builder {name!r}; {near}") from None
    except ImportError as error:
        raise DataError(
            f"the TFDS builder {name!r} cannot even be read here, {str(error).split(': ')[-1]}; "
            "choose another"
        ) from None
    except (ValueError, AssertionError) as error:
        raise DataError(f"TFDS cannot make the builder {name!r}: {_first_line(error)}") from None


def _near(name: str, known: list[str]) -> bool:
    return "did you mean" in suggest(name, known)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
