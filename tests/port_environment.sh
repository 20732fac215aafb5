# To be sourced at the project's root: the Python that serves, as `$serving/bin/python`, with the kernel library and
# pytest, in tests/port.
. tests/library.sh
need_library
. tests/serving.sh
cd tests/port
# Threads that spin while they wait would take 2.5 times the processor time of the tests.
export OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=1
export VLLM_KEPLER_LIBRARY="$library/libvllm_kepler.so" PYTHONPATH="$runner"
