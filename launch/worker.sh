#!/usr/bin/env bash
# What each process of a pod or cluster runs: installs into .venv at the first start, joins the
# other processes, and runs a dynadapt command. Started the same way on every worker:
#
#   launch/worker.sh train --config=configs/quickstart.py --workdir=runs/quickstart
#   launch/worker.sh --print train …        shows the commands and runs none
#   launch/worker.sh --background train …   starts it, unless it runs already, and returns
#   launch/worker.sh --follow               shows its log to the end; answers with its exit code
#
# EXTRAS                comma list of extras in setup.cfg; tpu by default
# DYNADAPT              a dynadapt that is installed already; nothing is installed then
# DYNADAPT_DISTRIBUTED  how the processes meet: 1 (default) on TPU pods and GKE, or
#                       host:port,count,number anywhere; 0 lets this one run alone
# COORDINATOR           in a Slurm job host:port of the first task; count and number are Slurm's
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
source launch/steps.sh
printing "$@"
if $print; then shift; fi
if [ $# -eq 0 ]; then fail "give a dynadapt command to run, such as: train --config=…"; fi

if [ "$1" = --background ]; then
  shift
  if [ -e worker.pid ] && kill -0 "$(cat worker.pid)" 2>/dev/null; then
    printf 'dynadapt: it runs already\n' >&2
    exit
  fi
  rm -f worker.code
  # shellcheck disable=SC2016 # the inner shell expands them
  nohup bash -c '"$0" "$@"; echo $? >worker.code' launch/worker.sh "$@" \
    >worker.log 2>&1 </dev/null &
  echo $! >worker.pid
  exit
fi
if [ "$1" = --follow ]; then
  tail -n +1 -f --pid="$(cat worker.pid)" worker.log
  if [ ! -e worker.code ]; then fail "the command was killed; start it again and it goes on"; fi
  exit "$(cat worker.code)"
fi

dynadapt=${DYNADAPT:-.venv/bin/dynadapt}
if [ -z "${DYNADAPT:-}" ]; then installing "${EXTRAS-tpu}"; fi
if [ -n "${COORDINATOR:-}" ]; then
  DYNADAPT_DISTRIBUTED=$COORDINATOR,${SLURM_NTASKS:-1},${SLURM_PROCID:-0}
fi
export DYNADAPT_DISTRIBUTED="${DYNADAPT_DISTRIBUTED:-1}"
if $print; then
  step env "DYNADAPT_DISTRIBUTED=$DYNADAPT_DISTRIBUTED" "$dynadapt" "$@"
else
  exec "$dynadapt" "$@"
fi
