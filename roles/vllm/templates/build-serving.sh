# The environment that the servers run: an interpreter, and paths to the outputs below.
# The real interpreter: a virtual environment looks for the standard library beside it.
python="$(readlink -f "{{ __store_python_program }}")"
"$python" -m venv --without-pip "$out"
# addsitedir, not a bare path: the .pth file of vllm_kepler must be read as well.
for output in "$vllm_dependencies" "$pytorch" "$vllm" {{ __vllm_port_output }}"$vllm_serving"; do
    echo "import site; site.addsitedir('$output/site-packages')"
done > "$out/lib/{{ profile.python.command }}/site-packages/kepler.pth"
# The operators look for the kernels here.
if [ -n "${vllm_kernels-}" ]; then ln -s "$vllm_kernels/lib/libvllm_kepler.so" "$out/lib/libvllm_kepler.so"; fi
echo "##progress importing the serving environment"
VLLM_KEPLER_DEVICE=cpu {{ __vllm_environment }} "$out/bin/python" -c '
import torch, vllm, {{ 'vllm_kepler, ' if __vllm_port_wanted else '' }}vllm_serving.supervisor
from vllm.platforms import current_platform
print("torch", torch.__version__, "vllm", vllm.__version__, "platform", type(current_platform).__name__)
'
