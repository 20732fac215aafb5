# The stock wheel and its CUDA libraries, side by side as the wheel's library paths expect.
echo "##progress unpacking the wheels"
"$python310/bin/python3.10" -m pip install --quiet --no-index --no-deps --no-compile --target "$out/site-packages" "$src"/*.whl
echo "##progress compiling bytecode"
# Hash-based bytecode: the store's fixed times would make every time-based file look fresh for ever.
"$python310/bin/python3.10" -m compileall -q -j "$(nproc)" --invalidation-mode unchecked-hash "$out/site-packages" || true
