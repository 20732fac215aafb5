# The serving environment and Ray, for servers over several hosts; those of one host have no Ray to find.
python="$(readlink -f "{{ __store_python_program }}")"
"$python" -m venv --without-pip "$out"
for directory in "$serving/lib/{{ profile.python.command }}/site-packages" "$ray/site-packages"; do
    echo "import site; site.addsitedir('$directory')"
done > "$out/lib/{{ profile.python.command }}/site-packages/kepler.pth"
# The operators look for the kernels here.
if [ -e "$serving/lib/libvllm_kepler.so" ]; then ln -s "$serving/lib/libvllm_kepler.so" "$out/lib/libvllm_kepler.so"; fi
echo "##progress importing Ray"
VLLM_KEPLER_DEVICE=cpu {{ __vllm_environment }} "$out/bin/python" -c '
import ray, vllm.executor.ray_utils, vllm_serving.stage
assert vllm.executor.ray_utils.ray is not None
print("ray", ray.__version__)
'
