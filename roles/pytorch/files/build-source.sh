# PyTorch for sm_37 from the release archive, which holds all submodules.
"$python310/bin/python3.10" -m venv tools
tools/bin/python -m pip --quiet install --no-index --no-deps "$src"/*.whl
export PATH="$PWD/tools/bin:$PATH"
# cuDNN comes as a wheel: headers and libraries under one directory.
CUDNN_ROOT="$(tools/bin/python -c 'import nvidia.cudnn; print(list(nvidia.cudnn.__path__)[0])')"
export CUDNN_INCLUDE_DIR="$CUDNN_ROOT/include" CUDNN_LIB_DIR="$CUDNN_ROOT/lib" CUDNN_LIBRARY="$CUDNN_ROOT/lib/libcudnn.so.8"
export CMAKE_PREFIX_PATH="$PWD/tools"
export MAX_JOBS="$KEPLER_JOBS"
mkdir tree
tar -xf "$src"/pytorch-v*.tar.gz --strip-components=1 -C tree
cd tree
python setup.py bdist_wheel
python -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" dist/torch-*.whl
# The libraries that torch opens at run time travel with it.
cp -P "$CUDNN_ROOT"/lib/libcudnn*.so.8 "$out/site-packages/torch/lib/"
# The toolkit's stub of libcuda has no place in a search path: it would hide the driver's library.
for library in "$out"/site-packages/torch/lib/*.so; do
    if readelf -d "$library" | grep -E 'R(UN)?PATH' | grep -q stubs; then
        echo "$library: its search path names a directory of stubs"
        exit 1
    fi
done
# A process for each package: what shares a process decides some of the bytes.
find "$out/site-packages" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" \
    python -m compileall -q --invalidation-mode unchecked-hash
