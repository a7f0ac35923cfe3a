"""ScanObjectNN: scanned things of 15 classes, from the HDF5 files that its authors give out.

Uy et al., "Revisiting Point Cloud Classification: A New Benchmark Dataset and Classification Model
on Real-World Data", ICCV 2019, arXiv 1908.04616.

| variant | files `<split>` = `training`, `test` |
| --- | --- |
| `obj_bg` | `main_split/<split>_objectdataset.h5` |
| `obj_only` | `main_split_nobg/<split>_objectdataset.h5` |
| `pb_t50_rs` | `main_split/<split>_objectdataset_augmentedrot_scale75.h5` |

Points are as they are stored: neither centred nor scaled; y is up.
"""

from pathlib import Path

from dynadapt.data import Arrays, Info, hdf5, parse
from dynadapt.data.cloud_sources import digest, fields, folder
from dynadapt.errors import DataError, MissingSplit, UnknownName, suggest

VARIANTS = {
    "obj_bg": "main_split/{}_objectdataset.h5",
    "obj_only": "main_split_nobg/{}_objectdataset.h5",
    "pb_t50_rs": "main_split/{}_objectdataset_augmentedrot_scale75.h5",
}
SPLITS = {"train": "training", "test": "test"}
POINTS = 2048
UNIT = False  # whether clouds are centred and scaled, as new ones then have to be
CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table"),
    *("bed", "pillow", "sink", "sofa", "toilet"),
)
OBTAIN = (
    "ask for h5_files.zip at hkust-vgd.github.io/scanobjectnn, unpack it and let data.path be the "
    "folder h5_files"
)


def source(split: str, path: str = "", variant: str = "pb_t50_rs") -> Arrays:
    """The splits `train` and `test` of the folder h5_files, or of one that holds it.

    Args:
        split: which.
        path: the folder.
        variant: one of `VARIANTS`.

    Raises:
        UnknownName: for a variant that isn't there.
        DataError: for files that are missing, damaged, or not of 2,048 points and 15 classes.
    """
    if variant not in VARIANTS:
        raise UnknownName("variant of ScanObjectNN", variant, VARIANTS)
    root = folder(path, OBTAIN)
    root = root / "h5_files" if (root / "h5_files").is_dir() else root
    wanted = {name for name, _ in parse(split)}
    for name in sorted(wanted - set(SPLITS)):
        raise MissingSplit(f"ScanObjectNN has no split {name!r}; {suggest(name, SPLITS)}")
    clouds, labels = {}, {}
    for name in sorted(wanted):
        file = root / VARIANTS[variant].format(SPLITS[name])
        clouds[name], labels[name] = hdf5.read(_there(file), POINTS, len(CLASSES))
    counts = {name: len(values) for name, values in clouds.items()}
    found = digest(variant, clouds, labels)
    info = Info("scanobjectnn", fields(POINTS, CLASSES), counts, OBTAIN, found)
    return Arrays(split, clouds, labels, info, "points")


def _there(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"there is no file {file}; {OBTAIN}")
    return file
