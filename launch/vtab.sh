#!/usr/bin/env bash
# Runs the VTAB benchmark on this machine and writes its report; options go to `dynadapt vtab run`:
#
#   launch/vtab.sh --config=configs/offline.py --suite=offline --methods=linear,lora,iconformer \
#     --tasks=here --seeds=0,1,2 --backbone=vit_mini --weights=vit_mini --workdir=runs/offline
#   launch/vtab.sh --print …     shows the commands and runs none
#
# The report is DIR/table.md and DIR/table.csv; where tasks are missing its title says so. Started
# again, it goes on where it was; started on several machines that share DIR, each does a part.
#
# EXTRAS  comma list of extras in setup.cfg: cuda12, cuda13, tpu, …
# PYTHON  the Python to make .venv with
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
source launch/steps.sh
printing "$@"
if $print; then shift; fi
folder=$(workdir "$@")
if [ -z "$folder" ]; then fail "give --workdir=DIR, where the results go"; fi

step launch/local.sh vtab run "$@"
for word in "$@"; do
  if [ "$word" = --dry-run ] || [ "$word" = --dry_run ]; then exit; fi
done
step launch/local.sh vtab report --partial "--workdir=$folder" "--out=$folder/table.csv"
step launch/local.sh vtab report --partial "--workdir=$folder" "--out=$folder/table.md"
