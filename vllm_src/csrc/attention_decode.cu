// Paged attention of one new token a sequence (flash-decoding).
//
// A block takes one sequence, one kv head, up to 8 of the query heads that share it, and one split of the context; each
// of its warps walks its own tokens with a running maximum and sum, free of barriers, and the warps merge at the end.
// Where the context is split, each block leaves (maximum, sum, accumulator) in the workspace and a second kernel merges.
//
// Within a warp a token's row lies over kWidth lanes, 16 bytes a lane where it is long enough. kTokens × kHeads
// partial dot products are reduced together by exchanging halves, so that a score costs about one shuffle in place of
// log2(kWidth), and each exponential is taken by one lane alone.
#include "attention.cuh"

namespace kepler {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
// A split shorter than this costs more in merging than it gains.
constexpr int kMinSplitTokens = 256;
constexpr int kMaxSplits = 128;
// Blocks wanted for each multiprocessor: several waves, so that the last one is short beside the rest.
constexpr int kBlocksPerProcessor = 20;

// Scores and maxima are kept times this: a weight is then one instruction, a power of two.
constexpr float kLog2E = 1.44269504f;

// 2^x; 0 where that is too small for a normal number.
__device__ __forceinline__ float power(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// What a lane reads at once of a cached row, as it lies there: kFours times four elements.
template <typename T, int kVectors>
struct Piece {
  static constexpr int kFours = 1;
  float4 bits;
  __device__ __forceinline__ void load(const char* p) { bits = __ldg(reinterpret_cast<const float4*>(p)); }
  __device__ __forceinline__ float4 four(int) const { return bits; }
};
template <int kVectors>
struct Piece<__half, kVectors> {
  static constexpr int kFours = 2;
  uint4 bits;
  __device__ __forceinline__ void load(const char* p) { bits = __ldg(reinterpret_cast<const uint4*>(p)); }
  __device__ __forceinline__ float4 four(int i) const {
    return widened(i == 0 ? make_uint2(bits.x, bits.y) : make_uint2(bits.z, bits.w));
  }
};
template <>
struct Piece<__half, 1> {
  static constexpr int kFours = 1;
  uint2 bits;
  __device__ __forceinline__ void load(const char* p) { bits = __ldg(reinterpret_cast<const uint2*>(p)); }
  __device__ __forceinline__ float4 four(int) const { return widened(bits); }
};

struct DecodeArgs {
  void* out;
  const void* query;
  long long out_stride, query_stride;  // elements from token to token; heads are dense
  DType io_dtype;
  PagedCache cache;
  const int* seq_lens;
  int num_heads, head_size, head_tiles, num_splits;
  Variants variants;
  float* partial;  // [num_seqs, num_heads, num_splits, head_size + 4]: accumulator, maximum, sum, two unused
};

// Sums values[0..kCount) over the kWidth lanes of a row. Afterwards lane l holds the sums of indices
// l · kCount / kWidth onwards (one index, shared by kWidth / kCount lanes, where there are fewer values than lanes).
template <int kCount, int kWidth>
__device__ __forceinline__ void reduce_scatter(float (&values)[kCount], int lane) {
  int step = kWidth / 2;
#pragma unroll
  for (int count = kCount / 2; count > 0; count /= 2) {
    if (step == 0) break;
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      if (i < count) {
        const float sent = upper ? values[i] : values[i + count];
        const float kept = upper ? values[i + count] : values[i];
        values[i] = kept + __shfl_xor_sync(kAllLanes, sent, step);
      }
    }
    step /= 2;
  }
#pragma unroll
  for (int rest = kWidth / (2 * kCount); rest > 0; rest /= 2)
    values[0] += __shfl_xor_sync(kAllLanes, values[0], rest);
}

template <typename T, int kWidth, int kVectors, int kHeads>
__global__ void __launch_bounds__(kThreads, on(4, kVectors * kHeads < 8 ? 4 : 3))
    decode_kernel(DecodeArgs a) {
  using P = Piece<T, kVectors>;
  constexpr int kRows = 32 / kWidth;                                    // rows that a warp reads side by side
  constexpr int kTokens = kHeads == 8 ? 4 : 8 / kVectors;               // consecutive tokens a row of lanes
  constexpr int kStep = kRows * kTokens;                                // tokens a warp handles at a time
  constexpr int kCount = kTokens * kHeads;
  constexpr int kHeld = kCount > kWidth ? kCount / kWidth : 1;          // scores that a lane ends up with
  constexpr int kTwins = kCount < kWidth ? kWidth / kCount : 1;         // lanes that hold the same score
  constexpr int kHeadLanes = kWidth / kHeads;                           // lanes that hold scores of one head
  // Keys in float16 are read a step ahead. In float32 that takes twice as many registers: spills, or fewer blocks.
  constexpr bool kAhead = sizeof(T) == 2;
  constexpr int kLoads = kVectors / P::kFours, kStride = kWarps * kStep;

  const int tile = blockIdx.x % a.head_tiles, kv_head = blockIdx.x / a.head_tiles;
  const int split = blockIdx.y, seq = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = lane / kWidth, column = lane % kWidth;
  const int group = a.num_heads / a.cache.num_kv_heads;
  const int first_head = kv_head * group + tile * kHeads;
  const int heads_here = min(kHeads, group - tile * kHeads);
  const int seq_len = a.seq_lens[seq];

  // This block's tokens: whole steps of every warp, so that a warp's tokens never leave their cache block.
  const int begin = a.variants.window > 0 ? max(0, seq_len - a.variants.window) : 0;
  const int aligned = begin / kStep * kStep;
  const int steps = (seq_len - aligned + kStep - 1) / kStep;
  const int steps_each = (steps + a.num_splits - 1) / a.num_splits;
  const int split_begin = aligned + split * steps_each * kStep;
  const int split_end = min(seq_len, split_begin + steps_each * kStep);

  // This lane's fours of a row, v from 0 to kVectors - 1. Past the head's end it reads the last ones again, times a
  // query of zeros.
  const auto at = [&](int v) { return P::kFours * (column + kWidth * (v / P::kFours)) + v % P::kFours; };
  const int row_bytes = a.head_size * sizeof(T), block_size = 1 << a.cache.block_shift;
  int bytes[kLoads];
#pragma unroll
  for (int l = 0; l < kLoads; ++l) bytes[l] = min(4 * at(l * P::kFours), a.head_size - 4 * P::kFours) * sizeof(T);
  const bool plain = a.variants.soft_cap == 0.f && a.variants.alibi_slopes == nullptr;
  float4 q[kHeads][kVectors], acc[kHeads][kVectors];
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int d = 4 * at(v);
      acc[h][v] = make_float4(0.f, 0.f, 0.f, 0.f);
      q[h][v] = acc[h][v];
      if (h < heads_here && d < a.head_size)
        q[h][v] = scaled(load4(a.query, seq * a.query_stride + static_cast<size_t>(first_head + h) * a.head_size + d,
                               a.io_dtype), a.variants.scale * (plain ? kLog2E : 1.f));
    }
  const int own_head = column / kHeadLanes;
  const float slope =
      a.variants.alibi_slopes != nullptr && own_head < heads_here ? a.variants.alibi_slopes[first_head + own_head] : 0.f;
  float running_max = -INFINITY, running_sum = 0.f;

