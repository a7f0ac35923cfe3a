#!/usr/bin/env bash
# Checks style, then runs the tests; arguments go to pytest:
#
#   launch/test.sh
#   launch/test.sh -m "not slow" tests/data
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh

extras=test,dev,viz,coco,clouds,export
# libtpu compiles for TPUs that aren't here; it exists for this platform alone.
if [ "$(uname -sm)" = "Linux x86_64" ]; then extras=$extras,tpu; fi
install_dynadapt "$extras"

if [ -x .venv/bin/ruff ]; then
  # Flags, since ruff reads no setup.cfg; --isolated keeps a user's own settings out.
  style=(--isolated --target-version py311 --line-length 100)
  .venv/bin/ruff check "${style[@]}" --select E,F,I,UP,B dynadapt tests configs >&2
  .venv/bin/ruff format "${style[@]}" --check dynadapt tests configs >&2
fi

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# A worker that crashes ends the run: what it leaves to others isn't always run.
workers=(-n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0)
exec .venv/bin/python -m pytest "${workers[@]}" "$@"
