# libvllm_kepler.so by the compilers NVCC and CCBIN: machine code for sm_{{ __vllm_sm }}, PTX for newer GPUs.
python="{{ __store_python_program }}"
library="$out/lib/libvllm_kepler.so"
mkdir -p tree build "$out/lib"
tar -xf "$src/vllm_kernels.tar" --strip-components=1 -C tree
echo "##progress compiling the kernels"
"$python" tree/build.py {{ __vllm_architecture }}--nvcc "$NVCC" --ccbin "$CCBIN" --version "$VERSION" --out build
cp build/libvllm_kepler.so build/resources.json build/resources.txt "$out/lib/"
echo "##progress loading the kernels"
"$python" - "$library" "$VERSION" <<'END'
import ctypes
import sys

path, wanted = sys.argv[1:]
try:
    library = ctypes.CDLL(path)
except OSError as error:
    sys.exit(str(error))
library.kepler_version.restype = library.kepler_architectures.restype = ctypes.c_char_p
found = library.kepler_version().decode()
if found != wanted:
    sys.exit("%s: found version %s, expected %s" % (path, found, wanted))
print("kernels", found, "for", library.kepler_architectures().decode())
END
