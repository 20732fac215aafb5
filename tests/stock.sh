#!/bin/bash
# vLLM as it is released, without a GPU: answers, names, its kernels compiled for sm_70, its wheels. Arguments: pytest's.
# STOCK_TESTS: other tests for the same environment.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

standin() { PYTHONPATH=molecule/shared python -c "from standin import artifacts; $1"; }
# Steps are on standard error.
python="$(standin 'print(artifacts.python("volta"))')"
STOCK_SITES="$(standin 'print(*artifacts.site_packages("volta"), sep=":")')"
STOCK_WHEEL="$(standin 'print(artifacts.released("volta"))')"
. tests/packages.sh
runner="$(packages stock stock-tests "$python")"
# Threads that spin while they wait would take the processor time of the part beside this one.
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 OMP_WAIT_POLICY=PASSIVE VLLM_CPU_KVCACHE_SPACE=1 PYTHONDONTWRITEBYTECODE=1
# Otherwise a rank for each NUMA node, and no more.
export VLLM_CPU_OMP_THREADS_BIND=nobind
# Engines in the process of the tests: each would import vLLM again.
export VLLM_ENABLE_V1_MULTIPROCESSING=0
# The platform of servers over several hosts is the tree's, not that of a kept output.
export PYTHONPATH="$PWD/tests/port:$PWD/plugins/module_utils:$PWD/molecule/shared:$STOCK_SITES:$runner"
export STOCK_SITES STOCK_WHEEL
# Nobody writes into outputs that other stand-ins begin with: root could, and Python runs what a machine has in .pth files.
sealed=()
if [ "$(id -u)" = 0 ] && [ -d "$KEPLER_CACHE/outputs" ]; then
    # shellcheck disable=SC2016
    sealed=(unshare --mount --propagation private sh -c 'mount --bind -o ro "$0" "$0"; exec "$@"' "$KEPLER_CACHE/outputs")
fi
exec "${sealed[@]}" "$python" -m pytest -q -p no:cacheprovider "$@" "${STOCK_TESTS:-tests/stock}"
