#!/bin/bash
# The port against transformers on PyTorch 2.0.1, on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/serving.sh
cd tests/port
# Most of the time an engine starts, on one core: two of them at a time.
exec env PYTHONPATH="$runner" PYTHONDONTWRITEBYTECODE=1 "$serving/bin/python" -m pytest -q --numprocesses auto --dist worksteal \
    "$@" . ../models
