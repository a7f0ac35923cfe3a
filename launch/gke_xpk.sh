#!/usr/bin/env bash
# Runs a dynadapt command on TPUs of a GKE cluster that xpk made:
#
#   NAME=adapt CLUSTER=tpus \
#     launch/gke_xpk.sh train --config=configs/quickstart.py --workdir=/share/quickstart
#   … launch/gke_xpk.sh --print train …     shows the commands and runs none
#
# xpk puts this repository on top of a Python image and starts it on every host of a slice. Results
# go to a volume that the cluster has (`xpk storage attach --auto-mount=true`), so that a workload
# that is preempted starts again by itself and goes on.
#
# NAME         of the workload; each start needs one that is not in use
# CLUSTER      of xpk
# ACCELERATOR  v5litepod-16 by default
# IMAGE        with Python 3.11 or later; python:3.12 by default
# PROJECT, ZONE  by default those that gcloud is set to
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
source launch/steps.sh
printing "$@"
if $print; then shift; fi
if [ $# -eq 0 ]; then fail "give a dynadapt command to run, such as: train --config=…"; fi
if [ -z "${NAME:-}" ]; then fail "NAME is not set; it names the workload, such as NAME=adapt"; fi
if [ -z "${CLUSTER:-}" ]; then fail "CLUSTER is not set; xpk cluster list shows yours"; fi
case $(workdir "$@") in
  /*) ;;
  *) fail "give --workdir=/…, a folder on a volume that every host of the cluster mounts" ;;
esac

where=("--cluster=$CLUSTER")
if [ -n "${PROJECT:-}" ]; then where+=("--project=$PROJECT"); fi
if [ -n "${ZONE:-}" ]; then where+=("--zone=$ZONE"); fi

# Waits for the first host. While the workload is queued its pod isn't there, where `kubectl wait`
# fails at once (up to kubectl 1.32 with --for=create, too); when it is seen, it may have ended.
wait_for_it() {
  local phases=(kubectl get pods "--selector=$labels" "--output=jsonpath={.items[*].status.phase}")
  if $print; then
    # shellcheck disable=SC2016 # it is shown, not run
    printf 'until [[ $(%s) =~ Running|Succeeded|Failed ]]; do sleep 10; done\n' \
      "$(line "${phases[@]}")"
    return
  fi
  until [[ $("${phases[@]}") =~ Running|Succeeded|Failed ]]; do
    if [ "$SECONDS" -gt 86400 ]; then
      fail "no host of $NAME has started in 24 hours; it stays queued: xpk workload list shows it"
    fi
    sleep 10
  done
}

# xpk copies a whole folder into the image: what a run needs goes there, and no more.
archive=runs/$NAME.tar.gz
folder=runs/$NAME.image
pack "$archive"
step rm -rf "$folder"
step mkdir "$folder"
step tar -xzf "$archive" -C "$folder"
step xpk workload create "${where[@]}" "--workload=$NAME" \
  "--tpu-type=${ACCELERATOR:-v5litepod-16}" --num-slices=1 \
  "--base-docker-image=${IMAGE:-python:3.12}" "--script-dir=$folder" \
  --max-restarts=50 --termination-grace-period-seconds=120 --env=DYNADAPT_DISTRIBUTED=1 \
  "--command=bash launch/worker.sh $(line "$@")"
step rm -rf "$archive" "$folder"
labels=jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0
wait_for_it
step kubectl logs --follow "--selector=$labels" --tail=-1
step xpk workload list "${where[@]}" "--wait-for-job-completion=$NAME"
