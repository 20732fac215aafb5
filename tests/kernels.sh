#!/bin/bash
# The CUDA kernels for sm_37: a real build with nvcc 11.2 and its report; no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

cuda="$(PYTHONPATH=molecule/shared python -m standin nvcc)"
python vllm_src/csrc/build.py --nvcc "$cuda/bin/nvcc" --ccbin "$cuda/gcc10/usr/bin/g++-10" --out "$KEPLER_CACHE/kernels"
exec env CUDA_HOME="$cuda" python -m pytest -q tests/kernels "$@"
