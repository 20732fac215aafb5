# The stock wheel and its CUDA libraries, side by side as the wheel's library paths expect.
python="$python310/bin/python3.10"
echo "##progress unpacking the wheels"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" "$src"/*.whl
echo "##progress compiling bytecode"
# Hash-based bytecode: with the store's fixed times, bytecode checked by time would look fresh for ever.
"$python" -m compileall -q -j "$(nproc)" --invalidation-mode unchecked-hash "$out/site-packages"
