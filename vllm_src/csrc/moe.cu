// Mixture of experts: routing, sorting of rows by expert, products with each expert's weights.
#include "common.cuh"

namespace kepler {
namespace {

constexpr int kMaxExperts = 512;
constexpr int kSortThreads = 512;

// A warp a token; lane l holds the logits l, l + 32, ...
template <int kHeld>
__global__ void __launch_bounds__(128) topk_kernel(float* weights, int* experts, const float* __restrict__ logits,
                                                   int tokens, int num_experts, int top_k, bool renormalize) {
  const int token = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= tokens) return;
  float p[kHeld];
  float top = -INFINITY;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int e = i * 32 + lane;
    p[i] = e < num_experts ? logits[static_cast<long long>(token) * num_experts + e] : -INFINITY;
    top = fmaxf(top, p[i]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, step));
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) sum += expf(p[i] - top);
  sum = warp_sum(sum);
  // Not a number equals nothing: all lanes must choose the same expert, and the weights are none then.
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (isnan(p[i])) p[i] = -INFINITY;
  float chosen = 0.f;
  const long long base = static_cast<long long>(token) * top_k;
  // Chosen by logit, not by probability: two small probabilities may round to the same value.
  unsigned taken = 0;
  for (int k = 0; k < top_k; ++k) {
    float best = -INFINITY;
    int at = kMaxExperts;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int e = i * 32 + lane;
      if (e < num_experts && !(taken >> i & 1) && (at == kMaxExperts || p[i] > best)) {
        best = p[i];
        at = e;
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, step);
      const int other_at = __shfl_xor_sync(kAllLanes, at, step);
      if (other_at < kMaxExperts && (at == kMaxExperts || other > best || (other == best && other_at < at))) {
        best = other;
        at = other_at;
      }
    }
    if (at % 32 == lane) taken |= 1u << (at / 32);
    const float weight = expf(best - top) / sum;
    chosen += weight;
    if (lane == 0) {
      weights[base + k] = weight;
      experts[base + k] = at;
    }
  }
  if (renormalize && lane == 0)
    for (int k = 0; k < top_k; ++k) weights[base + k] /= chosen;
}

// One block: rows are at most some ten thousands. Those of an expert keep their order: how a product adds up a row's
// columns depends on the row's tile, so another order would give other roundings.
__global__ void __launch_bounds__(kSortThreads) sort_kernel(int* sorted_rows, int* tile_experts, int* num_sorted,
                                                            const int* __restrict__ experts, int num_rows,
                                                            int num_experts, int tile, int capacity) {
  __shared__ int counts[kMaxExperts], starts[kMaxExperts + 1];
  const int t = threadIdx.x;
  if (t < num_experts) counts[t] = 0;
  for (int i = t; i < capacity; i += kSortThreads) sorted_rows[i] = num_rows;
  __syncthreads();
  for (int i = t; i < num_rows; i += kSortThreads) atomicAdd(&counts[experts[i]], 1);
  __syncthreads();
  if (t == 0) {
    starts[0] = 0;
    for (int e = 0; e < num_experts; ++e) starts[e + 1] = starts[e] + (counts[e] + tile - 1) / tile * tile;
    *num_sorted = starts[num_experts];
  }
  __syncthreads();
  if (t < num_experts) {
    for (int i = starts[t]; i < starts[t + 1]; i += tile) tile_experts[i / tile] = t;
  }
  __syncthreads();
  // A warp looks for the rows of an expert.
  const int lane = t % 32;
  for (int e = t / 32; e < num_experts; e += kSortThreads / 32) {
    int at = starts[e];
    const int end = at + counts[e];
    for (int first = 0; at < end && first < num_rows; first += 32) {
      const bool own = first + lane < num_rows && experts[first + lane] == e;
      const unsigned found = __ballot_sync(kAllLanes, own);
      if (own) sorted_rows[at + __popc(found & ((1u << lane) - 1))] = first + lane;
      at += __popc(found);
    }
  }
}

constexpr int kTileN = 64, kTileK = 16, kProductThreads = 256;

// Four neighboring columns as float32.
__device__ __forceinline__ Vec<4> four(const float* p) { return load<4>(p); }

__device__ __forceinline__ Vec<4> four(const __half* p) {
  const uint2 v = __ldg(reinterpret_cast<const uint2*>(p));
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&v.x));
  const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&v.y));
  return {{low.x, low.y, high.x, high.y}};
}

