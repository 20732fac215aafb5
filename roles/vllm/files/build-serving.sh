# The environment that the servers run: the locked wheels, and paths to the outputs below.
# The real interpreter: a virtual environment looks for the standard library beside it.
python="$(readlink -f "$python310/bin/python3.10")"
"$python" -m venv --without-pip "$out"
site="$out/lib/python3.10/site-packages"
echo "##progress installing the serving environment"
"$python" -m pip --python "$out/bin/python" --quiet install --root-user-action ignore --no-index --no-deps --no-compile "$src"/*.whl
echo "##progress compiling bytecode"
# A process for each package: what shares a process decides some of the bytes.
find "$site" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" \
    "$python" -m compileall -q --invalidation-mode unchecked-hash
# addsitedir, not a bare path: the .pth file of vllm_kepler must be read as well.
for output in "$pytorch" "$vllm" "$vllm_kepler"; do
    echo "import site; site.addsitedir('$output/site-packages')"
done > "$site/kepler.pth"
# The operators look for the kernels here.
if [ -n "${vllm_kernels-}" ]; then ln -s "$vllm_kernels/lib/libvllm_kepler.so" "$out/lib/libvllm_kepler.so"; fi
echo "##progress importing the serving environment"
VLLM_KEPLER_DEVICE=cpu VLLM_USE_V1=0 "$out/bin/python" -c '
import torch, vllm, vllm_kepler
from vllm.platforms import current_platform
print("torch", torch.__version__, "vllm", vllm.__version__, "platform", type(current_platform).__name__)
'
