# Ray and what it needs beside the serving environment; not its Java, nor what trains and tunes: a fifth of the bytes run.
python="{{ __store_python_program }}"
echo "##progress unpacking the wheels"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" "$src"/*.whl
rm -rf "$out/site-packages/ray/jars"
echo "##progress compiling bytecode"
"$python" -m compileall -q --invalidation-mode unchecked-hash "$out/site-packages/ray" "$out/site-packages/msgpack"
