#!/bin/bash
# Linters and type checks. Prints one line for each tool; the first that finds something ends it.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { echo "== $1"; shift; "$@"; }

step ruff ruff check --quiet .
step yamllint yamllint --strict .
step ansible-lint ansible-lint --offline -q --profile production
step mypy-controller mypy --no-error-summary plugins/vars plugins/filter plugins/action plugins/plugin_utils \
    molecule/shared/standin files/lock tests/run.py tests/mutants.py
# What runs on managed hosts stays on EL8's Python 3.6.
step vermin vermin --quiet --no-tips --violations --target=3.6- plugins/modules plugins/module_utils \
    roles/store/files roles/monitoring/files vllm_src/csrc/build.py
