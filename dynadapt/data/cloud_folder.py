"""Files of point clouds of one's own, in a folder for each class.

`dynadapt.data.class_folders` says where they lie, `dynadapt.data.cloud_files` what is read.
"""

from pathlib import Path

import numpy as np

from dynadapt.data import Info, class_folders, parse
from dynadapt.data.class_folders import Sought
from dynadapt.data.cloud_files import in_sphere, is_cloud, read
from dynadapt.data.cloud_sources import Files, Sampler, check_count, fields, fingerprint, folder

OBTAIN = (
    "put files of points (.npy, .npz, .ply, .pcd, .xyz, .txt) in path/<split>/<class>/, or in "
    "path/<class>/ for the one split train"
)


def source(
    split: str,
    path: str = "",
    count: int = 1024,
    unit: bool = True,
    classes: tuple[str, ...] = (),
) -> Files:
    """Reads clouds in folders under `path`, and keeps them in memory.

    Args:
        split: which; a folder without splits has the one split `train`, to be sliced.
        path: the folder.
        count: points that each cloud is brought to by a draw that depends on its path alone; where
            a file has fewer, some stand twice.
        unit: centre each cloud and scale it into the unit sphere, as it is stored; else its
            coordinates are what they are.
        classes: names of the classes, in order; else those of `path/classes.txt`, else the folders.

    Raises:
        DataError: for what isn't there, and for a class that is none of the known ones.
    """
    check_count(count)
    root = folder(path, OBTAIN)
    splits = [*dict.fromkeys(name for name, _ in parse(split))]
    found, classes = class_folders.read(root, splits, classes, Sought(is_cloud, "cloud", OBTAIN))
    items = {name: [(file, labels[0]) for file, labels in rows] for name, rows in found.items()}
    sample = Sampler(count)

    def points(file: Path, relative: str) -> dict[str, np.ndarray]:
        given = read(file)
        whole = in_sphere(given) if unit else given
        return {"points": whole[sample(len(whole), relative)].astype(np.float32)}

    counts = {name: len(rows) for name, rows in items.items()}
    info = Info(
        *("cloud_folder", fields(count, classes), counts, OBTAIN),
        fingerprint(f"{count} {unit}", items),
    )
    return Files(split, root, items, info, points)
