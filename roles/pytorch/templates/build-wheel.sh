# The stock wheel and its CUDA libraries, side by side as the wheel's library paths expect.
python="{{ __store_python_program }}"
echo "##progress unpacking the wheels"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" "$src"/*.whl
echo "##progress compiling bytecode"
# Hash-based bytecode: with the store's fixed times, bytecode checked by time would look fresh for ever.
# A process for each package: what shares a process decides some of the bytes.
find "$out/site-packages" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" \
    "$python" -m compileall -q --invalidation-mode unchecked-hash