  const char* keys = static_cast<const char*>(a.cache.key) + static_cast<size_t>(kv_head) * block_size * row_bytes;
  const char* values = static_cast<const char*>(a.cache.value) + static_cast<size_t>(kv_head) * block_size * row_bytes;
  const unsigned block_bytes = static_cast<unsigned>(a.cache.num_kv_heads) * block_size * row_bytes;
  const int* table = a.cache.block_tables + static_cast<size_t>(seq) * a.cache.max_blocks;
  // Tokens past the end lie in the same block, or in block 0: their scores are put out below.
  const auto block_of = [&](int token) {
    return token < split_end ? __ldg(table + (token >> a.cache.block_shift)) : 0;
  };
  const auto offset_of = [&](int block, int token) {
    return static_cast<size_t>(block) * block_bytes + (token & (block_size - 1)) * row_bytes;
  };
  const auto load = [&](P(&to)[kTokens][kLoads], const char* from) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t, from += row_bytes)
#pragma unroll
      for (int l = 0; l < kLoads; ++l) to[t][l].load(from + bytes[l]);
  };
  int token = split_begin + warp * kStep + row * kTokens;
  size_t offset = offset_of(block_of(token), token);
  int next_block = block_of(token + kStride);
  P key[kTokens][kLoads];
  if (kAhead) load(key, keys + offset);
  for (int base = split_begin + warp * kStep; base < split_end; base += kStride) {
    if (!kAhead) load(key, keys + offset);
    float score[kCount];
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float sum = 0.f;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) sum = dot(q[h][v], key[t][v / P::kFours].four(v % P::kFours), sum);
        score[h * kTokens + t] = sum;
      }
    // The values' loads, and those of the next keys, go out before the scores are waited for.
    P value[kTokens][kLoads];
    load(value, values + offset);
    token += kStride;
    offset = offset_of(next_block, token);
    if (kAhead && base + kStride < split_end) load(key, keys + offset);
    next_block = block_of(token + kStride);
    reduce_scatter<kCount, kWidth>(score, column);
    float step_max = -INFINITY;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int position = token - kStride + (column * kCount / kWidth + i) % kTokens;
      const bool seen = position >= begin && position < split_end;
      if (!plain) score[i] = vary(score[i], a.variants.soft_cap, slope, position - (seq_len - 1)) * kLog2E;
      if (!seen) score[i] = -INFINITY;
      step_max = fmaxf(step_max, score[i]);
    }
