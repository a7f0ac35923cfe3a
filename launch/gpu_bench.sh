#!/usr/bin/env bash
# Runs every benchmark on the GPU of this machine and writes what they say as one page:
#
#   EXTRAS=cuda13 launch/gpu_bench.sh
#   EXTRAS=cuda13 launch/gpu_bench.sh --print          shows the commands and runs none
#   JAX_PLATFORMS=cpu SMALL=1 OUT=runs/rehearsal launch/gpu_bench.sh
#
# Started again it goes on with what is missing. A benchmark that fails is named, and the others run.
#
# OUT        folder of DEVICE.json and DEVICE.md; docs/benchmarks by default
# ANSWERS    folder of each benchmark's own answer; runs/benchmarks by default
# REFERENCE  a Python with torch and timm to compare with
# SMALL      not empty: small models and batches, a rehearsal of minutes
# EXTRAS     comma list of extras in setup.cfg: cuda12, cuda13, …
# PYTHON     the Python to make .venv with
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
source launch/steps.sh
printing "$@"
if $print; then shift; fi
if [ $# -gt 0 ]; then fail "takes no argument but --print, not '$1'; the head of the script lists its settings"; fi
out=${OUT:-docs/benchmarks} answers=${ANSWERS:-runs/benchmarks}
methods=full,linear,lora,adaptformer,iconformer,adapter_x,vfm_adapter
reference=()
if [ -n "${REFERENCE:-}" ]; then reference=("--reference=$REFERENCE"); fi
failed=()

# asked NAME ARGUMENT...: the answer of `bench ARGUMENT...` as NAME.json, unless it is there.
asked() {
  local name=$1 file=$answers/$1.json
  shift
  if $print; then
    printf '%s >%s\n' "$(line launch/local.sh bench "$@" --json)" "$(quoted "$file")"
  elif [ ! -e "$file" ]; then
    printf 'dynadapt: %s\n' "$name" >&2
    local code=0
    launch/local.sh bench "$@" --json >"$file.partial" || code=$?
    case $code in
      0) mv "$file.partial" "$file" ;;
      130 | 143) exit "$code" ;; # was stopped, and so is all of it
      *) failed+=("$name") ;;
    esac
    rm -f "$file.partial"
  fi
}

step mkdir -p "$answers"
if [ -n "${SMALL:-}" ]; then
  asked forward forward --backbone=vit_mini --batch=2 --rounds=3
  asked step_vit_mini_2 step --backbone=vit_mini --methods="$methods" --batch=2 --rounds=3
  asked bank bank --backbone=vit_mini --methods=lora --batch=4 --rounds=3
  asked population population --backbone=vit_mini --methods=lora --batch=4 --rounds=3
else
  asked forward forward --backbone=vit_b16,vit_s16,swin_t,swin_s --batch=64 "${reference[@]}"
  asked forward_large forward --backbone=vit_l16,vit_h14,dinov2_b14 --batch=64
  asked forward_sam forward --backbone=sam_b16 --batch=4
  for batch in 64 128; do
    for backbone in vit_b16 vit_l16 vit_h14; do
      asked "step_${backbone}_$batch" step --backbone="$backbone" --methods="$methods" --batch="$batch"
    done
  done
  asked step_dinov2_b14_518 step --backbone=dinov2_b14 --methods="$methods" --batch=16
  asked step_sam_b16_1024 step --backbone=sam_b16 --methods="$methods" --batch=4
  if [ -n "${REFERENCE:-}" ]; then
    asked step_against step --backbone=vit_b16 --methods=linear,lora,iconformer,full --batch=64 "${reference[@]}"
  fi
  asked dynamic dynamic "${reference[@]}"
  asked points points
  asked bank bank --backbone=vit_b16 --methods=lora,adaptformer,iconformer --batch=64
  asked population population --backbone=vit_s16 --methods=lora,iconformer --batch=32
fi
step launch/local.sh bench collect "--folder=$answers" "--out=$out"
if [ ${#failed[@]} -gt 0 ]; then fail "these failed, and would run at another start: ${failed[*]}"; fi
