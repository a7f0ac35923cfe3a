"""What each of several processes hears of the others; prints one JSON document.

DYNADAPT_DISTRIBUTED=localhost:PORT,COUNT,NUMBER python tests/gathering.py
"""

import json
import sys

import jax
import numpy as np

from dynadapt import processes
from dynadapt.errors import MachineError


def gathered():
    processes.start()
    number = jax.process_index()
    rows = processes.gather_rows({"a": np.arange(2) + 10 * number, "b": np.full((2, 1), number)})
    heard = {
        "rows": {name: x.tolist() for name, x in rows.items()},
        # Of different lengths, of none at all, and with a zero at the end.
        "bytes": [
            [list(part) for part in processes.gather_bytes(own)]
            for own in (bytes(range(3 * number)), b"", b"\1\0")
        ],
        "any": [processes.any_process(flag) for flag in (number == 1, False)],
        "strangers": "",
    }
    processes.agree("00ff")
    try:
        processes.agree(f"00f{number}")
    except MachineError as error:
        heard["strangers"] = str(error)
    return heard


if __name__ == "__main__":
    document, sys.stdout = sys.stdout, sys.stderr
    json.dump(gathered(), document)
