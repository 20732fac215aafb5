// Rotary embedding, in place. A thread turns kVec pairs of one head.
#include "common.cuh"

namespace kepler {
namespace {

template <bool kNeox, int kVec>
__global__ void __launch_bounds__(512) rotary_kernel(const int64_t* __restrict__ positions, float* query, float* key,
                                                     const float* __restrict__ cos_sin, int num_heads, int head_size,
                                                     int half, int items, int chunks, long long query_stride,
                                                     long long key_stride) {
  const int token = blockIdx.x / chunks;
  const int item = blockIdx.x % chunks * blockDim.x + threadIdx.x;
  if (item >= items) return;
  const int per_head = half / kVec;
  int head = item / per_head;
  const int pair = item % per_head * kVec;
  float* base = query + token * query_stride;
  if (head >= num_heads) {
    head -= num_heads;
    base = key + token * key_stride;
  }
  base += static_cast<long long>(head) * head_size;
  const float* turn = cos_sin + positions[token] * (2LL * half) + pair;
  const Vec<kVec> c = load<kVec>(turn), s = load<kVec>(turn + half);
  float* first = kNeox ? base + pair : base + 2 * pair;
  float* second = kNeox ? first + half : first + kVec;
  Vec<kVec> a = load<kVec>(first), b = load<kVec>(second);
  float both[2 * kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    both[i] = a.at[i];
    both[kVec + i] = b.at[i];
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const int p = kNeox ? i : 2 * i, q = kNeox ? kVec + i : 2 * i + 1;
    const float u = both[p], v = both[q];
    both[p] = u * c.at[i] - v * s.at[i];
    both[q] = v * c.at[i] + u * s.at[i];
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    a.at[i] = both[i];
    b.at[i] = both[kVec + i];
  }
  store<kVec>(first, a);
  store<kVec>(second, b);
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_rotary_embedding(const int64_t* positions, float* query, float* key, const float* cos_sin,
                                       int tokens, int num_heads, int num_kv_heads, int head_size, int rot_dim,
                                       int neox, long long query_stride, long long key_stride, void* stream) {
  using namespace kepler;
  if (tokens < 0 || num_heads <= 0 || (key && num_kv_heads <= 0) || rot_dim <= 0 || rot_dim % 2 ||
      rot_dim > head_size)
    return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  const int half = rot_dim / 2;
  const bool vectors = half % 4 == 0 && head_size % 4 == 0 && query_stride % 4 == 0 && key_stride % 4 == 0 &&
                       aligned16(query) && aligned16(key) && aligned16(cos_sin);
  const int items = (num_heads + (key ? num_kv_heads : 0)) * (half / (vectors ? 4 : 1));
  const RowCut cut(items);
  if (!cut.fits(tokens)) return cudaErrorInvalidValue;
  const auto kernel = neox ? (vectors ? rotary_kernel<true, 4> : rotary_kernel<true, 1>)
                           : (vectors ? rotary_kernel<false, 4> : rotary_kernel<false, 1>);
  kernel<<<tokens * cut.chunks, cut.threads, 0, static_cast<cudaStream_t>(stream)>>>(
      positions, query, key, cos_sin, num_heads, head_size, half, items, cut.chunks, query_stride, key_stride);
  return cudaGetLastError();
}
