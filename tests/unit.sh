#!/bin/bash
# Unit and static tests on the controller's Python. Arguments: pytest's, with the files where only some are meant.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

tests/programs.sh
export PATH="$KEPLER_CACHE/programs/usr/sbin:$KEPLER_CACHE/programs/usr/bin:$PATH"
if [ $# = 0 ]; then
    set -- tests/unit tests/static
    export INTERLEAVING_SECONDS="${INTERLEAVING_SECONDS:-20}"
fi
exec python -m pytest -q --numprocesses auto --dist loadfile "$@"
