// Activations, alone or times a second half (gated). Forms that cancel nothing for negative arguments: erfc in place of
// 1 + erf, a sigmoid in place of 1 + tanh.
#include "common.cuh"

namespace kepler {
namespace {

__device__ __forceinline__ float x_sigmoid(float x, float of) { return x / (1.f + expf(-of)); }

template <int kFunction>
__device__ __forceinline__ float apply(float x) {
  if (kFunction == KEPLER_SILU) return x_sigmoid(x, x);
  if (kFunction == KEPLER_GELU) return 0.5f * x * erfcf(x * -0.70710678118654752f);
  // 2 · sqrt(2 / pi)
  if (kFunction == KEPLER_GELU_TANH) return x_sigmoid(x, 1.5957691216057308f * x * fmaf(0.044715f * x, x, 1.f));
  return x_sigmoid(x, 1.702f * x);
}

template <int kFunction, bool kGated, int kVec>
__global__ void __launch_bounds__(512) activation_kernel(float* out, const float* x, int size, int chunks,
                                                         long long out_stride, long long x_stride) {
  const long long row = blockIdx.x / chunks;
  const int i = (blockIdx.x % chunks * blockDim.x + threadIdx.x) * kVec;
  if (i >= size) return;
  const float* from = x + row * x_stride + i;
  Vec<kVec> v = load<kVec>(from), gate;
  if (kGated) gate = load<kVec>(from + size);
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    v.at[j] = apply<kFunction>(v.at[j]);
    if (kGated) v.at[j] *= gate.at[j];
  }
  store<kVec>(out + row * out_stride + i, v);
}

template <int kFunction, bool kGated>
int launch(float* out, const float* x, int rows, int size, long long out_stride, long long x_stride, void* stream) {
  const bool vectors = size % 4 == 0 && out_stride % 4 == 0 && x_stride % 4 == 0 && aligned16(out) && aligned16(x);
  const RowCut cut(vectors ? size / 4 : size);
  if (!cut.fits(rows)) return cudaErrorInvalidValue;
  const auto kernel = vectors ? activation_kernel<kFunction, kGated, 4> : activation_kernel<kFunction, kGated, 1>;
  kernel<<<rows * cut.chunks, cut.threads, 0, static_cast<cudaStream_t>(stream)>>>(out, x, size, cut.chunks,
                                                                                   out_stride, x_stride);
  return cudaGetLastError();
}

template <bool kGated>
int choose(int function, float* out, const float* x, int rows, int size, long long out_stride, long long x_stride,
           void* stream) {
  if (rows < 0 || size <= 0) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  switch (function) {
    case KEPLER_SILU: return launch<KEPLER_SILU, kGated>(out, x, rows, size, out_stride, x_stride, stream);
    case KEPLER_GELU: return launch<KEPLER_GELU, kGated>(out, x, rows, size, out_stride, x_stride, stream);
    case KEPLER_GELU_TANH: return launch<KEPLER_GELU_TANH, kGated>(out, x, rows, size, out_stride, x_stride, stream);
    case KEPLER_GELU_QUICK: return launch<KEPLER_GELU_QUICK, kGated>(out, x, rows, size, out_stride, x_stride, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_activation(int function, float* out, const float* x, int rows, int size, long long out_stride,
                                 long long x_stride, void* stream) {
  return kepler::choose<false>(function, out, x, rows, size, out_stride, x_stride, stream);
}

extern "C" int kepler_activation_and_mul(int function, float* out, const float* x, int rows, int size,
                                         long long out_stride, long long x_stride, void* stream) {
  return kepler::choose<true>(function, out, x, rows, size, out_stride, x_stride, stream);
}
