// What the kernels share: warp sums, aligned vectors, how a row is cut into blocks.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kepler.h"

namespace kepler {

// Numbers of the C interface.
enum DType { kFloat32 = 0, kFloat16 = 1 };

// The number for the architecture that is compiled: a multiprocessor of sm_37 has 128 K registers, one of sm_70 half.
constexpr int on(int sm_37, int sm_70) { return KEPLER_SM == 37 ? sm_37 : sm_70; }

constexpr unsigned kAllLanes = 0xffffffffu;

// Named masks: a warp of a newer GPU does not move in step by itself.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

// Of 2 · kept values a lane, sums of two lanes `step` apart: each of them keeps so many.
__device__ __forceinline__ void exchange(float* values, int kept, unsigned lane, unsigned step) {
  const bool upper = lane & step;
#pragma unroll
  for (int i = 0; i < kept; ++i) {
    const float sent = upper ? values[i] : values[i + kept];
    const float own = upper ? values[i + kept] : values[i];
    values[i] = own + __shfl_xor_sync(kAllLanes, sent, step);
  }
}

// kVec elements that travel in one load: float4 or a lone float.
template <int kVec>
struct alignas(4 * kVec) Vec {
  float at[kVec];
};

template <int kVec>
__device__ __forceinline__ Vec<kVec> load(const float* p) {
  return *reinterpret_cast<const Vec<kVec>*>(p);
}

template <int kVec>
__device__ __forceinline__ void store(float* p, const Vec<kVec>& v) {
  *reinterpret_cast<Vec<kVec>*>(p) = v;
}

// Four elements of a cache or activation that may lie in half precision; arithmetic is float32.
__device__ __forceinline__ float4 load4(const float* p) { return __ldg(reinterpret_cast<const float4*>(p)); }

__device__ __forceinline__ void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

__device__ __forceinline__ void store4(__half* p, float4 v) {
  const __half2 pairs[2] = {__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w)};
  *reinterpret_cast<uint2*>(p) = *reinterpret_cast<const uint2*>(pairs);
}

// Weights of 8 and 4 bits: the shift that gives a column's group; -1 for a size that is not taken.
inline int shift_of(int group, int k) {
  if (group == k) return 31;
  for (int shift = 5; shift < 31; ++shift)
    if (group == 1 << shift) return k % group ? -1 : shift;
  return -1;
}

// Rows of several matrices, sorted by the one that each is for into tiles: a tile has one.
struct ExpertArgs {
  const int* sorted_rows;   // of tile i from i · its rows on, num_rows for none; null where a tile is one row: row i
  const int* tile_experts;  // the matrix of each tile
  const int* num_sorted;
  const float* row_scales;  // of the rows of out; null: 1
  int num_rows;             // of out; row r takes row r / rows_per_x of x
  int rows_per_x;
  int num_experts;
};

inline bool aligned16(const void* p) { return reinterpret_cast<size_t>(p) % 16 == 0; }

// Cuts a row of `items` into `chunks` blocks of `threads`, one item a thread; the grid is rows × chunks in x, the only
// dimension without a limit of 65,535.
struct RowCut {
  int chunks, threads;
  explicit RowCut(int items) {
    chunks = (items + 511) / 512;
    threads = ((items + chunks - 1) / chunks + 31) / 32 * 32;
  }
  bool fits(int rows) const { return static_cast<long long>(rows) * chunks <= 0x7fffffffLL; }
};

}  // namespace kepler
