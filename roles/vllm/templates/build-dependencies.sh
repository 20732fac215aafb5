# The locked wheels that vLLM and the port import, but for those of the output pytorch.
python="{{ __store_python_program }}"
echo "##progress unpacking the wheels"
"$python" -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" "$src"/*.whl
echo "##progress compiling bytecode"
# A process for each package: what shares a process decides some of the bytes. The packages' own tests, a fifth of all,
# are left out: nobody runs them, and one of SymPy's compiles to other bytes each time. So are Transformers' own models,
# three tenths: vLLM has its own.
packages="$out/site-packages"
find "$packages" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" \
    "$python" -m compileall -q --invalidation-mode unchecked-hash \
    -x "^$packages/(.*/tests?/|transformers/models/(?!auto/).*/(modeling|modular|convert)_)"
