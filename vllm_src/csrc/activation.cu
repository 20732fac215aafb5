// Activations, alone or times a second half (gated). Forms that cancel nothing for negative arguments: the tail of the
// normal distribution in place of 1 + erf, a sigmoid in place of 1 + tanh.
#include "common.cuh"

namespace kepler {
namespace {

// Exact to some units in the last place while the result is above 3e-37: beyond, expf overflows and the result is 0.
__device__ __forceinline__ float x_sigmoid(float x, float of) { return x / (1.f + expf(-of)); }

// exp(-x²/2). The rounding of x² alone would cost x²/2 units in the last place: its remainder is put back.
__device__ __forceinline__ float bell(float x) {
  const float square = x * x, rest = fmaf(x, x, -square);
  return expf(-0.5f * square) * fmaf(-0.5f, rest, 1.f);
}

// x · Φ(x). For x >= 0, Φ(-x) = exp(-x²/2) · P(1 / (1 + 0.35 x)) with P of degree 9 without a constant term: fitted to
// erfcx in float64 for the least relative error on [0, 14], 3.2e-8. It costs half of what erfcf does.
__device__ __forceinline__ float gelu(float x) {
  const float distance = fminf(fabsf(x), 20.f), t = __fdividef(1.f, fmaf(0.35f, distance, 1.f));
  float p = -0.029146139f;
  p = fmaf(p, t, 0.14397271f);
  p = fmaf(p, t, -0.25571636f);
  p = fmaf(p, t, 0.15917653f);
  p = fmaf(p, t, -0.023111435f);
  p = fmaf(p, t, 0.10550867f);
  p = fmaf(p, t, 0.1198327f);
  p = fmaf(p, t, 0.1398619f);
  p = fmaf(p, t, 0.13962141f);
  const float tail = p * t * bell(distance);
  return x * (x < 0.f ? tail : 1.f - tail);
}

// x · sigmoid(2 √(2/π) (x + 0.044715 x³)), the argument in two parts for the same reason as in bell().
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kLinear = 1.5957691216f, kCubic = 0.0713548162726f;
  const float y = fminf(fmaxf(x, -30.f), 30.f), square = y * y;
  const float slope = fmaf(kCubic, square, kLinear), argument = y * slope;
  const float slope_rest = fmaf(kCubic, square, kLinear - slope) + kCubic * fmaf(y, y, -square);
  const float rest = fmaf(y, slope, -argument) + y * slope_rest;
  return x / (1.f + expf(-argument) * (1.f - rest));
}

template <int kFunction>
__device__ __forceinline__ float apply(float x) {
  if (kFunction == KEPLER_SILU) return x_sigmoid(x, x);
  if (kFunction == KEPLER_GELU) return gelu(x);
  if (kFunction == KEPLER_GELU_TANH) return gelu_tanh(x);
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
