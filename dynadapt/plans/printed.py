"""Counts that the literature prints, for the column beside ours."""

from dynadapt import adapters

# What VFM-Adapter (AAAI 2025) prints of detection with ATSS on COCO, Tables 1 and 4: millions that
# train, with neck and head. Swin's and DINOv2's rows of `full` and `linear` are the same there.
_METHODS = ("full", "linear", "bitfit", "lora", "ssf", "lorand", "arc", "vfm_adapter")
DETECTION = {
    "dinov2_b14": ("98.0", "9.15", "9.25", "9.88", "9.35", "12.15", "9.37", "11.93"),
    "sam_b16": ("97.3", "7.64", "7.74", "8.38", "7.85", "10.68", "7.87", "10.42"),
    "swin_b": ("98.0", "9.15", "9.28", "11.22", "9.42", "12.23", "9.36", "12.17"),
    "vit_h14": ("663.1", "11.7", "12.2", "44.5", "12.6", "64.8", "13.1", "39.5"),
}
CLASSES = 80  # of COCO


def printed(method: str, backbone: str, task: str, classes: int) -> str:
    """What is printed of a method on a backbone, "" where nothing is.

    Of detection it is a count with neck and head, and only for COCO's classes; otherwise that of
    the method alone, or its share.
    """
    if task == "detection" and backbone in DETECTION:
        counts = dict(zip(_METHODS, DETECTION[backbone], strict=True))
        return f"{counts[method]} M with head" if classes == CLASSES and method in counts else ""
    return getattr(adapters.module(method), "PRINTED", {}).get(backbone, "")
