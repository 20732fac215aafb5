#!/bin/bash
# Linters and type checks. Prints one line for each tool; the first that finds something ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

step() { echo "== $1"; shift; "$@"; }
# Quiet if all contracts hold.
imports() {
    local report
    report=$(PYTHONPATH=collections:vllm_src lint-imports --no-logo --no-cache) || { echo "$report"; return 1; }
}

step ruff ruff check --quiet .
# Not what playbooks have written into this directory.
mapfile -t yaml < <(git ls-files "*.yml" "*.yaml" .yamllint ":!collections")
step yamllint yamllint --strict "${yaml[@]}"
mapfile -t texts < <(git ls-files -- ":!collections")
mapfile -t scripts < <(git ls-files .ci/run "*.sh")
step codespell codespell "${texts[@]}"
# The programs of the store's builders: their variables come from outside, bash runs them with -eu, and what stands in
# braces is the profile's.
step shellcheck shellcheck --shell=bash --exclude=SC1083,SC2031,SC2154,SC2164,SC2288 "${scripts[@]}"
step ansible-lint ansible-lint --offline -q --profile production
# The collection's code by its full name, which its imports have.
mapfile -t python < <(git ls-files "*.py" ":!plugins")
step mypy mypy --no-error-summary collections/ansible_collections/kepler/vllm/plugins "${python[@]}"
step import-linter imports
# What runs on managed hosts stays on EL8's Python 3.6.
step vermin vermin --quiet --no-tips --violations --target=3.6- plugins/modules plugins/module_utils \
    roles/store/files roles/monitoring/files roles/image/files vllm_src/csrc/build.py molecule/shared/standin/door.py