#pragma unroll
    for (int o = 1; o < kHeadLanes; o *= 2) step_max = fmaxf(step_max, __shfl_xor_sync(kAllLanes, step_max, o));
#pragma unroll
    for (int o = kWidth; o < 32; o *= 2) step_max = fmaxf(step_max, __shfl_xor_sync(kAllLanes, step_max, o));
    const float new_max = fmaxf(running_max, step_max);
    const float shrink = power(running_max - finite_max(new_max));
    const bool grown = __any_sync(kAllLanes, new_max > running_max);
    running_max = new_max;
    running_sum *= shrink;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      score[i] = power(score[i] - finite_max(new_max));
      if (column % kTwins == 0) running_sum += score[i];
    }
    // Seldom after a sequence's first steps.
    if (grown) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float head_shrink = __shfl_sync(kAllLanes, shrink, h * kHeadLanes, kWidth);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) acc[h][v] = scaled(acc[h][v], head_shrink);
      }
    }
    float4 loaded[kTokens][kVectors];
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
#pragma unroll
      for (int v = 0; v < kVectors; ++v) loaded[t][v] = value[t][v / P::kFours].four(v % P::kFours);
    // An empty slot may hold anything, and nothing times not a number is not a number.
    if (base + kStep > split_end) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
#pragma unroll
        for (int v = 0; v < kVectors; ++v)
          if (token - kStride + t >= split_end) loaded[t][v] = make_float4(0.f, 0.f, 0.f, 0.f);
    }

#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const int index = h * kTokens + t;
        const float weight = __shfl_sync(kAllLanes, score[index % kHeld], index / kHeld * kTwins, kWidth);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) add_scaled(acc[h][v], weight, loaded[t][v]);
      }
    }
  }

  // Merge the rows of the warp, then the warps of the block.
#pragma unroll
  for (int o = 1; o < kHeadLanes; o *= 2) running_sum += __shfl_xor_sync(kAllLanes, running_sum, o);
#pragma unroll
  for (int o = kWidth; o < 32; o *= 2) {
    running_sum += __shfl_xor_sync(kAllLanes, running_sum, o);
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        acc[h][v].x += __shfl_xor_sync(kAllLanes, acc[h][v].x, o);
        acc[h][v].y += __shfl_xor_sync(kAllLanes, acc[h][v].y, o);
        acc[h][v].z += __shfl_xor_sync(kAllLanes, acc[h][v].z, o);
        acc[h][v].w += __shfl_xor_sync(kAllLanes, acc[h][v].w, o);
      }
  }
  __shared__ float4 merged[kWarps][kHeads][kVectors * kWidth];
  __shared__ float warp_max[kWarps][kHeads], warp_sum[kWarps][kHeads];
  if (row == 0) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
      for (int v = 0; v < kVectors; ++v) merged[warp][h][at(v)] = acc[h][v];
    if (column % kHeadLanes == 0) {
      warp_max[warp][own_head] = running_max;
      warp_sum[warp][own_head] = running_sum;
    }
  }
  __syncthreads();
  const int vectors = a.head_size / 4;
  for (int i = threadIdx.x; i < heads_here * vectors; i += kThreads) {
    const int h = i / vectors, d = i % vectors;
    float m = -INFINITY, sum = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, warp_max[w][h]);
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = power(warp_max[w][h] - finite_max(m));
      sum = fmaf(weight, warp_sum[w][h], sum);
      add_scaled(total, weight, merged[w][h][d]);
    }
    const int head = first_head + h;
    if (a.num_splits == 1) {
      store4(a.out, seq * a.out_stride + static_cast<size_t>(head) * a.head_size + 4 * d, a.io_dtype,
             scaled(total, sum > 0.f ? 1.f / sum : 0.f));
    } else {
      float* partial =
          a.partial + ((static_cast<size_t>(seq) * a.num_heads + head) * a.num_splits + split) * (a.head_size + 4);
      reinterpret_cast<float4*>(partial)[d] = total;
      if (d == 0) reinterpret_cast<float4*>(partial)[vectors] = make_float4(m, sum, 0.f, 0.f);
    }
  }
}

