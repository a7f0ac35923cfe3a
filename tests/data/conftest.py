import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def encode():
    """encode(array, "PNG") -> bytes of an image file."""

    def run(array, kind="PNG", **options):
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(array, np.uint8)).save(buffer, kind, **options)
        return buffer.getvalue()

    return run


@pytest.fixture
def photo():
    y, x = np.mgrid[:30, :40]
    return np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8)
