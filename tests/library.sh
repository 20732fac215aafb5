# To be sourced: the kernel library of this tree, built with nvcc 11.2. Sets `cuda`, the compiler's directory.
# Call build_library, or need_library where one that was built from the same sources will do.
# KEPLER_ARCHITECTURE: of its GPUs; sm_70 for what `engine: port` runs on a V100.
cuda="$(PYTHONPATH=molecule/shared python -m standin nvcc)"
architecture="${KEPLER_ARCHITECTURE:-sm_37}"
library="$KEPLER_CACHE/kernels"
[ "$architecture" = sm_37 ] || library="$library-$architecture"

sources_of_library() { cat vllm_src/csrc/*.{cu,cuh,h,py} vllm_src/vllm_kepler/version.py "$cuda/packages.json" 2>/dev/null | sha256sum; }

build_library() {
    rm -f "$library/sources"
    python vllm_src/csrc/build.py --architecture "$architecture" --nvcc "$cuda/bin/nvcc" --ccbin "$cuda/gcc10/usr/bin/g++-10" --out "$library"
    sources_of_library >"$library/sources"
}

need_library() { [ "$(sources_of_library)" = "$(cat "$library/sources" 2>/dev/null)" ] || build_library; }