// One block for each (head, sequence): every thread merges the splits for its own elements.
__global__ void __launch_bounds__(kThreads) merge_kernel(DecodeArgs a) {
  const int head = blockIdx.x, seq = blockIdx.y, stride = a.head_size + 4;
  const float* partial = a.partial + (static_cast<size_t>(seq) * a.num_heads + head) * a.num_splits * stride;
  __shared__ float weight[kMaxSplits];
  float m = -INFINITY, sum = 0.f;
  for (int s = 0; s < a.num_splits; ++s) m = fmaxf(m, partial[s * stride + a.head_size]);
  for (int s = threadIdx.x; s < a.num_splits; s += kThreads)
    weight[s] = power(partial[s * stride + a.head_size] - finite_max(m));
  __syncthreads();
  for (int s = 0; s < a.num_splits; ++s) sum = fmaf(weight[s], partial[s * stride + a.head_size + 1], sum);
  const float inverse = sum > 0.f ? 1.f / sum : 0.f;
  for (int d = 4 * threadIdx.x; d < a.head_size; d += 4 * kThreads) {
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int s = 0; s < a.num_splits; ++s)
      add_scaled(total, weight[s], *reinterpret_cast<const float4*>(partial + s * stride + d));
    store4(a.out, seq * a.out_stride + static_cast<size_t>(head) * a.head_size + d, a.io_dtype, scaled(total, inverse));
  }
}

// Query heads of one block: as many as share a kv head, while queries and accumulators fit in registers.
int heads_of_block(int group, int head_size) {
  const int most = head_size <= 128 ? 8 : head_size <= 256 ? 4 : 2;
  int heads = 1;
  while (heads < group && heads < most) heads *= 2;
  return heads;
}

cudaError_t splits_of(int num_seqs, int num_heads, int num_kv_heads, int head_size, int max_seq_len, int* splits) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int group = num_heads / num_kv_heads, heads = heads_of_block(group, head_size);
  const long long blocks = static_cast<long long>(num_seqs) * num_kv_heads * ((group + heads - 1) / heads);
  const long long wanted = (static_cast<long long>(processors) * kBlocksPerProcessor + blocks - 1) / blocks;
  const int most = max_seq_len / kMinSplitTokens;
  *splits = static_cast<int>(wanted < most ? wanted : most);
  if (*splits > kMaxSplits) *splits = kMaxSplits;
  if (*splits < 1) *splits = 1;
  return cudaSuccess;
}

template <typename T, int kWidth, int kVectors>
void launch(const DecodeArgs& a, int heads, dim3 grid, cudaStream_t stream) {
  if (heads == 1) decode_kernel<T, kWidth, kVectors, 1><<<grid, kThreads, 0, stream>>>(a);
  if (heads == 2) decode_kernel<T, kWidth, kVectors, 2><<<grid, kThreads, 0, stream>>>(a);
  if constexpr (kVectors <= 2)
    if (heads == 4) decode_kernel<T, kWidth, kVectors, 4><<<grid, kThreads, 0, stream>>>(a);
  if constexpr (kVectors == 1)
    if (heads == 8) decode_kernel<T, kWidth, kVectors, 8><<<grid, kThreads, 0, stream>>>(a);
}

template <typename T>
void launch(const DecodeArgs& a, int heads, dim3 grid, cudaStream_t stream) {
  // Rows of half as many bytes lie over half as many lanes: one reduction is for two of them.
  if constexpr (sizeof(T) == 2) {
    if (heads <= 4 && a.head_size > 32 && a.head_size <= 64) return launch<T, 8, 2>(a, heads, grid, stream);
    if (heads <= 4 && a.head_size > 64 && a.head_size <= 128) return launch<T, 16, 2>(a, heads, grid, stream);
  }
  if (a.head_size <= 32) launch<T, 8, 1>(a, heads, grid, stream);
  else if (a.head_size <= 64) launch<T, 16, 1>(a, heads, grid, stream);
  else if (a.head_size <= 128) launch<T, 32, 1>(a, heads, grid, stream);
  else if (a.head_size <= 256) launch<T, 32, 2>(a, heads, grid, stream);
  else launch<T, 32, 4>(a, heads, grid, stream);
}

}  // namespace
}  // namespace kepler

