# To be sourced at the project's root: what the Makefile gives its commands, for a script that is called by itself.
export KEPLER_CACHE="${KEPLER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllm-kepler}" ANSIBLE_CONFIG="$PWD/ansible.cfg" LC_ALL=C.UTF-8
# shellcheck source=/dev/null
. "$(make -s tools | tail -n 1)"
