#!/bin/bash
# Requests that no client means, to a server on the CPU. Arguments: see tests/port/fuzz.py.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

. tests/port_environment.sh
exec "$serving/bin/python" fuzz.py "$@"
