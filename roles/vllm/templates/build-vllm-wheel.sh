# Upstream's wheel as it is.
python="{{ __store_python_program }}"
echo "##progress unpacking the vLLM wheel"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" "$src"/vllm-*.whl
echo "##progress compiling bytecode"
# A process for each package: what shares a process decides some of the bytes.
find "$out/site-packages" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" \
    "$python" -m compileall -q --invalidation-mode unchecked-hash
