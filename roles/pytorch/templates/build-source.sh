# PyTorch for sm_{{ __pytorch_sm }} from the release archive, which holds all submodules.
work="$PWD"
"{{ __store_python_program }}" -m venv tools
tools/bin/python -m pip --quiet install --no-index --no-deps "$src"/*.whl
export PATH="$work/tools/bin:$PATH"
# cuDNN comes as a wheel: headers and libraries under one directory, without the names that a linker looks for.
CUDNN_ROOT="$(tools/bin/python -c 'import nvidia.cudnn; print(list(nvidia.cudnn.__path__)[0])')"
for library in "$CUDNN_ROOT"/lib/libcudnn*.so.8; do ln -s "${library##*/}" "${library%.8}"; done
# The CMake of PyTorch takes the directory, and finds nothing where it is given a file.
export CUDNN_INCLUDE_DIR="$CUDNN_ROOT/include" CUDNN_LIBRARY="$CUDNN_ROOT/lib"
# CMake looks here first: with a driver or without one, what is linked is the toolkit's stub under a path of this build.
export CMAKE_PREFIX_PATH="$work/tools"
ln -s "$CUDA_HOME/lib64/stubs/libcuda.so" tools/lib/libcuda.so
export MAX_JOBS="$KEPLER_JOBS"
mkdir tree
tar -xf "$src"/pytorch-v*.tar.gz --strip-components=1 -C tree
cd tree

echo "##progress configuring"
python setup.py build --cmake-only
# What is missing here is left out without an error, and would show two hours later.
wrong=""
expect() {
    found="$(sed -n "s/^$1:[A-Z]*=//p" build/CMakeCache.txt)"
    printf '%s\n' "$found" | grep -Eqx -e "$2" || wrong="$wrong
$1: found ${found:-nothing}; expected $3. $4"
}
yes="1|ON|TRUE|YES|Y"
toolkit="Install the locked packages of the roles cuda_toolkit and gcc_toolset"
for part in USE_CUDA USE_CUDNN USE_NCCL USE_DISTRIBUTED; do
    expect "$part" "$yes" ON "CMake turned it off, and said why above. $toolkit."
done
expect CUDNN_LIBRARY_PATH "$CUDNN_LIBRARY/libcudnn[^/]*" "a libcudnn in $CUDNN_LIBRARY" \
    "It comes with the lock's wheel nvidia-cudnn-cu11; remove another cuDNN from this host's system directories."
expect CUDA_CUDA_LIB "$work/tools/lib/libcuda.so" "$work/tools/lib/libcuda.so" \
    "It has to lead to $CUDA_HOME/lib64/stubs/libcuda.so. $toolkit."
correct="Correct TORCH_CUDA_ARCH_LIST in roles/pytorch/vars/main.yml."
# Not every release keeps it in the cache; what the compiler is told stands in the commands of any generator.
expect TORCH_CUDA_ARCH_LIST "{{ profile.gpu.compute_capability | replace('.', '\\.') }}|" {{ profile.gpu.compute_capability }} "$correct"
grep -rqs --include=build.ninja --include=flags.make --include=build.make --include='*.cmake' compute_{{ __pytorch_sm }} build ||
    wrong="$wrong
compute_{{ __pytorch_sm }}: found in no command of the build; expected in those that compile CUDA. $correct"
if [ "$wrong" ]; then
    printf '%s\n' "tree/build/CMakeCache.txt: PyTorch is configured otherwise than asked for; nothing was compiled.$wrong" \
        "Then run again, or set pytorch_provider: wheel."
    exit 1
fi

python setup.py bdist_wheel
python -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile \
    --target "$out/site-packages" dist/torch-*.whl
# The libraries that torch opens at run time travel with it.
cp -P "$CUDNN_ROOT"/lib/libcudnn*.so.8 "$out/site-packages/torch/lib/"

# Search paths keep neither a directory of this build nor the toolkit's stubs, which would hide the driver's library.
find "$out/site-packages" -type f \( -name '*.so' -o -name '*.so.*' -o -perm -u+x \) > "$work/candidates"
while IFS= read -r file; do
    if ! readelf -d "$file" 2>/dev/null | grep -E 'R(UN)?PATH' > "$work/path"; then continue; fi
    before="$(patchelf --print-rpath "$file")"
    after="$(printf '%s' "$before" | tr ':' '\n' | awk -v work="$work/" \
        '/^(\/|\$ORIGIN)/ && !/stubs/ && index($0 "/", work) != 1' | paste -sd: -)"
    if [ "$before" != "$after" ]; then patchelf --set-rpath "$after" "$file"; fi
    left="$(readelf -d "$file" | grep -E 'R(UN)?PATH' || true)"
    case "$left" in *stubs* | *"$work/"*)
        echo "$file: its search path names a directory of stubs or of the build: $left"
        exit 1
    esac
done < "$work/candidates"
# A process for each package: what shares a process decides some of the bytes.
find "$out/site-packages" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" \
    python -m compileall -q --invalidation-mode unchecked-hash
