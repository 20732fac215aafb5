// What the library says about itself.
#include "common.cuh"

extern "C" const char* kepler_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
extern "C" const char* kepler_version(void) { return KEPLER_VERSION; }
extern "C" const char* kepler_architectures(void) { return KEPLER_ARCHITECTURES; }
