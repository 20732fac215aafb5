// Products of many rows of x with a matrix stored in fewer bits than float32, without that matrix as float32 in memory.
//
// A block takes a tile of out and walks along the columns, 16 at a time: codes become floats on their way into shared
// memory, once for all of the tile's rows of x, and each thread keeps a square of sums in registers. The next columns
// are read while these are multiplied. Tiles of up to 36 rows of x are those of linear_direct.cuh, which also says how
// blocks share tiles. The rows of a mixture of experts, sorted by expert (moe.cu), are tiles too.
#include "linear_direct.cuh"

namespace kepler {
namespace {

constexpr int kColumns = 16;  // columns of a step
constexpr int kChunks = kColumns / kChunk;
constexpr int kTurn = 32 / kChunks;  // banks

// Codes under a mask become the upper bits of a float's fraction, 1 + code · 2^(bit - 23) for a code that begins at
// `bit`: one FMA makes them scale · (code - zero), exactly, since code, zero and scale have at most 9, 9 and 11 bits.
struct Affine {
  float by, plus;
  __device__ __forceinline__ Affine(float scale, float zero, int bit)
      : by(scale * static_cast<float>(1 << (23 - bit))), plus(-scale * (static_cast<float>(1 << (23 - bit)) + zero)) {}
  __device__ __forceinline__ float operator()(unsigned word, unsigned mask) const {
    return fmaf(__uint_as_float((word & mask) | 0x3f800000u), by, plus);
  }
};

struct TiledHalf {
  using Raw = uint4;
  static constexpr bool kCoded = false;
  static constexpr float kMiddle = 0.f;
  static __device__ __forceinline__ void unpack(float (&w)[kChunk], const Raw& raw, float, float) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      w[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i / 2] >> 16 * (i % 2))));
  }
};

struct TiledInt8 {
  using Raw = uint2;
  static constexpr bool kCoded = true;
  static constexpr float kMiddle = 128.f;
  static __device__ __forceinline__ void unpack(float (&w)[kChunk], const Raw& raw, float scale, float zero) {
    const Affine at12(scale, zero, 12);
    const unsigned words[2] = {raw.x, raw.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      w[4 * i] = at12(words[i] << 12, 0xff000);
      w[4 * i + 1] = at12(words[i] << 4, 0xff000);
      w[4 * i + 2] = at12(words[i] >> 4, 0xff000);
      w[4 * i + 3] = at12(words[i] >> 12, 0xff000);
    }
  }
};

struct TiledInt4 {
  using Raw = unsigned;
  static constexpr bool kCoded = true;
  static constexpr float kMiddle = 8.f;
  static __device__ __forceinline__ void unpack(float (&w)[kChunk], const Raw& raw, float scale, float zero) {
    const Affine at12(scale, zero, 12), at16(scale, zero, 16);
    w[0] = at16(raw << 16, 0xf0000);
    w[1] = at12(raw << 8, 0xf000);
    w[2] = at16(raw << 8, 0xf0000);
    w[3] = at12(raw, 0xf000);
    w[4] = at16(raw, 0xf0000);
    w[5] = at12(raw >> 8, 0xf000);
    w[6] = at16(raw >> 8, 0xf0000);
    w[7] = at12(raw >> 16, 0xf000);
  }
};

// How a tile is cut: rows of x and of the weight a block, those a thread has sums of, blocks that a multiprocessor
// shall hold.
template <int kX_, int kN_, int kThreadX_, int kThreadN_, int kBlocks_>
struct Tile {
  static constexpr int kX = kX_, kN = kN_, kThreadX = kThreadX_, kThreadN = kThreadN_, kBlocks = kBlocks_;
  static constexpr int kAcross = kN / kThreadN, kDown = kX / kThreadX, kThreads = kAcross * kDown;
  // A thread has every kDown-th row of x, in quads whose last may have room.
  static constexpr int kRowQuads = (kThreadX + 3) / 4, kLine = 4 * kDown * (kRowQuads > 2 ? 4 : kRowQuads);
  static __device__ __forceinline__ int place(int row) {
    const int i = row / kDown;
    return i / 4 * (4 * kDown) + row % kDown * 4 + i % 4;
  }
  static_assert((kLine & (kLine - 1)) == 0 && kRowQuads <= 4, "lines are turned");
};

// kCount floats of a column for a thread: quads that lie a stride apart, so that neighbors read neighboring banks.
// `turn` is by how many places the column's line is turned.
template <int kCount, int kStride, int kLine>
__device__ __forceinline__ void quads(float (&to)[kCount], const float* line, int index, int turn) {
#pragma unroll
  for (int q = 0; q < kCount / 4; ++q) {
    const float4 v =
        *reinterpret_cast<const float4*>(line + ((q * kStride + 4 * index + turn) & (kLine - 1)));
    to[4 * q] = v.x, to[4 * q + 1] = v.y, to[4 * q + 2] = v.z, to[4 * q + 3] = v.w;
  }
}

