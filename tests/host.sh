#!/bin/bash
# Host code under Python 3.6, the one of EL8, where one is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

# PYTHON36 names the interpreter; else the first that works: one on PATH, or the newest that pyenv has.
python36=""
pyenv="$(printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.6.*/bin/python3.6 | sort -rV)"
while read -r candidate; do
    if [ -n "$candidate" ] && "$candidate" -c 'import venv' 2>/dev/null; then
        python36="$candidate"
        break
    fi
done <<< "${PYTHON36:-}"$'\npython3.6\n'"$pyenv"
if [ -z "$python36" ]; then
    echo "Python 3.6: none found (PYTHON36, PATH, pyenv); host code was tested on $(python --version) alone"
    exit 0
fi
environment="$KEPLER_CACHE/venv/host-$(sha256sum requirements/host-tests.txt | cut -c1-12)"
if [ ! -e "$environment/.ready" ]; then
    "$python36" -m venv --clear "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/host-tests.txt
    touch "$environment/.ready"
fi
"$python36" --version
exec env -u PYTHONPATH "$environment/bin/python" -m pytest -q tests/unit/{checkpoint,gpu,host,server,store} \
    tests/unit/monitoring/test_host_metrics.py "$@"
