# shellcheck shell=bash
# Sourced from the repository's root: install_dynadapt makes .venv and installs dynadapt in it.

fail() {
  printf 'dynadapt: %s\n' "$1" >&2
  exit 1
}

# Names what an installation depends on. No Python runs here: a later start must cost nothing.
stamp() {
  printf '.venv/installed/'
  { printf '%s\n' "$PWD" "$1" && cat .venv/pyvenv.cfg setup.cfg pyproject.toml; } | cksum | tr ' ' -
}

installed() {
  # .venv/unfinished outlives an installation that was killed, whatever it had left behind.
  [ -x .venv/bin/dynadapt ] && [ -e .venv/pyvenv.cfg ] && [ ! -e .venv/unfinished ] &&
    [ -e "$(stamp "$1")" ]
}

is_recent() {
  "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local python candidates=(python3 python3.13 python3.12 python3.11)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for python in "${candidates[@]}"; do
    if is_recent "$python"; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}

check_extras() {
  local known extra
  known=$(sed -n '/^\[options.extras_require\]/,/^\[/s/^\([a-z0-9]*\) *=.*/\1/p' setup.cfg)
  for extra in ${1//,/ }; do
    grep -qx -- "$extra" <<<"$known" ||
      fail "there is no extra '$extra' to install; choose from ${known//$'\n'/, }"
  done
}

make_environment() {
  local python=$1
  if [ -e .venv/unfinished ]; then
    find .venv -mindepth 1 -maxdepth 1 ! -name lock ! -name install.log -exec rm -rf {} +
  fi
  touch .venv/unfinished
  if ! is_recent .venv/bin/python; then
    rm -rf .venv/bin .venv/lib .venv/lib64 .venv/include .venv/pyvenv.cfg
    "$python" -m venv --without-pip .venv
  fi
  # Some systems split ensurepip off; a pip of 22.3 or later outside can stand in.
  .venv/bin/python -m pip --version ||
    .venv/bin/python -m ensurepip ||
    "$python" -m pip --python .venv/bin/python install "${pip_flags[@]}" pip
}

install_dynadapt() {
  local extras=${1// /} log=$PWD/.venv/install.log python
  local pip_flags=(--disable-pip-version-check --no-input -q)
  if installed "$extras"; then return; fi

  check_extras "$extras"
  python=$(find_python) ||
    fail "no Python 3.11 or later was found; install one, or name it: PYTHON=/path/to/python3 $0"
  printf 'dynadapt: installing into .venv%s; later starts skip this\n' \
    "${extras:+ with $extras}" >&2
  mkdir -p .venv
  # The lock lies on descriptor 9, so it ends with this shell and its children, however they end.
  exec 9>.venv/lock
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
  if ! installed "$extras"; then
    export PIP_USER=0  # a user-wide default of --user has no meaning in .venv
    make_environment "$python" >"$log" 2>&1 </dev/null || {
      rm -f .venv/unfinished
      fail "no pip could be put into .venv: install the venv package of $python; the log is $log"
    }
    .venv/bin/python -m pip install "${pip_flags[@]}" -e ".${extras:+[$extras]}" \
      >>"$log" 2>&1 </dev/null || {
      rm -f .venv/unfinished
      fail "pip could not install the dependencies; its log is $log"
    }
    mkdir -p .venv/installed
    : >"$(stamp "$extras")"
    rm -f .venv/unfinished
  fi
  exec 9>&-
}