template <typename F, typename T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) tiled_kernel(TiledArgs a) {
  constexpr int kThreads = T::kThreads;
  constexpr int kWeightChunks = T::kN * kChunks / kThreads;
  constexpr int kXChunks = (T::kX * kChunks + kThreads - 1) / kThreads;
  static_assert(T::kN * kChunks % kThreads == 0, "each thread has as many chunks of the weight");
  __shared__ float4 staged_x[2][kColumns][T::kLine / 4], staged_w[2][kColumns][T::kN / 4];

  const int thread = threadIdx.x;
  const int own = thread % kChunks;  // the chunk of a step that this thread reads: neighbors read one row's
  // Four threads of a warp down and eight across, so that a quarter of a warp loads few different words.
  constexpr int kWarpsAcross = T::kAcross / 8;
  static_assert(T::kAcross % 8 == 0 && T::kDown % 4 == 0, "whole warps of 4 by 8");
  const int lane = thread % 32, warp = thread / 32;
  const int across = warp % kWarpsAcross * 8 + lane / 2 % 8;
  const int down = warp / kWarpsAcross * 4 + lane / 16 * 2 + lane % 2;

  __shared__ Part part;
  if (thread == 0) part.start(a, T::kX);
  __syncthreads();
  bool more_tiles = part.at < part.last;
  __syncthreads();
#pragma unroll 1
  while (more_tiles) {
    if (thread == 0) part.next(a, T::kX, T::kN, kChunks);
    __syncthreads();
    const int begin = part.begin, end = part.end;

    // Rows past the last are the last again, and their sums are not stored; past the last column all is zero.
    unsigned weight_at[kWeightChunks], x_at[kXChunks];
    int group_at[kWeightChunks];
#pragma unroll
    for (int i = 0; i < kWeightChunks; ++i) {
      const unsigned row = part.weight_row + min(part.first_n + (thread + i * kThreads) / kChunks, a.n - 1);
      weight_at[i] = row * a.chunks + begin + own;
      group_at[i] = row * a.groups;
    }
    // Of x in float4.
#pragma unroll
    for (int i = 0; i < kXChunks; ++i) {
      const unsigned row = x_row(a, part.first_x, min((thread + i * kThreads) / kChunks, T::kX - 1));
      x_at[i] = (row * a.chunks + begin + own) * (kChunk / 4);
    }
    typename F::Raw raw[kWeightChunks];
    __half scale[kWeightChunks], zero[kWeightChunks];
    float4 coming[kXChunks][2];
    int group = -1;
    const float4* const all_x = reinterpret_cast<const float4*>(a.x);
    const auto fetch = [&](int chunk) {
      const bool inside = chunk + own < end;
      const int now = (chunk + own) >> a.group_shift;
#pragma unroll
      for (int i = 0; i < kWeightChunks; ++i) {
        raw[i] = typename F::Raw{};
        if (inside) raw[i] = __ldg(static_cast<const typename F::Raw*>(a.weight) + weight_at[i]);
        weight_at[i] += kChunks;
        if (F::kCoded && inside && now != group) {
          scale[i] = __ldg(a.scales + (group_at[i] + now));
          if (a.zeros) zero[i] = __ldg(a.zeros + (group_at[i] + now));
        }
      }
      group = now;
#pragma unroll
      for (int i = 0; i < kXChunks; ++i) {
        coming[i][0] = coming[i][1] = make_float4(0.f, 0.f, 0.f, 0.f);
        if (inside && thread + i * kThreads < T::kX * kChunks)
          coming[i][0] = __ldg(all_x + x_at[i]), coming[i][1] = __ldg(all_x + x_at[i] + 1);
        x_at[i] += kColumns / 4;
      }
    };
    // A chunk's lines are turned by half the banks from the chunk's before: neighbors write to banks of their own.
    const auto stage = [&](int buffer) {
#pragma unroll
      for (int i = 0; i < kWeightChunks; ++i) {
        float w[kChunk];
        F::unpack(w, raw[i], F::kCoded ? __half2float(scale[i]) : 1.f,
                  F::kCoded && a.zeros ? __half2float(zero[i]) : F::kMiddle);
        float* to = reinterpret_cast<float*>(staged_w[buffer][own * kChunk]) +
                    (((thread + i * kThreads) / kChunks + kTurn * own) & (T::kN - 1));
#pragma unroll
        for (int j = 0; j < kChunk; ++j) to[j * T::kN] = w[j];
      }
#pragma unroll
      for (int i = 0; i < kXChunks; ++i) {
        if (thread + i * kThreads >= T::kX * kChunks) break;
        const float x[kChunk] = {coming[i][0].x, coming[i][0].y, coming[i][0].z, coming[i][0].w,
                                 coming[i][1].x, coming[i][1].y, coming[i][1].z, coming[i][1].w};
        float* to = reinterpret_cast<float*>(staged_x[buffer][own * kChunk]) +
                    ((T::place((thread + i * kThreads) / kChunks) + kTurn * own) & (T::kLine - 1));
#pragma unroll
        for (int j = 0; j < kChunk; ++j) to[j * T::kLine] = x[j];
      }
    };

    float sums[T::kThreadX][T::kThreadN] = {};
    fetch(begin);
    stage(0);
    __syncthreads();
    int buffer = 0;
#pragma unroll 1
    for (int chunk = begin; chunk < end; chunk += kChunks, buffer ^= 1) {
      const bool more = chunk + kChunks < end;
      if (more) fetch(chunk + kChunks);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        float x[4 * T::kRowQuads], w[T::kThreadN];
        const int turn = c / kChunk * kTurn;
        quads<4 * T::kRowQuads, 4 * T::kDown, T::kLine>(x, reinterpret_cast<const float*>(staged_x[buffer][c]), down,
                                                        turn);
        quads<T::kThreadN, 4 * T::kAcross, T::kN>(w, reinterpret_cast<const float*>(staged_w[buffer][c]), across, turn);
#pragma unroll
        for (int i = 0; i < T::kThreadX; ++i)
#pragma unroll
          for (int j = 0; j < T::kThreadN; ++j) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
      }
      if (more) stage(buffer ^ 1);
      __syncthreads();
    }

    const int first_x = part.first_x, first_n = part.first_n, slot = part.slot;
    const bool whole = slot < 0;
    float* const sums_at = a.sums + slot * static_cast<size_t>(T::kX * T::kN);
#pragma unroll
    for (int i = 0; i < T::kThreadX; ++i) {
      const int row = i * T::kDown + down;
      const int to_row = whole ? out_row(a, first_x, row) : 0;
      if (whole && to_row >= a.rows) continue;
      const float by = whole && a.experts.row_scales ? a.factor * a.experts.row_scales[to_row] : a.factor;
      float* const line = whole ? a.out + (static_cast<size_t>(to_row) * a.n + first_n) : sums_at + row * T::kN;
#pragma unroll
      for (int j = 0; j < T::kThreadN; j += 4) {
        const int column = j * T::kAcross + 4 * across;
        float* const to = line + column;
        const float four[4] = {sums[i][j] * by, sums[i][j + 1] * by, sums[i][j + 2] * by, sums[i][j + 3] * by};
        if (!whole || (a.n % 4 == 0 && first_n + column < a.n)) {
          store4(to, make_float4(four[0], four[1], four[2], four[3]));
        } else {
#pragma unroll
          for (int q = 0; q < 4; ++q)
            if (first_n + column + q < a.n) to[q] = four[q];
        }
      }
    }
    more_tiles = part.at < part.last;
    __syncthreads();
  }
}