// kTileM × 64 outputs a block, kTileM / 16 × 4 a thread.
template <typename F, int kTileM>
__global__ void __launch_bounds__(kProductThreads, on(0, 3))
    product_kernel(float* out, const float* __restrict__ x, const F* __restrict__ weights,
                   const float* __restrict__ row_scales,
                   const int* __restrict__ sorted_rows, const int* __restrict__ tile_experts,
                   const int* __restrict__ num_sorted, int num_rows, int n, int k, int rows_per_x) {
  constexpr int kRows = kTileM / 16;
  // Four columns more than needed: rows begin at 16 bytes, and the transposed stores do not all meet in one bank.
  __shared__ __align__(16) float a[kTileK][kTileM + 4], b[kTileK][kTileN + 4];
  const int first = blockIdx.y * kTileM;
  if (first >= *num_sorted) return;
  const int n0 = blockIdx.x * kTileN, t = threadIdx.x;
  const int at = t / 4, k4 = t % 4 * 4;
  const int row = at < kTileM ? sorted_rows[first + at] : num_rows;
  const float* from_x = row < num_rows ? x + static_cast<long long>(row / rows_per_x) * k : nullptr;
  const size_t weight_row = static_cast<size_t>(tile_experts[blockIdx.y]) * n + n0 + at;
  const int tm = t / 16 * kRows, tn = t % 16 * 4;
  float sum[kRows][4] = {};
  Vec<4> va = {}, vb = {};
  const auto fetch = [&](int column) {
    va = vb = {};
    if (column >= k) return;
    if (from_x) va = load<4>(from_x + column);
    if (n0 + at < n) vb = four(weights + weight_row * k + column);
  };
  fetch(k4);
  for (int k0 = 0; k0 < k; k0 += kTileK) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (at < kTileM) a[k4 + j][at] = va.at[j];
      b[k4 + j][at] = vb.at[j];
    }
    __syncthreads();
    // The next step's are on their way while this one's are multiplied.
    fetch(k0 + kTileK + k4);
#pragma unroll
    for (int kk = 0; kk < kTileK; ++kk) {
      const Vec<kRows> x_at = load<kRows>(&a[kk][tm]);
      const Vec<4> w_at = load<4>(&b[kk][tn]);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(x_at.at[i], w_at.at[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int to = sorted_rows[first + tm + i];
    if (to >= num_rows) continue;
    const float scale = row_scales ? row_scales[to] : 1.f;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (n0 + tn + j < n) out[static_cast<long long>(to) * n + n0 + tn + j] = sum[i][j] * scale;
  }
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_topk_softmax(float* weights, int* experts, const float* logits, int tokens, int num_experts,
                                   int top_k, int renormalize, void* stream) {
  using namespace kepler;
  if (tokens < 0 || num_experts <= 0 || num_experts > kMaxExperts || top_k <= 0 || top_k > num_experts)
    return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  const auto kernel = num_experts <= 32 ? topk_kernel<1> : num_experts <= 128 ? topk_kernel<4> : topk_kernel<16>;
  kernel<<<(tokens + 3) / 4, 128, 0, static_cast<cudaStream_t>(stream)>>>(weights, experts, logits, tokens,
                                                                         num_experts, top_k, renormalize != 0);
  return cudaGetLastError();
}

extern "C" int kepler_moe_capacity(int num_rows, int num_experts, int tile) {
  // No more experts than rows can have a tile begun.
  const int begun = num_rows < num_experts ? num_rows : num_experts;
  return (num_rows + begun * (tile - 1) + tile - 1) / tile * tile;
}

extern "C" int kepler_moe_sort(int* sorted_rows, int* tile_experts, int* num_sorted, const int* experts, int num_rows,
                               int num_experts, int tile, void* stream) {
  if (num_rows <= 0 || num_experts <= 0 || num_experts > kepler::kMaxExperts || tile < 2 || tile > 128)
    return cudaErrorInvalidValue;
  kepler::sort_kernel<<<1, kepler::kSortThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      sorted_rows, tile_experts, num_sorted, experts, num_rows, num_experts, tile,
      kepler_moe_capacity(num_rows, num_experts, tile));
  return cudaGetLastError();
}

extern "C" int kepler_moe_product(float* out, const float* x, const void* weight, int bits, const float* row_scales,
                                  const int* sorted_rows, const int* tile_experts, const int* num_sorted, int num_rows,
                                  int num_experts, int n, int k, int rows_per_x, int tile, void* stream) {
  using namespace kepler;
  if (num_rows <= 0 || num_experts <= 0 || n <= 0 || k <= 0 || k % 4 || rows_per_x <= 0 ||
      (tile != 16 && tile != 64) || !aligned16(x) || !aligned16(weight) || (bits != 16 && bits != 32))
    return cudaErrorInvalidValue;
  const dim3 grid((n + kTileN - 1) / kTileN, kepler_moe_capacity(num_rows, num_experts, tile) / tile);
  if (grid.y > 65535) return cudaErrorInvalidValue;
  const auto launch = [&](auto kernel, auto weights) {
    kernel<<<grid, kProductThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        out, x, weights, row_scales, sorted_rows, tile_experts, num_sorted, num_rows, n, k, rows_per_x);
  };
  const auto floats = static_cast<const float*>(weight);
  const auto halves = static_cast<const __half*>(weight);
  if (bits == 32)
    launch(tile == 16 ? product_kernel<float, 16> : product_kernel<float, 64>, floats);
  else
    launch(tile == 16 ? product_kernel<__half, 16> : product_kernel<__half, 64>, halves);
  return cudaGetLastError();
}
