#!/usr/bin/env bash
# Builds the site of the documents into build/docs; a warning or a link that leads nowhere fails:
#
#   launch/docs.sh
#
# The pages need no network: open build/docs/index.html.
set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
install_dynadapt docs

# All anew: of a page that is unchanged Sphinx would not say its warnings again.
rm -rf build/docs build/doctrees
.venv/bin/sphinx-build --quiet --fail-on-warning -c docs -d build/doctrees . build/docs
cp build/docs/README.html build/docs/index.html
printf '%s\n' "$PWD/build/docs/index.html"
