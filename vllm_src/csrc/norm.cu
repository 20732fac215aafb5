// RMS norm, with and without the residual addition before it. A row stays in registers between its two passes as long
// as it fits; a longer one is read again.
#include "common.cuh"

namespace kepler {
namespace {

constexpr int kThreads = 256;

template <int kWidth>
__device__ __forceinline__ float row_sum(float v) {
  v = warp_sum(v);
  if (kWidth == 32) return v;
  __shared__ float sums[kThreads / 32];
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) total += sums[i];
  return total;
}

// kWidth threads a row, each with kHeld vectors of kVec elements. kHeld == 0: as many as the row needs, read again.
template <int kWidth, int kVec, int kHeld, bool kAdd>
__global__ void __launch_bounds__(kThreads) norm_kernel(float* out, const float* x, float* residual,
                                                        const float* __restrict__ weight, float eps, int rows,
                                                        int hidden, long long out_stride, long long x_stride,
                                                        int heads, long long head_stride, long long residual_stride) {
  const int lane = threadIdx.x % kWidth;
  const int row = blockIdx.x * (kThreads / kWidth) + threadIdx.x / kWidth;
  if (row >= rows) return;  // whole warps: kWidth is 32 or the block
  out += row * out_stride;
  x += kAdd ? row * x_stride : row / heads * x_stride + row % heads * head_stride;
  if (kAdd) residual += row * residual_stride;
  // The weight is on its way while the row is summed, as far as registers go.
  constexpr int kAhead = kHeld <= 4 ? kHeld : 0;
  Vec<kVec> held[kHeld ? kHeld : 1], ahead[kHeld ? kHeld : 1];
#pragma unroll
  for (int h = 0; h < kAhead; ++h) {
    const int i = (h * kWidth + lane) * kVec;
    if (i < hidden) ahead[h] = load<kVec>(weight + i);
  }
  float sum = 0.f;
  const auto take = [&](int i) {
    Vec<kVec> v = load<kVec>(x + i);
    if (kAdd) {
      const Vec<kVec> r = load<kVec>(residual + i);
#pragma unroll
      for (int j = 0; j < kVec; ++j) v.at[j] += r.at[j];
      store<kVec>(residual + i, v);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) sum = fmaf(v.at[j], v.at[j], sum);
    return v;
  };
  if (kHeld) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int i = (h * kWidth + lane) * kVec;
      if (i < hidden) held[h] = take(i);
    }
  } else {
    for (int i = lane * kVec; i < hidden; i += kWidth * kVec) take(i);
  }
  const float factor = 1.f / sqrtf(row_sum<kWidth>(sum) / hidden + eps);
  const auto give = [&](int i, Vec<kVec> v, Vec<kVec> w) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) v.at[j] = v.at[j] * factor * w.at[j];
    store<kVec>(out + i, v);
  };
  if (kHeld) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int i = (h * kWidth + lane) * kVec;
      if (i < hidden) give(i, held[h], kAhead ? ahead[h] : load<kVec>(weight + i));
    }
  } else {
    // A thread reads back only what it wrote itself.
    for (int i = lane * kVec; i < hidden; i += kWidth * kVec) {
      give(i, load<kVec>(kAdd ? residual + i : x + i), load<kVec>(weight + i));
    }
  }
}

template <bool kAdd>
int launch(float* out, const float* x, float* residual, const float* weight, float eps, int rows, int hidden,
           long long out_stride, long long x_stride, int heads, long long head_stride, long long residual_stride,
           void* stream) {
  if (rows < 0 || hidden <= 0 || eps < 0.f || heads <= 0) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const bool vectors = hidden % 4 == 0 && out_stride % 4 == 0 && x_stride % 4 == 0 && head_stride % 4 == 0 &&
                       residual_stride % 4 == 0 && aligned16(out) && aligned16(x) && aligned16(residual) &&
                       aligned16(weight);
#define KEPLER_NORM(WIDTH, VEC, HELD)                                                                                 \
  norm_kernel<WIDTH, VEC, HELD, kAdd>                                                                                 \
      <<<(rows + kThreads / WIDTH - 1) / (kThreads / WIDTH), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(       \
          out, x, residual, weight, eps, rows, hidden, out_stride, x_stride, heads, head_stride, residual_stride)
  if (!vectors) KEPLER_NORM(256, 1, 0);
  else if (hidden <= 128) KEPLER_NORM(32, 4, 1);
  else if (hidden <= 512) KEPLER_NORM(32, 4, 4);
  else if (hidden <= 2048) KEPLER_NORM(256, 4, 2);
  else if (hidden <= 4096) KEPLER_NORM(256, 4, 4);
  else if (hidden <= 8192) KEPLER_NORM(256, 4, 8);
  else KEPLER_NORM(256, 4, 0);
#undef KEPLER_NORM
  return cudaGetLastError();
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_rms_norm(float* out, const float* x, const float* weight, float eps, int rows, int hidden,
                               long long out_stride, long long x_stride, int heads, long long head_stride,
                               void* stream) {
  return kepler::launch<false>(out, x, nullptr, weight, eps, rows, hidden, out_stride, x_stride, heads, head_stride, 0,
                               stream);
}

extern "C" int kepler_fused_add_rms_norm(float* x, float* residual, const float* weight, float eps, int rows,
                                         int hidden, long long x_stride, long long residual_stride, void* stream) {
  return kepler::launch<true>(x, x, residual, weight, eps, rows, hidden, x_stride, x_stride, 1, 0, residual_stride,
                              stream);
}
