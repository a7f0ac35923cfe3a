#!/usr/bin/env bash
# Runs a dynadapt command on a TPU pod: requests it, waits, copies this repository to all workers,
# starts the command on every one, follows the log, fetches the results, gives the pod back.
#
#   NAME=adapt ZONE=us-west4-a SHARED=10.0.0.2:/share \
#     launch/tpu_pod.sh train --config=configs/quickstart.py --workdir=runs/quickstart
#   … launch/tpu_pod.sh --print train …     shows the commands and runs none
#
# Run it again after a preemption, or after your own machine lost the connection: it takes up what
# is there, and the run goes on from its last checkpoint. A request that fails is made again; the
# third that failed stays as it is, for you to look at, and ends this.
#
# NAME         of the queued resource and of its node
# ZONE         where
# SHARED       an NFS share, host:/path (Filestore is one): mounted as runs/ on every worker, it
#              holds checkpoints and results; none for a slice of one host, which starts anew after
#              a preemption
# ACCELERATOR  v5litepod-16 by default; or another size, v5p-N, v6e-N, v4-N
# RUNTIME      version of the TPU's software; by default that of the accelerator
# SPOT         0 for capacity that can't be preempted; 1 by default
# KEEP         1 leaves the pod when the command has ended; 0 by default
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
source launch/steps.sh
printing "$@"
if $print; then shift; fi

accelerator=${ACCELERATOR:-v5litepod-16}
case $accelerator in # https://docs.cloud.google.com/tpu/docs/runtimes
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
  *) runtime= ;;
esac
runtime=${RUNTIME:-$runtime}
folder=$(workdir "$@")
if [ $# -eq 0 ]; then fail "give a dynadapt command to run, such as: train --config=…"; fi
if [ -z "${NAME:-}" ]; then fail "NAME is not set; it names the pod, such as NAME=adapt"; fi
if [ -z "${ZONE:-}" ]; then fail "ZONE is not set; it says where, such as ZONE=us-west4-a"; fi
if [ -z "${SHARED:-}" ]; then
  fail "SHARED is not set; name an NFS share host:/path, or SHARED=none for a slice of one host"
fi
if [ -z "$runtime" ]; then
  fail "the software of '$accelerator' is not known; choose ACCELERATOR=v5litepod-16, v5p-16, \
v6e-16, v4-16 or another size of these, or name its software: RUNTIME=…"
fi
case $folder in
  runs/?*) ;;
  *) fail "give --workdir=runs/…, the one folder that all workers share" ;;
esac

queue=(gcloud compute tpus queued-resources)
node=(gcloud compute tpus tpu-vm)
spot=()
if [ "${SPOT:-1}" = 1 ]; then spot=(--spot); fi
state=("${queue[@]}" describe "$NAME" "--zone=$ZONE" "--format=value(state.state)")

on() { # on WORKER COMMAND
  step "${node[@]}" ssh "$NAME" "--zone=$ZONE" "--worker=$1" "--command=$2"
}

request() {
  step "${queue[@]}" create "$NAME" "--node-id=$NAME" "--zone=$ZONE" \
    "--accelerator-type=$accelerator" "--runtime-version=$runtime" ${spot[@]+"${spot[@]}"}
}

give_back() {
  step "${queue[@]}" delete "$NAME" "--zone=$ZONE" --force --quiet
}

wait_for_it() {
  local now failed=0
  if $print; then
    request
    # shellcheck disable=SC2016 # it is shown, not run
    printf 'until [ "$(%s)" = ACTIVE ]; do sleep 30; done\n' "$(line "${state[@]}")"
    return
  fi
  while :; do
    now=$("${state[@]}" 2>/dev/null) || now=""
    case $now in
      ACTIVE) return ;;
      "") request ;;
      SUSPENDED | SUSPENDING) give_back ;; # what a preemption leaves
      FAILED)
        failed=$((failed + 1))
        if [ "$failed" = 3 ]; then
          fail "3 requests failed; ${queue[*]} describe $NAME --zone=$ZONE says why"
        fi
        give_back
        ;;
      *) printf 'dynadapt: the pod is %s\n' "$now" >&2 && sleep 30 ;;
    esac
  done
}

# The images come with an older Python.
packages="python3.11 python3.11-venv nfs-common"
apt="sudo apt-get -o DPkg::Lock::Timeout=600 -q"
runs=dynadapt/runs
archive=runs/$NAME.tar.gz

wait_for_it
on all "$apt update && $apt -y install $packages"
pack "$archive"
step "${node[@]}" scp "$archive" "$NAME:dynadapt.tar.gz" "--zone=$ZONE" --worker=all
step rm "$archive"
on all "mkdir -p $runs && tar -xzf dynadapt.tar.gz -C dynadapt"
if [ "$SHARED" != none ]; then
  on all "mountpoint -q $runs || sudo mount -t nfs $(quoted "$SHARED") $runs"
  on all "[ -w $runs ] || sudo chown \$USER $runs"
fi
on all "cd dynadapt && launch/worker.sh --background $(line "$@")"

follow="cd dynadapt && launch/worker.sh --follow"
code=0
on 0 "$follow" || code=$?
while [ "$code" = 255 ]; do # ssh lost the connection
  if [ "$("${state[@]}" 2>/dev/null)" != ACTIVE ]; then
    fail "the pod was preempted; start the same command again and the run goes on"
  fi
  sleep 10
  code=0
  on 0 "$follow" || code=$?
done

step mkdir -p "$folder"
step "${node[@]}" scp --recurse "$NAME:dynadapt/$folder" "$(dirname "$folder")" "--zone=$ZONE" \
  --worker=0 || printf 'dynadapt: there are no results to fetch in %s\n' "$folder" >&2
step "${node[@]}" scp "$NAME:dynadapt/worker.log" "$folder/worker.log" "--zone=$ZONE" --worker=0
if [ "${KEEP:-0}" != 1 ]; then give_back; fi
exit "$code"
