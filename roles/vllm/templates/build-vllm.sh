# Upstream's sdist as it is: Python only (VLLM_TARGET_DEVICE=empty), no CMake, no network.
python="{{ __store_python_program }}"
echo "##progress preparing the build environment"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile --target tools "$src"/*.whl
mkdir tree
tar -xf "$src"/vllm-*.tar.gz --strip-components=1 -C tree
echo "##progress building the vLLM wheel"
PYTHONPATH="$PWD/tools:$pytorch/site-packages" "$python" -m pip --quiet wheel --no-index --no-deps \
    --no-build-isolation --wheel-dir "$out/wheels" ./tree
echo "##progress installing the vLLM wheel"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" "$out"/wheels/vllm-*.whl
# A process for each package: what shares a process decides some of the bytes.
find "$out/site-packages" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" \
    "$python" -m compileall -q --invalidation-mode unchecked-hash
