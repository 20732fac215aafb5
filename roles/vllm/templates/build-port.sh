# Our wheel: the port enters vLLM through its plugin doors, and torch through a .pth file.
python="{{ __store_python_program }}"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile --target tools "$src"/*.whl
mkdir tree
tar -xf "$src/vllm_kepler.tar" --strip-components=1 -C tree
PYTHONPATH="$PWD/tools" "$python" -m pip --quiet wheel --no-index --no-deps --no-build-isolation --wheel-dir "$out/wheels" ./tree
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" "$out"/wheels/*.whl
# A process for each package: what shares a process decides some of the bytes.
find "$out/site-packages" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" \
    "$python" -m compileall -q --invalidation-mode unchecked-hash
