# To be sourced: the environment that a host serves with, built by the roles themselves into a store below the cache.
# KEPLER_PROFILE: whose environment of the port it is, `k80` or `volta`.
# Sets `serving`, its directory, and `runner`, a directory with pytest for its Python.
profile="${KEPLER_PROFILE:-k80}"
store="$KEPLER_CACHE/store"
inventory=tests/port/hosts.yml
if [ "$profile" = volta ]; then
    store="$store-volta"
    inventory=tests/port/volta.yml
fi
(
    export PYTHONPATH="$PWD/molecule/shared"
    python -m standin artifacts "$profile"
    ansible-playbook -i "$inventory" tests/port/environment.yml -e "ansible_python_interpreter=$(command -v python)" \
        -e "store_root=$store" -e "{store_artifacts: [$KEPLER_CACHE/artifacts]}" \
        -e pytorch_provider=wheel -e python_provider=prebuilt \
        -e "python_interpreter=$(python -m standin python "$profile")" -e vllm_kernels=false -e vllm_ray=true
)
serving="$(cat "$store/serving")"
# The same with Ray, for tests over several hosts.
SERVING_RAY="$(cat "$store/serving_ray")"
export SERVING_RAY
. tests/packages.sh
# shellcheck disable=SC2034  # for those who source this
runner="$(packages "port-$profile" port-tests "$serving/bin/python")"
