"""Compiles the training step of ViT-B/16 for 16 TPU v5e chips that aren't here.

python tests/tpu_ahead.py METHOD:DATA:FSDP:REMAT ...      prints one JSON document a case

224 px, 64 images a chip, bfloat16 compute and frozen storage, blocks scanned.
"""

import json
import sys
import time

from dynadapt import config
from dynadapt.plans import plan


def case(method, data, fsdp, remat):
    c = config.default(backbone="vit_b16", method=method, data_set="digits")
    c.backbone.scan, c.backbone.remat = True, remat
    c.input.batch_size = 64 * 16
    c.input.train_split = "train+test"
    c.compute.dtype = c.compute.frozen_dtype = "bfloat16"
    c.mesh.data, c.mesh.fsdp = data, fsdp
    c.optim.steps = 100
    return c


def main(names):
    for name in names:
        method, data, fsdp, remat = name.split(":")
        begun = time.monotonic()
        found = plan.run(case(method, int(data), int(fsdp), remat == "remat"), "v5e:4x4")
        seconds = round(time.monotonic() - begun, 1)
        print(json.dumps({"case": name, "seconds": seconds, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
