// Attention of new tokens over the cached and the new ones, straight from the paged cache (flash attention, float32).
//
// A block takes one kv head and a tile of rows; a row is one (query token, query head of the group), so that all heads
// of the group share each key tile that is brought into shared memory. A warp owns 4 · kRowsPerThread rows: its lanes stand
// 4 × 8, each with kRowsPerThread rows and every eighth key (four columns of every 32 for the output). Maximum, sum and
// accumulator of a row so stay with the lanes that own it, and the weights pass through shared memory within a warp alone.
// Keys and values share one buffer: that leaves room for enough rows within sm_37's 48 KB.
#include <climits>

#include "attention.cuh"

namespace kepler {
namespace {

struct PrefillArgs {
  void* out;
  const void* query;
  long long out_stride, query_stride;
  DType io_dtype;
  PagedCache cache;
  const int* query_start_loc;
  const int* seq_lens;
  int num_seqs, num_tiles, num_heads, head_size;
  bool causal;
  Variants variants;
};

// kDepth: head size rounded up to a multiple of 32; the padding is zero.
template <int kDepth>
struct Shape {
  static constexpr int kRowsPerThread = kDepth <= 128 ? 4 : kDepth <= 256 ? 2 : 1;
  static constexpr int kKeys = kDepth <= 128 ? 32 : kDepth <= 256 ? 16 : 8;
  static constexpr int kWarps = kDepth <= 64 ? 4 : 3;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 4 * kRowsPerThread * kWarps;
};

template <typename T, int kDepth>
__global__ void __launch_bounds__(Shape<kDepth>::kThreads) prefill_kernel(PrefillArgs a) {
  using S = Shape<kDepth>;
  constexpr int kRowsPerThread = S::kRowsPerThread, kKeys = S::kKeys, kThreads = S::kThreads, kRows = S::kRows;
  constexpr int kKeysPerThread = kKeys / 8;
  constexpr int kColumns = kDepth / 32;  // groups of four columns a thread
  // One float4 of padding: rows that are read together then start in different banks.
  constexpr int kStride = kDepth / 4 + 1, kWeightStride = kKeys / 4 + 1;
  __shared__ float4 queries[kRows * kStride];
  __shared__ float4 tile[kKeys * kStride];
  __shared__ float4 weights[kRows * kWeightStride];

  // The longest tiles of all heads and sequences start first: the causal ones at the end of a prompt.
  const int kv_head = blockIdx.x % a.cache.num_kv_heads, seq = blockIdx.x / a.cache.num_kv_heads % a.num_seqs;
  const int row_begin = (a.num_tiles - 1 - blockIdx.x / (a.cache.num_kv_heads * a.num_seqs)) * kRows;
  const int query_begin = a.query_start_loc[seq], query_len = a.query_start_loc[seq + 1] - query_begin;
  const int group = a.num_heads / a.cache.num_kv_heads;
  const int rows = query_len * group;
  if (row_begin >= rows) return;
  const int seq_len = a.seq_lens[seq], context_len = seq_len - query_len;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, lane_row = lane / 8, lane_column = lane % 8;
  const int own_row = warp * 4 * kRowsPerThread + lane_row;  // and every fourth after it

  const int vectors = a.head_size / 4;
  for (int i = threadIdx.x; i < kRows * (kDepth / 4); i += kThreads) {
    const int r = i / (kDepth / 4), d = i % (kDepth / 4), row = row_begin + r;
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    if (row < rows && d < vectors)
      v = scaled(load4(a.query, (query_begin + row / group) * a.query_stride +
                                    static_cast<size_t>(kv_head * group + row % group) * a.head_size + 4 * d,
                       a.io_dtype), a.variants.scale);
    queries[r * kStride + d] = v;
  }

  int position[kRowsPerThread];
  float slope[kRowsPerThread], running_max[kRowsPerThread], running_sum[kRowsPerThread];
  float4 acc[kRowsPerThread][kColumns];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    const int row = min(row_begin + own_row + 4 * r, rows - 1);
    position[r] = context_len + row / group;
    slope[r] = a.variants.alibi_slopes != nullptr ? a.variants.alibi_slopes[kv_head * group + row % group] : 0.f;
    running_max[r] = -INFINITY;
    running_sum[r] = 0.f;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) acc[r][c] = make_float4(0.f, 0.f, 0.f, 0.f);
  }

