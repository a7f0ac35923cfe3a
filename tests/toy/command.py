"""The command `dynadapt` with the toy task and its data set, which live here alone.

python -m tests.toy.command train --config=tests/toy/config.py --workdir=DIR
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from dynadapt import data, ending, tasks
from dynadapt.main import main

HERE = Path(__file__).parent


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """While it lasts, the toy is found among the tasks and the data sets."""
    packages = {"tasks": tasks, "data": data}
    for folder, package in packages.items():
        package.__path__.append(str(HERE / folder))
    try:
        yield
    finally:
        for folder, package in packages.items():
            package.__path__.remove(str(HERE / folder))
            sys.modules.pop(f"{package.__name__}.toy", None)
            vars(package).pop("toy", None)


if __name__ == "__main__":
    with registered():
        code = main(sys.argv[1:])
        ending.leave(code)
        sys.exit(code)
