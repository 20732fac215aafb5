#!/bin/bash
# The port against transformers on PyTorch 2.0.1, on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/serving.sh
cd tests/port
exec env PYTHONPATH="$runner" PYTHONDONTWRITEBYTECODE=1 "$serving/bin/python" -m pytest -q "$@" . ../models
