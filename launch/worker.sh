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
settings=("DYNADAPT_DISTRIBUTED=${DYNADAPT_DISTRIBUTED:-1}")

# Slurm shows a task its own GPUs, or to each all those of its node. JAX by itself takes the GPU of
# the task's number on its node, which isn't there if Slurm shows one, and is too little for a task
# that is alone there.
if [ -n "${SLURM_LOCALID:-}" ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  count=${#gpus[@]}
  if [ "$count" = 1 ] || [ "${SLURM_NTASKS:-}" = "${SLURM_STEP_NUM_NODES:-1}" ]; then
    settings+=("JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((count - 1)))")
  elif [ "$SLURM_LOCALID" -ge "$count" ]; then
    fail "there are more tasks than the $count GPUs of this node; give a task for each GPU"
  elif [ "${DYNADAPT_DISTRIBUTED:-1}" = 0 ]; then
    settings+=("CUDA_VISIBLE_DEVICES=${gpus[SLURM_LOCALID]}")
  fi
fi
if $print; then
  step env "${settings[@]}" "$dynadapt" "$@"
else
  exec env "${settings[@]}" "$dynadapt" "$@"
fi
