# To be sourced: the environment that a host serves with, built by the roles themselves into a store below the cache.
# Sets `serving`, its directory, and `runner`, a directory with pytest for its Python.
(
    export PYTHONPATH="$PWD/molecule/shared"
    python -m standin artifacts
    ansible-playbook -i tests/port/hosts.yml tests/port/environment.yml -e "ansible_python_interpreter=$(command -v python)" \
        -e "store_root=$KEPLER_CACHE/store" -e "{store_artifacts: [$KEPLER_CACHE/artifacts]}" \
        -e pytorch_provider=wheel -e python_provider=prebuilt \
        -e "python_interpreter=$(python -m standin python310)" -e vllm_kernels=false -e vllm_ray=true
)
serving="$(cat "$KEPLER_CACHE/store/serving")"
# The same with Ray, for tests over several hosts.
SERVING_RAY="$(cat "$KEPLER_CACHE/store/serving_ray")"
export SERVING_RAY
runner="$KEPLER_CACHE/venv/port-$(sha256sum requirements/port-tests.txt | cut -c1-12)"
if [ ! -e "$runner/.ready" ]; then
    rm -rf "$runner"
    python -m pip --python "$serving/bin/python" install --quiet --disable-pip-version-check --no-deps --require-hashes \
        --target "$runner" -r requirements/port-tests.txt
    touch "$runner/.ready"
fi
