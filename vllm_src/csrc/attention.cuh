// What the two attention kernels share: the paged cache, loads and stores by dtype, a score's variants.
//
// Keys and values are two tensors [num_blocks, num_kv_heads, block_size, head_size], float32 or float16. The tokens of
// one head lie together within a block, so that neighboring lanes read neighboring 16 bytes (8 of float16).
// Arithmetic is float32 throughout: sm_37 has no other that is fast.
#pragma once

#include "common.cuh"

namespace kepler {

constexpr int kMaxHeadSize = 512;
// Grid dimensions y and z stop here, on every architecture.
constexpr int kMaxGridYZ = 65535;

struct PagedCache {
  const void* key;
  const void* value;
  const int* block_tables;  // [num_seqs, max_blocks]
  int max_blocks;
  int block_shift;  // log2 of block_size
  int num_kv_heads;
};

struct Variants {
  float scale;
  float soft_cap;             // 0: none
  int window;                 // last positions that a query sees, itself included; 0: all
  const float* alibi_slopes;  // [num_heads] or null
};

__device__ __forceinline__ float4 widened(float4 v) { return v; }

__device__ __forceinline__ float4 widened(uint2 halves) {
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&halves.x));
  const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&halves.y));
  return make_float4(low.x, low.y, high.x, high.y);
}

__device__ __forceinline__ float4 load4(const __half* p) { return widened(__ldg(reinterpret_cast<const uint2*>(p))); }

__device__ __forceinline__ float4 load4(const void* p, size_t offset, DType dtype) {
  return dtype == kFloat16 ? load4(static_cast<const __half*>(p) + offset) : load4(static_cast<const float*>(p) + offset);
}

__device__ __forceinline__ void store4(void* p, size_t offset, DType dtype, float4 v) {
  if (dtype == kFloat16) store4(static_cast<__half*>(p) + offset, v);
  else store4(static_cast<float*>(p) + offset, v);
}

__device__ __forceinline__ float4 scaled(float4 v, float factor) {
  return make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
}

__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

__device__ __forceinline__ void add_scaled(float4& sum, float factor, float4 v) {
  sum.x = fmaf(factor, v.x, sum.x);
  sum.y = fmaf(factor, v.y, sum.y);
  sum.z = fmaf(factor, v.z, sum.z);
  sum.w = fmaf(factor, v.w, sum.w);
}

// Score of scaled q·k: soft-cap first, ALiBi after it, as in the reference (distance = key - query position).
__device__ __forceinline__ float vary(float score, float soft_cap, float slope, int distance) {
  if (soft_cap > 0.f) score = soft_cap * tanhf(score / soft_cap);
  return fmaf(slope, static_cast<float>(distance), score);
}

// A maximum of nothing but hidden keys is -inf, and -inf - -inf is NaN: such a row subtracts 0 instead.
__device__ __forceinline__ float finite_max(float m) { return m == -INFINITY ? 0.f : m; }

inline int block_shift_of(int block_size) {
  return block_size == 8 ? 3 : block_size == 16 ? 4 : block_size == 32 ? 5 : -1;
}

// What both launchers refuse before they start anything.
inline bool well_formed(int num_heads, int num_kv_heads, int head_size, int block_size, int cache_dtype, int io_dtype,
                        const Variants& variants) {
  return num_heads > 0 && num_kv_heads > 0 && num_heads % num_kv_heads == 0 && num_kv_heads <= kMaxGridYZ &&
         head_size >= 8 && head_size <= kMaxHeadSize && head_size % 8 == 0 && block_shift_of(block_size) > 0 &&
         (cache_dtype == kFloat32 || cache_dtype == kFloat16) && (io_dtype == kFloat32 || io_dtype == kFloat16) &&
         variants.window >= 0 && variants.soft_cap >= 0.f;
}

}  // namespace kepler
