// Writes to the paged KV cache, and copies of whole blocks.
#include "common.cuh"

namespace kepler {
namespace {

template <typename T>
__global__ void __launch_bounds__(512) cache_kernel(const float* __restrict__ key, const float* __restrict__ value,
                                                    T* key_cache, T* value_cache,
                                                    const int64_t* __restrict__ slot_mapping, int num_kv_heads,
                                                    int head_size, int block_size, int items, int chunks,
                                                    long long key_stride, long long value_stride) {
  const long long token = blockIdx.x / chunks;
  const int item = blockIdx.x % chunks * blockDim.x + threadIdx.x;
  const long long slot = slot_mapping[token];
  if (item >= items || slot < 0) return;
  const int i = item * 4, head = i / head_size;
  const long long block = slot / block_size, offset = slot % block_size;
  const long long to = ((block * num_kv_heads + head) * block_size + offset) * head_size + i % head_size;
  const float4 k = load4(key + token * key_stride + i), v = load4(value + token * value_stride + i);
  store4(key_cache + to, k);
  store4(value_cache + to, v);
}

constexpr int kCopyThreads = 256, kCopyVectors = 4;

// kCopyVectors loads of a thread are in flight before the first is stored.
__global__ void __launch_bounds__(kCopyThreads) copy_kernel(void* const* caches, const int64_t* __restrict__ pairs,
                                                            int num_pairs, int chunks, size_t vectors) {
  const int chunk = blockIdx.x % chunks, pair = blockIdx.x / chunks % num_pairs;
  const size_t first = static_cast<size_t>(chunk) * kCopyThreads * kCopyVectors + threadIdx.x;
  uint4* cache = static_cast<uint4*>(caches[blockIdx.x / chunks / num_pairs]);
  const uint4* from = cache + pairs[2 * pair] * vectors;
  uint4* to = cache + pairs[2 * pair + 1] * vectors;
  uint4 held[kCopyVectors];
#pragma unroll
  for (int v = 0; v < kCopyVectors; ++v)
    if (first + v * kCopyThreads < vectors) held[v] = from[first + v * kCopyThreads];
#pragma unroll
  for (int v = 0; v < kCopyVectors; ++v)
    if (first + v * kCopyThreads < vectors) to[first + v * kCopyThreads] = held[v];
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_reshape_and_cache(const float* key, const float* value, void* key_cache, void* value_cache,
                                        int cache_dtype, const int64_t* slot_mapping, int tokens, int num_kv_heads,
                                        int head_size, int block_size, long long key_stride, long long value_stride,
                                        void* stream) {
  using namespace kepler;
  if (tokens < 0 || num_kv_heads <= 0 || head_size <= 0 || head_size % 8 || block_size <= 0 || key_stride % 4 ||
      value_stride % 4 || !aligned16(key) || !aligned16(value) || (cache_dtype != kFloat32 && cache_dtype != kFloat16))
    return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  const int items = num_kv_heads * head_size / 4;
  const RowCut cut(items);
  if (!cut.fits(tokens)) return cudaErrorInvalidValue;
  const auto on = static_cast<cudaStream_t>(stream);
  if (cache_dtype == kFloat32)
    cache_kernel<<<tokens * cut.chunks, cut.threads, 0, on>>>(
        key, value, static_cast<float*>(key_cache), static_cast<float*>(value_cache), slot_mapping, num_kv_heads,
        head_size, block_size, items, cut.chunks, key_stride, value_stride);
  else
    cache_kernel<<<tokens * cut.chunks, cut.threads, 0, on>>>(
        key, value, static_cast<__half*>(key_cache), static_cast<__half*>(value_cache), slot_mapping, num_kv_heads,
        head_size, block_size, items, cut.chunks, key_stride, value_stride);
  return cudaGetLastError();
}

extern "C" int kepler_copy_blocks(void* const* caches, int num_caches, const int64_t* pairs, int num_pairs,
                                  size_t block_bytes, void* stream) {
  if (num_caches < 0 || num_pairs < 0 || block_bytes == 0 || block_bytes % 16) return cudaErrorInvalidValue;
  if (num_caches == 0 || num_pairs == 0) return cudaSuccess;
  constexpr size_t kChunk = kepler::kCopyThreads * kepler::kCopyVectors;
  const size_t vectors = block_bytes / 16, chunks = (vectors + kChunk - 1) / kChunk;
  const size_t blocks = chunks * num_pairs * num_caches;
  if (blocks > 0x7fffffffULL) return cudaErrorInvalidValue;
  kepler::copy_kernel<<<static_cast<unsigned>(blocks), kepler::kCopyThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      caches, pairs, num_pairs, static_cast<int>(chunks), vectors);
  return cudaGetLastError();
}

extern "C" int kepler_swap_blocks(const void* source, void* destination, const int64_t* pairs, int num_pairs,
                                  size_t block_bytes, void* stream) {
  if (num_pairs < 0 || block_bytes == 0) return cudaErrorInvalidValue;
  for (int i = 0; i < num_pairs; ++i) {
    const cudaError_t error = cudaMemcpyAsync(static_cast<char*>(destination) + pairs[2 * i + 1] * block_bytes,
                                              static_cast<const char*>(source) + pairs[2 * i] * block_bytes,
                                              block_bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
