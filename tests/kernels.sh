#!/bin/bash
# The CUDA kernels for sm_37 and sm_70: a real build with nvcc 11.2 and its report; no GPU. Arguments: pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

for KEPLER_ARCHITECTURE in sm_70 sm_37; do
    . tests/library.sh
    build_library
done
exec env CUDA_HOME="$cuda" python -m pytest -q tests/kernels "$@"
