#!/usr/bin/env bash
# Tries the package with several Pythons and lines of JAX, each pair in an environment of its own:
# a short training, a prediction, an export and some tests. Prints one table; the answer is 1 if
# anything failed, and a Python that isn't here is no failure, but has its row:
#
#   launch/versions.sh
#   PYTHONS="3.12 3.13" JAX="0.10.0 0.12" launch/versions.sh
#
# PYTHONS  versions of Python, 3.11 3.12 3.13 by default: python3.12 on the path, or the one that uv
#          knows
# JAX      of each line the newest version is taken; 0.10 0.11 0.12 by default
#
# A pair takes two to four minutes, one gigabyte, which is given back, and the package index. Its
# logs stay in build/versions/.
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
if [ $# -gt 0 ]; then fail "takes no argument, not '$1'; the head of the script lists its settings"; fi
read -r -a pythons <<<"${PYTHONS:-3.11 3.12 3.13}"
read -r -a lines <<<"${JAX:-0.10 0.11 0.12}"
export JAX_PLATFORMS=cpu PIP_USER=0
unset PYTHONPATH
pip_flags=(--disable-pip-version-check --no-input -q)
here=build/versions
tests=(tests/test_attach.py tests/test_optim.py tests/test_tree.py tests/data/test_parts.py)
rows=()
failed=0

row() { # row PYTHON JAX FLAX RESULT
  rows+=("$@")
  printf 'dynadapt: Python %s, JAX %s: %s\n' "$1" "$2" "$4" >&2
}

python_of() { # python_of VERSION
  local python
  for python in "python$1" "$(uv python find "$1" 2>/dev/null)"; do
    if [ -n "$python" ] && is_recent "$python"; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}

version_of() { # version_of FOLDER PACKAGE
  "$1/venv/bin/python" -c "from importlib import metadata; print(metadata.version('$2'))"
}

install() { # install FOLDER PYTHON LINE
  "$2" -m venv "$1/venv" &&
    "$1/venv/bin/python" -m pip install "${pip_flags[@]}" "jax==$3.*" "${wheel}[export,test]"
}

# What is tried, from the wheel; the first that fails ends a pair.
try() { # try STEP FOLDER
  local dynadapt=$2/venv/bin/dynadapt
  case $1 in
    version) "$dynadapt" --version ;;
    train)
      "$dynadapt" train --config=quickstart "--workdir=$2/run" --config.optim.steps=4 \
        --config.input.batch_size=10 "--config.input.eval_split=test[:20]"
      ;;
    predict) "$dynadapt" predict "--workdir=$2/run" --images=docs/depth.png "--out=$2/answers" ;;
    export) "$dynadapt" export "--workdir=$2/run" "--out=$2/model" --platforms=cpu ;;
    tests) "$2/venv/bin/python" -m pytest -q -m "not slow" "${tests[@]}" ;;
  esac
}

pair() { # pair VERSION PYTHON LINE
  local folder=$here/$1-$3 step
  rm -rf "$folder"
  mkdir -p "$folder"
  if ! install "$folder" "$2" "$3" >"$folder/install.log" 2>&1 </dev/null; then
    if grep -q "No matching distribution found for jax==$3" "$folder/install.log" &&
      grep -q "require a different python version" "$folder/install.log"; then
      row "$1" "$3" - "no JAX $3 for this Python"
    else
      failed=1
      row "$1" "$3" - "FAILED: install, $folder/install.log"
    fi
    rm -rf "$folder/venv"
    return
  fi
  local jax flax code=0 result=passed
  jax=$(version_of "$folder" jax)
  flax=$(version_of "$folder" flax)
  for step in version train predict export tests; do
    try "$step" "$folder" >"$folder/$step.log" 2>&1 </dev/null || code=$?
    if [ "$code" != 0 ]; then
      failed=1
      result="FAILED: $step with code $code, $folder/$step.log"
      break
    fi
  done
  row "$1" "$jax" "$flax" "$result"
  rm -rf "$folder/venv"
}

wheel=
for version in "${pythons[@]}"; do
  python=$(python_of "$version") || {
    row "$version" - - "not found"
    continue
  }
  if [ -z "$wheel" ]; then
    rm -rf "$here/wheel" build/lib build/bdist.*
    mkdir -p "$here"
    "$python" -m pip wheel "${pip_flags[@]}" --no-deps --wheel-dir "$here/wheel" . \
      >"$here/wheel.log" 2>&1 </dev/null ||
      fail "no wheel could be built; the log is $here/wheel.log"
    wheel=$(echo "$here"/wheel/dynadapt-*.whl)
  fi
  for line in "${lines[@]}"; do pair "$version" "$python" "$line"; done
done
printf '%-8s %-10s %-10s %s\n' python jax flax result "${rows[@]}"
if [ -z "$wheel" ]; then fail "none of these Pythons was found: ${pythons[*]}"; fi
exit "$failed"
