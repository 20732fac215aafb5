# Upstream's sdist as it is: Python only (VLLM_TARGET_DEVICE=empty), no CMake, no network.
python="$python310/bin/python3.10"
echo "##progress preparing the build environment"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --target tools "$src"/*.whl
mkdir tree
tar -xf "$src"/vllm-*.tar.gz --strip-components=1 -C tree
echo "##progress building the vLLM wheel"
PYTHONPATH="$PWD/tools:$pytorch/site-packages" "$python" -m pip --quiet wheel --no-index --no-deps \
    --no-build-isolation --wheel-dir "$out/wheels" ./tree
echo "##progress installing the vLLM wheel"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" "$out"/wheels/vllm-*.whl
"$python" -m compileall -q -j "$(nproc)" --invalidation-mode unchecked-hash "$out/site-packages"
