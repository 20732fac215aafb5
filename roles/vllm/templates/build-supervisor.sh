# Supervisor and admission: Python files that need nothing but the standard library.
python="{{ __store_python_program }}"
mkdir "$out/site-packages"
tar -xf "$src/vllm_serving.tar" -C "$out/site-packages"
"$python" -m compileall -q --invalidation-mode unchecked-hash "$out/site-packages"
