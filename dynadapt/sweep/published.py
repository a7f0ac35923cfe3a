"""Published accuracies of ViT-B/16, pretrained on ImageNet-21k, on VTAB-1K, task by task.

All rows but one are as the README of V-PETL Bench collects them, Convpass as the README of its code
prints it. They come from three pipelines, which differ in how images reach the network:

| protocol | resize | normalisation | of whom |
| --- | --- | --- | --- |
| `vpt` | bilinear, no antialias | ImageNet | VPT (Jia et al., 2203.12119) and its baselines |
| `noah` | bicubic | ImageNet | NOAH (Zhang et al., 2206.04673) and those after it |
| `ssf` | direct | mean = std = 0.5 | SSF (Lian et al., 2210.08823) |

The pipeline of a row is that of its authors' code; the collection itself doesn't name it. The code
of the `noah` and `ssf` rows reports the best epoch on the test set, so they are optimistic, and
differences under half a point between rows mean nothing.
"""

import dataclasses
import re
from typing import Any

from dynadapt.data.vtab import TASKS

BACKBONE = "vit_b16"
PRETRAINING = "ImageNet-21k"

BENCH = "README of V-PETL Bench (synbol/Parameter-Efficient-Transfer-Learning-Benchmark)"
PETL_VIT = "README of Convpass (JieShibo/PETL-ViT)"


@dataclasses.dataclass(frozen=True)
class Row:
    """One published row.

    Attributes:
        title: the method as it is printed.
        method: the same method here; empty if there is none.
        settings: those of our settings that the printed method fixes.
        protocol: name of the pipeline.
        source: where the numbers are printed.
        trained: trained parameters without head in millions, as printed; None if not known.
        top1: accuracy in percent by task.
        printed: the mean that stands beside the row.
        mean: which mean that is, "tasks" or "groups".
    """

    title: str
    method: str
    settings: dict[str, Any]
    protocol: str
    source: str
    trained: float | None
    top1: dict[str, float]
    printed: float
    mean: str


def _row(
    title: str,
    protocol: str,
    numbers: str,
    printed: float,
    *,
    method: str = "",
    trained: float | None = None,
    source: str = BENCH,
    mean: str = "tasks",
    **settings: Any,
) -> Row:
    values = [float(n) for n in re.split(r"[ /]+", numbers)]  # in the order of the suite
    top1 = dict(zip(TASKS, values, strict=True))
    return Row(title, method, settings, protocol, source, trained, top1, printed, mean)


ROWS = (
    _row(
        *("Full", "vpt"),
        "68.9 87.7 64.3 97.2 86.9 87.4 38.8 / 79.7 95.7 84.2 73.9 / "
        "56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1",
        65.57,
        method="full",
        trained=85.8,
    ),
    _row(
        *("Linear", "vpt"),
        "63.4 85.0 63.2 97.0 86.3 36.6 51.0 / 78.5 87.5 68.6 74.0 / "
        "34.3 30.6 33.2 55.4 12.5 20.0 9.6 19.2",
        52.94,
        method="linear",
        trained=0.0,
    ),
    _row(
        *("BitFit", "vpt"),
        "72.8 87.0 59.2 97.5 85.3 59.9 51.4 / 78.7 91.6 72.9 69.8 / "
        "61.5 55.6 32.4 55.9 66.6 40.0 15.7 25.1",
        62.05,
        method="bitfit",
        trained=0.10,
    ),
    _row(
        *("VPT-Shallow", "vpt"),
        "77.7 86.9 62.6 97.5 87.3 74.5 51.2 / 78.2 92.0 75.6 72.9 / "
        "50.5 58.6 40.5 67.1 68.7 36.1 20.2 34.1",
        64.85,
        method="vpt",
        form="shallow",
    ),
    _row(
        *("VPT-Deep", "vpt"),
        "78.8 90.8 65.8 98.0 88.3 78.1 49.6 / 81.8 96.1 83.4 68.4 / "
        "68.5 60.0 46.5 72.8 73.6 47.9 32.9 37.8",
        69.43,
        method="vpt",
        form="deep",
    ),
    _row(
        *("Adapter-8", "noah"),
        "69.2 90.1 68.0 98.8 89.9 82.8 54.3 / 84.0 94.9 81.9 75.5 / "
        "80.9 65.3 48.6 78.3 74.8 48.5 29.9 41.6",
        71.44,
        method="adapter",
        trained=0.16,
        rank=8,
        form="pfeiffer",
    ),
    _row(
        *("LoRA-8", "noah"),
        "67.1 91.4 69.4 98.8 90.4 85.3 54.0 / 84.9 95.3 84.4 73.6 / "
        "82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0",
        72.25,
        method="lora",
        trained=0.29,
        rank=8,
        targets=("q", "v"),
    ),
    _row(
        *("AdaptFormer-8", "noah"),
        "70.8 91.2 70.5 99.1 90.9 86.6 54.8 / 83.0 95.8 84.4 76.3 / "
        "81.9 64.3 49.3 80.3 76.3 45.7 31.7 41.1",
        72.32,
        method="adaptformer",
        trained=0.16,
        rank=8,
    ),
    _row(
        *("SSF", "ssf"),
        "69.0 92.6 75.1 99.4 91.8 90.2 52.9 / 87.4 95.9 87.4 75.5 / "
        "75.9 62.3 53.3 80.6 77.3 54.9 29.5 37.9",
        73.10,
        method="ssf",
        trained=0.21,
    ),
    _row(
        *("NOAH", "noah"),
        "69.6 92.7 70.2 99.1 90.4 86.1 53.7 / 84.4 95.4 83.9 75.8 / "
        "82.8 68.9 49.9 81.7 81.8 48.3 32.8 44.2",
        73.25,
        trained=0.43,
    ),
    _row(
        *("FacT", "noah"),
        "70.6 90.6 70.8 99.1 90.7 88.6 54.1 / 84.8 96.2 84.5 75.7 / "
        "82.6 68.2 49.8 80.7 80.8 47.4 33.2 43.0",
        73.23,
        method="fact",
        trained=0.07,
        form="tk",
    ),
    _row(
        *("RepAdapter", "noah"),
        "72.4 91.6 71.0 99.2 91.4 90.7 55.1 / 85.3 95.9 84.6 75.9 / "
        "82.3 68.0 50.4 79.9 80.4 49.2 38.6 41.0",
        73.84,
        method="repadapter",
        trained=0.22,
        rank=8,
        groups=2,
        bias=False,
    ),
    _row(
        *("Convpass", "noah"),
        "72.29 91.16 72.18 99.15 90.90 91.26 54.87 / 84.19 96.13 85.32 75.60 / "
        "82.26 67.86 51.31 80.03 85.94 53.13 36.43 44.44",
        76.56,
        method="convpass",
        trained=0.33,
        source=PETL_VIT,
        mean="groups",
        rank=8,
        placement="both",
    ),
)


def pretrained(weights: str) -> bool:
    """Whether a file's or catalogue's name says that the weights come from the rows' data set."""
    name = weights.rsplit("/", 1)[-1].lower()
    tuned = re.search(r"in1k|imagenet2012", name)
    return not tuned and bool(re.search(r"in21k|i21k|in22k|vit-b_16(\.npz)?$", name))
