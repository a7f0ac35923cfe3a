"""Any image-classification builder of TensorFlow Datasets, read from ArrayRecord.

TensorFlow is needed once, to prepare a set; reading never imports it.
"""

import hashlib
from typing import Any

from dynadapt.data import Info, Rows, parse
from dynadapt.errors import DataError, suggest

OBTAIN = (
    "prepare it once, with the extra dynadapt[data], by "
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder({}, file_format='array_record').download_and_prepare()\""
)


class Tfds:
    """A source over ArrayRecord files; images stay encoded, `name` is `split[position]`."""

    def __init__(self, split: str, tables: dict[str, Any], image_key: str, label_key: str, info):
        self.info = info
        self._tables, self._image, self._label = tables, image_key, label_key
        self._rows = Rows(split, info.counts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        name = f"{split}[{position}]"
        try:
            example = self._tables[split][position]
        except Exception as error:  # array_record raises no class of its own
            raise DataError(f"cannot read {name} of {self.info.name}: {error}") from error
        return {"image": example[self._image], "label": int(example[self._label]), "name": name}


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

    made = _builder(tfds, builder, data_dir)
    name, folder = made.info.full_name, made.data_dir
    obtain = OBTAIN.format(repr(builder) + (f", data_dir={data_dir!r}" if data_dir else ""))
    if not made.is_prepared():
        raise DataError(f"{name} is not in {folder}; {obtain}")
    formats = sorted(form.value for form in made.info.available_file_formats())
    if "array_record" not in formats:
        elsewhere = OBTAIN.format(f"{builder!r}, data_dir='ANOTHER_FOLDER'")
        raise DataError(
            f"{name} in {folder} is stored as {', '.join(formats)}, which only TensorFlow reads; "
            + elsewhere
        )
    features = dict(made.info.features.items())
    for key, kind in ((image_key, tfds.features.Image), (label_key, tfds.features.ClassLabel)):
        if not isinstance(features.get(key), kind):
            fitting = [other for other, feature in features.items() if isinstance(feature, kind)]
            raise DataError(
                f"{name} has no {kind.__name__} feature {key!r}; {suggest(key, fitting)}"
            )
    info = Info(
        name=name,
        classes=tuple(features[label_key].names),
        counts={part: given.num_examples for part, given in made.info.splits.items()},
        obtain=obtain,
        fingerprint=_fingerprint(made.info),
    )
    Rows(split, info.counts)  # a wrong split is refused before any file is opened
    decoders = {image_key: tfds.decode.SkipDecoding()}
    tables = {
        part: made.as_data_source(part, decoders=decoders, file_format="array_record")
        for part, _ in parse(split)
    }
    return Tfds(split, tables, image_key, label_key, info)


def _builder(tfds, name: str, data_dir: str):
    known = tfds.list_builders(with_community_datasets=False)
    if not name:
        raise DataError("the setting builder is empty; name a TFDS builder, such as cifar100")
    try:
        return tfds.builder(name, data_dir=data_dir or None)
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


def _fingerprint(info) -> str:
    """SHA-256 over name, version and the shards of each split."""
    digest = hashlib.sha256(info.full_name.encode())
    for name, part in sorted(info.splits.items()):
        digest.update(f"{name} {part.shard_lengths} {part.num_bytes}".encode())
    return digest.hexdigest()