  const int first_position = context_len + row_begin / group;
  const int last_position = context_len + (min(row_begin + kRows, rows) - 1) / group;
  const int window = a.variants.window;
  const int key_begin = window > 0 ? max(0, first_position - window + 1) / kKeys * kKeys : 0;
  const int key_end = a.causal ? min(seq_len, last_position + 1) : seq_len;
  const bool plain = a.variants.soft_cap == 0.f && a.variants.alibi_slopes == nullptr;
  const int* table = a.cache.block_tables + static_cast<size_t>(seq) * a.cache.max_blocks;
  const int block_size = 1 << a.cache.block_shift;

  const auto bring = [&](const void* from, int first_key) {
#pragma unroll 4
    for (int i = threadIdx.x; i < kKeys * (kDepth / 4); i += kThreads) {
      const int k = i / (kDepth / 4), d = i % (kDepth / 4), key = first_key + k;
      float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
      if (key < key_end && d < vectors) {
        const size_t block = __ldg(table + (key >> a.cache.block_shift));
        v = load4(static_cast<const T*>(from) +
                  ((block * a.cache.num_kv_heads + kv_head) * block_size + (key & (block_size - 1))) * a.head_size + 4 * d);
      }
      tile[k * kStride + d] = v;
    }
  };

  for (int first_key = key_begin; first_key < key_end; first_key += kKeys) {
    __syncthreads();  // the last tile's values are read
    bring(a.cache.key, first_key);
    __syncthreads();

    float score[kRowsPerThread][kKeysPerThread];
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r)
#pragma unroll
      for (int k = 0; k < kKeysPerThread; ++k) score[r][k] = 0.f;
#pragma unroll 2
    for (int d = 0; d < kDepth / 4; ++d) {
      float4 key[kKeysPerThread];
#pragma unroll
      for (int k = 0; k < kKeysPerThread; ++k) key[k] = tile[(lane_column + 8 * k) * kStride + d];
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) {
        const float4 query = queries[(own_row + 4 * r) * kStride + d];
#pragma unroll
        for (int k = 0; k < kKeysPerThread; ++k) score[r][k] = dot(query, key[k], score[r][k]);
      }
    }
    const bool all_seen = first_key + kKeys <= (a.causal ? min(key_end, first_position + 1) : key_end) &&
                          (window == 0 || first_key > last_position - window);
    if (!plain || !all_seen) {
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r)
#pragma unroll
        for (int k = 0; k < kKeysPerThread; ++k) {
          const int distance = first_key + lane_column + 8 * k - position[r];
          const bool seen = position[r] + distance < key_end && (!a.causal || distance <= 0) &&
                            (window == 0 || distance > -window);
          score[r][k] = seen ? vary(score[r][k], a.variants.soft_cap, slope[r], distance) : -INFINITY;
        }
    }
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      float m = running_max[r];
#pragma unroll
      for (int k = 0; k < kKeysPerThread; ++k) m = fmaxf(m, score[r][k]);
#pragma unroll
      for (int o = 1; o < 8; o *= 2) m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, o));
      const float shrink = __expf(running_max[r] - finite_max(m));
      running_max[r] = m;
      running_sum[r] *= shrink;
#pragma unroll
      for (int k = 0; k < kKeysPerThread; ++k) {
        const float weight = __expf(score[r][k] - finite_max(m));
        running_sum[r] += weight;
        reinterpret_cast<float*>(weights + (own_row + 4 * r) * kWeightStride)[lane_column + 8 * k] = weight;
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) acc[r][c] = scaled(acc[r][c], shrink);
    }
    __syncthreads();  // the keys are read, the weights written
    bring(a.cache.value, first_key);
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < kKeys / 4; ++k) {
      float4 weight[kRowsPerThread];
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) weight[r] = weights[(own_row + 4 * r) * kWeightStride + k];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float4 value = tile[(4 * k + j) * kStride + lane_column + 8 * c];
#pragma unroll
          for (int r = 0; r < kRowsPerThread; ++r)
            add_scaled(acc[r][c], j == 0 ? weight[r].x : j == 1 ? weight[r].y : j == 2 ? weight[r].z : weight[r].w, value);
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    float sum = running_sum[r];
#pragma unroll
    for (int o = 1; o < 8; o *= 2) sum += __shfl_xor_sync(kAllLanes, sum, o);
    const float inverse = sum > 0.f ? 1.f / sum : 0.f;
    const int row = row_begin + own_row + 4 * r;
    if (row >= rows) continue;
    const size_t offset = (query_begin + row / group) * a.out_stride +
                          static_cast<size_t>(kv_head * group + row % group) * a.head_size;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int d = 4 * (lane_column + 8 * c);
      if (d < a.head_size) store4(a.out, offset + d, a.io_dtype, scaled(acc[r][c], inverse));
    }
  }
}

