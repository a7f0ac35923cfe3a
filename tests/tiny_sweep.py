"""The command `dynadapt` with a backbone that trains in no time, `vit_tiny`, for tests.

python tests/tiny_sweep.py vtab run --backbone=vit_tiny …
"""

import sys

from dynadapt import ending
from dynadapt.backbones import vit
from dynadapt.main import main

TINY = dict(dim=32, depth=2, heads=2, patch=4, image_size=16)

if __name__ == "__main__":
    vit.VARIANTS["vit_tiny"] = TINY
    code = main(sys.argv[1:])
    ending.leave(code)
    sys.exit(code)
