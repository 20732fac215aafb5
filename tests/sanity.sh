#!/bin/bash
# ansible-test's checks of the collection as Galaxy would install it. ansible-test fetches its tools itself, so this
# needs a network and is no part of `make test`. Arguments: ansible-test's, for example `--test validate-modules`.
# The builders' programs are shellcheck's in tests/lint.sh, which knows who sets their variables.
set -euo pipefail
cd "$(dirname "$0")/.."

directory="$(mktemp -d)"
trap 'rm -rf "$directory"' EXIT
git checkout-index --all --prefix="$directory/source/"
printf '[defaults]\ncollections_path = %s\n' "$directory" > "$directory/ansible.cfg"
export ANSIBLE_CONFIG="$directory/ansible.cfg"
ansible-galaxy collection build --output-path "$directory" "$directory/source"
ansible-galaxy collection install --no-deps "$directory"/kepler-vllm-*.tar.gz
cd "$directory/ansible_collections/kepler/vllm"
# ansible-test asks git which files there are.
git init --quiet
git add --all
ansible-test sanity --skip-test shellcheck "$@"
