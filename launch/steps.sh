# shellcheck shell=bash
# Sourced from the repository's root: `step` runs a command, or shows it where --print was given.

# Sets `print` from the first argument; the caller shifts it away.
printing() {
  print=false
  if [ "${1:-}" = --print ]; then print=true; fi
}

# A word as a shell would have to read it.
quoted() {
  case $1 in
    "" | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf '%s' "$1" ;;
  esac
}

# A whole command line.
line() {
  local word text=""
  for word in "$@"; do text="$text $(quoted "$word")"; done
  printf '%s' "${text# }"
}

step() {
  if $print; then
    line "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Installs with these extras, or shows how.
installing() {
  if $print; then
    printf 'source launch/install.sh && install_dynadapt %s\n' "$(quoted "$1")"
  else
    install_dynadapt "$1"
  fi
}

# The folder that --workdir=DIR among the arguments names; empty if there is none.
workdir() {
  local word
  for word in "$@"; do
    case $word in --workdir=*) printf '%s' "${word#--workdir=}" ;; esac
  done
}

# Packs what a run needs into a file in runs/: no environment, no results, no history.
pack() {
  step mkdir -p runs
  step tar --exclude=./.venv --exclude=./.git --exclude=./runs -czf "$1" .
}
