# Supervisor and admission: Python files that need nothing but the standard library.
python="$python310/bin/python3.10"
mkdir "$out/site-packages"
tar -xf "$src/vllm_serving.tar" -C "$out/site-packages"
"$python" -m compileall -q --invalidation-mode unchecked-hash "$out/site-packages"
