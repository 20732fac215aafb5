#!/bin/bash
# The CUDA kernels for sm_37: a real build with nvcc 11.2 and its report; no GPU. Arguments: pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/library.sh
build_library
exec env CUDA_HOME="$cuda" python -m pytest -q tests/kernels "$@"