// Bytes of workspace that kepler_attention_decode needs for these sizes on the current device, in *bytes (0: none).
extern "C" int kepler_attention_decode_workspace(int num_seqs, int num_heads, int num_kv_heads, int head_size,
                                                 int max_seq_len, size_t* bytes) {
  if (num_seqs < 0 || num_heads <= 0 || num_kv_heads <= 0 || num_heads % num_kv_heads || max_seq_len < 0 ||
      head_size <= 0 || head_size > kepler::kMaxHeadSize)
    return cudaErrorInvalidValue;
  *bytes = 0;
  if (num_seqs == 0) return cudaSuccess;
  int splits = 1;
  const cudaError_t error = kepler::splits_of(num_seqs, num_heads, num_kv_heads, head_size, max_seq_len, &splits);
  if (splits > 1) *bytes = sizeof(float) * num_seqs * num_heads * splits * (head_size + 4);
  return error;
}

// Attention of one token a sequence. Returns a cudaError_t (0: launched); cudaErrorInvalidValue for sizes or types that
// it does not take. Never synchronizes, allocates nothing: fit for stream capture.
//   out, query: [num_seqs, num_heads, head_size] of io_dtype (0 float32, 1 float16), strides in elements.
//   key_cache, value_cache: [num_blocks, num_kv_heads, block_size, head_size] of cache_dtype, the new token stored.
//   block_tables: int32 [num_seqs, max_blocks]; seq_lens: int32 [num_seqs], the new token counted; 0 writes zeros.
//   max_seq_len: no seq_len may be larger. alibi_slopes: float32 [num_heads] or null. window, soft_cap: 0 for none.
//   workspace: as many bytes as kepler_attention_decode_workspace says for the same sizes, 16-byte aligned.
extern "C" int kepler_attention_decode(void* out, const void* query, long long out_stride, long long query_stride,
                                       int io_dtype, const void* key_cache, const void* value_cache, int cache_dtype,
                                       const int* block_tables, int max_blocks, const int* seq_lens, int num_seqs,
                                       int num_heads, int num_kv_heads, int head_size, int block_size, int max_seq_len,
                                       float scale, float soft_cap, int window, const float* alibi_slopes,
                                       void* workspace, size_t workspace_bytes, void* stream) {
  using namespace kepler;
  const Variants variants = {scale, soft_cap, window, alibi_slopes};
  if (!well_formed(num_heads, num_kv_heads, head_size, block_size, cache_dtype, io_dtype, variants) || num_seqs < 0 ||
      num_seqs > kMaxGridYZ || out_stride % 4 || query_stride % 4)
    return cudaErrorInvalidValue;
  if (num_seqs == 0) return cudaSuccess;
  DecodeArgs a = {out, query, out_stride, query_stride, static_cast<DType>(io_dtype),
                  {key_cache, value_cache, block_tables, max_blocks, block_shift_of(block_size), num_kv_heads},
                  seq_lens, num_heads, head_size, 0, 1, variants, static_cast<float*>(workspace)};
  size_t needed = 0;
  int error = kepler_attention_decode_workspace(num_seqs, num_heads, num_kv_heads, head_size, max_seq_len, &needed);
  if (error == cudaSuccess)
    error = splits_of(num_seqs, num_heads, num_kv_heads, head_size, max_seq_len, &a.num_splits);
  if (error != cudaSuccess) return error;
  if (needed > workspace_bytes) return cudaErrorInvalidValue;
  const int group = num_heads / num_kv_heads, heads = heads_of_block(group, head_size);
  a.head_tiles = (group + heads - 1) / heads;
  const dim3 grid(num_kv_heads * a.head_tiles, a.num_splits, num_seqs);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (cache_dtype == kFloat16) launch<__half>(a, heads, grid, on);
  else launch<float>(a, heads, grid, on);
  if (a.num_splits > 1) merge_kernel<<<dim3(num_heads, num_seqs), kThreads, 0, on>>>(a);
  return cudaGetLastError();
}
