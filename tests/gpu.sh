#!/bin/bash
# Operators, engine, qualification and benchmarks on this machine's NVIDIA GPUs; the tables go to $OUT (default build/gpu).
#
# usage: gpu.sh [operators|linear|engine|parallel|hosts|server|guided|adapters|qualification|capacity|triton|sanitizer|benchmarks]...     all but triton and sanitizer where none is named
#
# KEPLER_PYTHON: a Python that has torch for the GPU, vLLM 0.9.2 built with VLLM_TARGET_DEVICE=empty, the port and
# pytest. Left out, the environment of `make port` is built and taken: its PyTorch 2.0.1 knows GPUs from sm_37 to sm_86.
# VLLM_KEPLER_LIBRARY: the kernel library; left out, it is built.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! nvidia-smi -L; then
    echo "gpu.sh: nvidia-smi found no GPU; expected a machine with an NVIDIA GPU and its driver" >&2
    exit 1
fi
if [ -z "${KEPLER_PYTHON:-}" ]; then
    . tests/serving.sh
    KEPLER_PYTHON="$serving/bin/python"
    export PYTHONPATH="$runner"
fi
if [ -z "${VLLM_KEPLER_LIBRARY:-}" ]; then
    . tests/library.sh
    need_library
    export VLLM_KEPLER_LIBRARY="$library/libvllm_kepler.so"
fi
# Tests leave out what they have no GPU for.
if ! "$KEPLER_PYTHON" -c 'import torch; torch.zeros(1, device="cuda")'; then
    echo "gpu.sh: the PyTorch of $KEPLER_PYTHON cannot use the GPU; expected one that can. Set KEPLER_PYTHON" >&2
    exit 1
fi
out="$(realpath -m "${OUT:-build/gpu}")"
export VLLM_KEPLER_VERIFY=1 VLLM_KEPLER_DEVICE="" VLLM_NO_USAGE_STATS=1
# Beside a PyTorch of another user no bytecode can be kept: each engine and each rank would compile it anew, 20 s.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$PWD/build/pycache"
"$KEPLER_PYTHON" -c 'import compileall, torch; compileall.compile_dir(torch.__path__[0], quiet=2, workers=0)'
test() { "$KEPLER_PYTHON" -m pytest -q -p no:cacheprovider "$@"; }

[ $# -gt 0 ] || set -- operators linear engine parallel hosts server guided adapters qualification capacity benchmarks
for step in "$@"; do
    echo "== $step"
    case "$step" in
        operators) test tests/gpu/test_attention.py tests/gpu/test_operators.py ;;
        linear) test tests/gpu/test_linear.py tests/gpu/test_moe.py tests/gpu/test_gguf.py ;;
        engine) test tests/gpu/test_engine.py tests/gpu/test_graphs.py ;;
        parallel) test tests/gpu/test_parallel.py ;;
        hosts) test -s tests/gpu/test_hosts.py ;;
        server) test tests/gpu/test_server.py ;;
        guided) test tests/port/test_guided.py ;;
        adapters) test tests/port/test_lora.py tests/port/test_latent.py ;;
        qualification) test -s tests/gpu/test_qualification.py ;;
        capacity) test -s tests/gpu/test_capacity.py ;;
        # In the environment of vLLM as it is released.
        triton) PYTHONPATH="" STOCK_TESTS=tests/gpu/test_triton.py tests/stock.sh ;;
        sanitizer) "$KEPLER_PYTHON" tests/gpu/sanitize.py ;;
        benchmarks)
            "$KEPLER_PYTHON" tests/gpu/bench_attention.py --out "$out"
            "$KEPLER_PYTHON" tests/gpu/bench_operators.py --out "$out"
            "$KEPLER_PYTHON" tests/gpu/bench_linear.py --out "$out"
            "$KEPLER_PYTHON" tests/gpu/bench_moe.py --out "$out"
            "$KEPLER_PYTHON" tests/gpu/bench_engine.py --out "$out"
            "$KEPLER_PYTHON" tests/gpu/bench_graphs.py --out "$out"
            "$KEPLER_PYTHON" tests/gpu/bench_batches.py --out "$out"
            "$KEPLER_PYTHON" tests/gpu/bench_speculation.py --out "$out"
            "$KEPLER_PYTHON" tests/gpu/bench_speculation.py --out "$out" --method draft --graphs 1
            ;;
        *) echo "gpu.sh: found $step; expected operators, linear, engine, parallel, hosts, server, guided, adapters, qualification, capacity, triton, sanitizer or benchmarks" >&2; exit 2 ;;
    esac
done
