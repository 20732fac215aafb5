#!/bin/bash
# Requests that no client means, to a server on the CPU. Arguments: see tests/port/fuzz.py.
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/library.sh
need_library
. tests/serving.sh
cd tests/port
export OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=1
export VLLM_KEPLER_LIBRARY="$library/libvllm_kepler.so" PYTHONPATH="$runner"
exec "$serving/bin/python" fuzz.py "$@"