template <typename F, typename T>
struct Tiled {
  static constexpr int kX = T::kX, kOutputs = T::kN, kThreads = T::kThreads, kStep = kChunks;
  static constexpr auto kernel() { return tiled_kernel<F, T>; }
};

// Calls `use` with a kernel by the rows of x in its tiles. F unpacks into shared memory, D into registers.
template <typename F, typename D, typename Use>
int with_tile(int tile, const Use& use) {
  switch (tile) {
    case 8: return use(Direct<D, DirectCut<8, on(4, 3)>>{});
    case 12: return use(Direct<D, DirectCut<12, on(3, 2)>>{});
    case 16: return use(Direct<D, DirectCut<16, 2>>{});
    case 20: return use(Direct<D, DirectCut<20, 2>>{});
    case 24: return use(Direct<D, DirectCut<24, 2>>{});
    case 28: return use(Direct<D, DirectCut<28, 2>>{});
    case 32: return use(Direct<D, DirectCut<32, 2>>{});
    case 36: return use(Direct<D, DirectCut<36, 2>>{});
    case 40: return use(Tiled<F, Tile<40, 128, 10, 8, on(5, 4)>>{});
    case 44: return use(Tiled<F, Tile<44, 128, 11, 8, 4>>{});
    case 48: return use(Tiled<F, Tile<48, 128, 12, 8, 4>>{});
    case 52: return use(Tiled<F, Tile<52, 128, 13, 8, 4>>{});
    case 56: return use(Tiled<F, Tile<56, 128, 7, 8, 3>>{});
    case 64: return use(Tiled<F, Tile<64, 128, 8, 8, 3>>{});
    case 96: return use(Tiled<F, Tile<96, 128, 12, 8, 2>>{});
    case 128: return use(Tiled<F, Tile<128, 128, 8, 8, 2>>{});
    default: return cudaErrorInvalidValue;
  }
}