template <typename T, int kDepth>
cudaError_t launch(PrefillArgs a, int max_query_len, cudaStream_t stream) {
  using S = Shape<kDepth>;
  const long long rows = static_cast<long long>(max_query_len) * (a.num_heads / a.cache.num_kv_heads);
  const long long tiles = (rows + S::kRows - 1) / S::kRows;
  const long long blocks = tiles * a.cache.num_kv_heads * a.num_seqs;
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  a.num_tiles = static_cast<int>(tiles);
  prefill_kernel<T, kDepth><<<static_cast<unsigned>(blocks), S::kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch(const PrefillArgs& a, int max_query_len, cudaStream_t stream) {
  if (a.head_size <= 32) return launch<T, 32>(a, max_query_len, stream);
  if (a.head_size <= 64) return launch<T, 64>(a, max_query_len, stream);
  if (a.head_size <= 96) return launch<T, 96>(a, max_query_len, stream);
  if (a.head_size <= 128) return launch<T, 128>(a, max_query_len, stream);
  if (a.head_size <= 160) return launch<T, 160>(a, max_query_len, stream);
  if (a.head_size <= 192) return launch<T, 192>(a, max_query_len, stream);
  if (a.head_size <= 256) return launch<T, 256>(a, max_query_len, stream);
  return launch<T, 512>(a, max_query_len, stream);
}

}  // namespace
}  // namespace kepler

// Attention of the new tokens of a batch of sequences, which are stored in the cache already. Needs no workspace.
// Returns a cudaError_t (0: launched); cudaErrorInvalidValue for sizes or types that it does not take. Never
// synchronizes: fit for stream capture.
//   out, query: [num_tokens, num_heads, head_size] of io_dtype (0 float32, 1 float16), strides in elements.
//   query_start_loc: int32 [num_seqs + 1]; query i of sequence s is token query_start_loc[s] + i and stands at position
//   seq_lens[s] - query_len[s] + i. max_query_len: no query_len may be larger.
//   The rest as in kepler_attention_decode; causal 0: every query sees every key of its sequence.
extern "C" int kepler_attention_prefill(void* out, const void* query, long long out_stride, long long query_stride,
                                        int io_dtype, const void* key_cache, const void* value_cache, int cache_dtype,
                                        const int* block_tables, int max_blocks, const int* query_start_loc,
                                        const int* seq_lens, int num_seqs, int max_query_len, int num_heads,
                                        int num_kv_heads, int head_size, int block_size, int causal, float scale,
                                        float soft_cap, int window, const float* alibi_slopes, void* stream) {
  using namespace kepler;
  const Variants variants = {scale, soft_cap, window, alibi_slopes};
  if (!well_formed(num_heads, num_kv_heads, head_size, block_size, cache_dtype, io_dtype, variants) || num_seqs < 0 ||
      num_seqs > kMaxGridYZ || max_query_len < 0 || out_stride % 4 || query_stride % 4)
    return cudaErrorInvalidValue;
  if (num_seqs == 0 || max_query_len == 0) return cudaSuccess;
  const PrefillArgs a = {out, query, out_stride, query_stride, static_cast<DType>(io_dtype),
                         {key_cache, value_cache, block_tables, max_blocks, block_shift_of(block_size), num_kv_heads},
                         query_start_loc, seq_lens, num_seqs, 0, num_heads, head_size, causal != 0, variants};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return cache_dtype == kFloat16 ? launch<__half>(a, max_query_len, on) : launch<float>(a, max_query_len, on);
}
