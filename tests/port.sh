#!/bin/bash
# The port against transformers on PyTorch 2.0.1, on the CPU. Arguments: pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/library.sh
need_library
. tests/serving.sh
cd tests/port
# Most of the time an engine starts, on one core: two of them at a time. Threads that spin while they wait would take
# 2.5 times the processor time of the tests.
export OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=1
export VLLM_KEPLER_LIBRARY="$library/libvllm_kepler.so" PYTHONPATH="$runner"
exec "$serving/bin/python" -m pytest -q --numprocesses auto --dist worksteal "$@" . ../models