template <typename Use>
int with_kernel(int bits, int tile, const Use& use) {
  return bits == 16  ? with_tile<TiledHalf, DirectHalf>(tile, use)
         : bits == 8 ? with_tile<TiledInt8, DirectInt8>(tile, use)
         : bits == 4 ? with_tile<TiledInt4, DirectInt4>(tile, use)
                     : cudaErrorInvalidValue;
}

int launch(int bits, int tile, TiledArgs a, int blocks, cudaStream_t stream) {
  return with_kernel(bits, tile, [&](auto kernel) -> int {
    using K = decltype(kernel);
    a.across = (a.rows + K::kX - 1) / K::kX;
    a.down = (a.n + K::kOutputs - 1) / K::kOutputs, a.steps = (a.chunks + K::kStep - 1) / K::kStep;
    const ExpertArgs& e = a.experts;
    if (e.sorted_rows) a.across = kepler_moe_capacity(a.rows, e.num_experts, K::kX) / K::kX;
    if (static_cast<long long>(a.across) * a.down * a.steps > 0x7fffffffLL) return cudaErrorInvalidValue;
    K::kernel()<<<blocks, K::kThreads, 0, stream>>>(a);
    // Nothing is left to add up where each block has whole tiles.
    if (blocks > 1 && (e.sorted_rows || a.across * a.down % blocks))
      meet_kernel<<<dim3(blocks - 1, (K::kX * K::kOutputs / 4 + kMeetThreads - 1) / kMeetThreads), kMeetThreads, 0,
                    stream>>>(a, K::kX, K::kOutputs, blocks);
    return cudaGetLastError();
  });
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_linear_blocks(int* blocks, int bits, int tile) {
  using namespace kepler;
  return with_kernel(bits, tile, [&](auto kernel) -> int {
    using K = decltype(kernel);
    int device = 0, multiprocessors = 0, each = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (!error) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (!error) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, K::kernel(), K::kThreads, 0);
    *blocks = multiprocessors * each;
    return error;
  });
}

extern "C" int kepler_linear_tiled(float* out, float* sums, const float* x, const void* weight, const void* scales,
                                   const void* zeros, float unit, int bits, int rows, int n, int k, int group,
                                   int tile, int blocks, void* stream) {
  using namespace kepler;
  const bool coded = bits == 4 || bits == 8;
  if (rows <= 0 || n <= 0 || k <= 0 || blocks <= 0 || k % (coded ? 32 : kChunk) || (coded && shift_of(group, k) < 0) ||
      static_cast<long long>(rows) * k > 0x7fffffffLL || static_cast<long long>(n) * (k / kChunk) > 0x7fffffffLL ||
      (n % 4 == 0 && !aligned16(out)) || !aligned16(sums) || !aligned16(x) || !aligned16(weight))
    return cudaErrorInvalidValue;
  const TiledArgs a = {out, sums, x, weight, static_cast<const __half*>(scales), static_cast<const __half*>(zeros),
                       coded ? unit : 1.f, rows, n, k / kChunk, coded ? k / group : 0,
                       coded ? shift_of(group, k) - 3 : 0, 0, 0, 0, {}};
  return launch(bits, tile, a, blocks, static_cast<cudaStream_t>(stream));
}

extern "C" int kepler_moe_tiled(float* out, float* sums, const float* x, const void* weight, const void* scales,
                                const void* zeros, float unit, int bits, int group, const float* row_scales,
                                const int* sorted_rows, const int* tile_experts, const int* num_sorted, int num_rows,
                                int num_experts, int n, int k, int rows_per_x, int tile, int blocks, void* stream) {
  using namespace kepler;
  const bool coded = bits == 4 || bits == 8;
  if (num_rows <= 0 || num_experts <= 0 || n <= 0 || k <= 0 || blocks <= 0 || rows_per_x <= 0 || !sorted_rows ||
      k % (coded ? 32 : kChunk) || (coded && shift_of(group, k) < 0) ||
      static_cast<long long>(num_rows) * k > 0x7fffffffLL ||
      static_cast<long long>(num_experts) * n * (k / kChunk) > 0x7fffffffLL || !aligned16(out) || !aligned16(sums) ||
      !aligned16(x) || !aligned16(weight))
    return cudaErrorInvalidValue;
  const TiledArgs a = {out, sums, x, weight, static_cast<const __half*>(scales), static_cast<const __half*>(zeros),
                       coded ? unit : 1.f, num_rows, n, k / kChunk, coded ? k / group : 0,
                       coded ? shift_of(group, k) - 3 : 0, 0, 0, 0,
                       {sorted_rows, tile_experts, num_sorted, row_scales, num_rows, rows_per_x, num_experts}};
  return launch(bits, tile, a, blocks, static_cast<cudaStream_t>(stream));
}
