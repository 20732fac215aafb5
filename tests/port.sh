#!/bin/bash
# The port against transformers on PyTorch 2.0.1, in the environment that a host serves with: the roles
# themselves build it into a store below the cache.
set -euo pipefail
cd "$(dirname "$0")/.."

export PYTHONPATH="$PWD/molecule/shared"
python -m standin artifacts
ansible-playbook -i localhost, tests/port/environment.yml -e "ansible_python_interpreter=$(command -v python)" \
    -e "store_root=$KEPLER_CACHE/store" -e "{store_artifacts: [$KEPLER_CACHE/artifacts]}" \
    -e pytorch_provider=wheel -e python310_provider=prebuilt -e "python310_interpreter=$(python -m standin python310)"

serving="$(cat "$KEPLER_CACHE/store/serving")"
runner="$KEPLER_CACHE/venv/port-$(sha256sum requirements/port-tests.txt | cut -c1-12)"
if [ ! -e "$runner/.ready" ]; then
    rm -rf "$runner"
    python -m pip --python "$serving/bin/python" install --quiet --disable-pip-version-check --no-deps --require-hashes \
        --target "$runner" -r requirements/port-tests.txt
    touch "$runner/.ready"
fi
cd tests/port
exec env PYTHONPATH="$runner" PYTHONDONTWRITEBYTECODE=1 "$serving/bin/python" -m pytest -q "$@" . ../models
