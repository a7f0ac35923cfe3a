#!/usr/bin/env bash
# Runs a dynadapt command on this machine, installing into .venv at the first start:
#
#   launch/local.sh train --config=configs/quickstart.py --workdir=runs/quickstart
#   EXTRAS=cuda13 launch/local.sh train --config=configs/quickstart.py --workdir=runs/quickstart
#
# EXTRAS  comma list of extras in setup.cfg: cuda12, cuda13, tpu, data, ...
# PYTHON  the Python to make .venv with; by default the first of version 3.11 or later
# Relative paths are taken from the repository's root.
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
install_dynadapt "${EXTRAS:-}"
export DYNADAPT_COMMAND=launch/local.sh
exec .venv/bin/dynadapt "$@"
