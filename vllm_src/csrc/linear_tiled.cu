// Products of many rows of x with a matrix stored in fewer bits than float32, without that matrix as float32 in memory.
//
// A block takes a tile of out and walks along the columns, 16 at a time: codes become floats on their way into shared
// memory, once for all of the tile's rows of x, and each thread keeps a square of sums in registers. The next columns
// are read while these are multiplied. Where tiles are too few for the GPU, the columns are cut into parts with sums of
// their own, which the caller adds up in one order: equal inputs give equal bits. Tiles of up to 27 rows of x are those
// of linear_direct.cuh.
//
// A tile may have more rows of x than its squares, as many as are there: of those the threads that share columns of the
// weight have two columns each. So the time of a tile of 33 to 56 rows follows them one by one.
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

// How a tile is cut: rows of x and of the weight a block, those a thread has sums of, blocks that a multiprocessor shall
// hold, and rows of x beyond the squares at most.
template <int kX_, int kN_, int kThreadX_, int kThreadN_, int kBlocks_, int kExtra_ = 0>
struct Tile {
  static constexpr int kX = kX_, kN = kN_, kThreadX = kThreadX_, kThreadN = kThreadN_, kBlocks = kBlocks_;
  static constexpr int kAcross = kN / kThreadN, kThreads = kAcross * (kX / kThreadX);
  static constexpr int kExtra = kExtra_, kAllX = kX + kExtra;
  static_assert(kExtra == 0 || (kX / kThreadX == 4 && kThreadN == 8), "four threads share eight columns");
};

// kCount floats of a column for a thread: quads that lie a stride apart, so that neighbors read neighboring banks.
// `turn` is by how many places the column's line is turned.
template <int kCount, int kLine>
__device__ __forceinline__ void quads(float (&to)[kCount], const float* line, int index, int turn) {
#pragma unroll
  for (int q = 0; q < kCount / 4; ++q) {
    const float4 v =
        *reinterpret_cast<const float4*>(line + ((q * (kLine / (kCount / 4)) + 4 * index + turn) & (kLine - 1)));
    to[4 * q] = v.x, to[4 * q + 1] = v.y, to[4 * q + 2] = v.z, to[4 * q + 3] = v.w;
  }
}

template <typename F, typename T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) tiled_kernel(TiledArgs a) {
  constexpr int kThreads = T::kThreads;
  constexpr int kWeightChunks = T::kN * kChunks / kThreads;
  constexpr int kXChunks = (T::kX * kChunks + kThreads - 1) / kThreads;
  static_assert(T::kN * kChunks % kThreads == 0, "each thread has as many chunks of the weight");
  __shared__ float4 staged_x[2][kColumns][T::kX / 4], staged_w[2][kColumns][T::kN / 4];
  // Beyond the squares, row by row.
  constexpr int kExtra = T::kExtra, kQuads = kColumns / 4, kExtraLoads = (kExtra * kQuads + kThreads - 1) / kThreads;
  __shared__ float4 staged_extra[2][kExtra ? kExtra : 1][kQuads];

  const int thread = threadIdx.x;
  const int first_x = blockIdx.x * T::kAllX, first_n = blockIdx.y * T::kN;
  const int extra = kExtra ? min(a.rows - first_x - T::kX, kExtra) : 0;
  const int begin = blockIdx.z * a.part_chunks, end = min(begin + a.part_chunks, a.chunks);
  const int own = thread % kChunks;  // the chunk of a step that this thread reads: neighbors read one row's

  // Rows past the last are the last again, and their sums are not stored; past the last column all is zero.
  const typename F::Raw* weight[kWeightChunks];
  const float* from_x[kXChunks];
  int group_at[kWeightChunks];
#pragma unroll
  for (int i = 0; i < kWeightChunks; ++i) {
    const int row = min(first_n + (thread + i * kThreads) / kChunks, a.n - 1);
    weight[i] = static_cast<const typename F::Raw*>(a.weight) + (static_cast<size_t>(row) * a.chunks + begin + own);
    group_at[i] = row * a.groups;
  }
#pragma unroll
  for (int i = 0; i < kXChunks; ++i) {
    const int row = min(first_x + (thread + i * kThreads) / kChunks, a.rows - 1);
    from_x[i] = a.x + (static_cast<size_t>(row) * a.chunks + begin + own) * kChunk;
  }
  const float* from_extra[kExtraLoads + 1];
#pragma unroll
  for (int i = 0; i < kExtraLoads; ++i) {
    const int at = thread + i * kThreads, row = min(first_x + T::kX + at / kQuads, a.rows - 1);
    from_extra[i] = a.x + (static_cast<size_t>(row) * a.chunks + begin) * kChunk + at % kQuads * 4;
  }
  typename F::Raw raw[kWeightChunks];
  __half scale[kWeightChunks], zero[kWeightChunks];
  float4 coming[kXChunks][2], coming_extra[kExtraLoads + 1];
  int group = -1;
  const auto fetch = [&](int chunk) {
    const bool inside = chunk + own < end;
    const int now = (chunk + own) >> a.group_shift;
#pragma unroll
    for (int i = 0; i < kWeightChunks; ++i) {
      raw[i] = typename F::Raw{};
      if (inside) raw[i] = __ldg(weight[i]);
      weight[i] += kChunks;
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
        coming[i][0] = load4(from_x[i]), coming[i][1] = load4(from_x[i] + 4);
      from_x[i] += kColumns;
    }
#pragma unroll
    for (int i = 0; i < kExtraLoads; ++i) {
      const int at = thread + i * kThreads;
      coming_extra[i] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (at / kQuads < extra && chunk + at % kQuads / (kChunk / 4) < end) coming_extra[i] = load4(from_extra[i]);
      from_extra[i] += kColumns;
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
                  (((thread + i * kThreads) / kChunks + kTurn * own) & (T::kX - 1));
#pragma unroll
      for (int j = 0; j < kChunk; ++j) to[j * T::kX] = x[j];
    }
#pragma unroll
    for (int i = 0; i < kExtraLoads; ++i) {
      const int at = thread + i * kThreads;
      if (at < kExtra * kQuads) staged_extra[buffer][at / kQuads][at % kQuads] = coming_extra[i];
    }
  };

  // Four threads of a warp down and eight across, so that a quarter of a warp loads few different words.
  constexpr int kWarpsAcross = T::kAcross / 8;
  static_assert(T::kAcross % 8 == 0 && kThreads / T::kAcross % 4 == 0, "whole warps of 4 by 8");
  const int lane = thread % 32, warp = thread / 32;
  const int across = warp % kWarpsAcross * 8 + lane / 2 % 8;
  const int down = warp / kWarpsAcross * 4 + lane / 16 * 2 + lane % 2;
  float sums[T::kThreadX][T::kThreadN] = {};
  // Beyond the squares a thread has a pair of the columns that it shares.
  const int pair = down / 2 * (T::kN / 2) + 4 * across + down % 2 * 2;
  float extra_sums[kExtra ? kExtra : 1][2] = {};
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
      float x[T::kThreadX], w[T::kThreadN];
      quads<T::kThreadX, T::kX>(x, reinterpret_cast<const float*>(staged_x[buffer][c]), down, c / kChunk * kTurn);
      quads<T::kThreadN, T::kN>(w, reinterpret_cast<const float*>(staged_w[buffer][c]), across, c / kChunk * kTurn);
#pragma unroll
      for (int i = 0; i < T::kThreadX; ++i)
#pragma unroll
        for (int j = 0; j < T::kThreadN; ++j) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
    }
    if (kExtra) {
      float2 w[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        w[c] = *reinterpret_cast<const float2*>(reinterpret_cast<const float*>(staged_w[buffer][c]) +
                                                ((pair + c / kChunk * kTurn) & (T::kN - 1)));
#pragma unroll
      for (int e = 0; e < kExtra; ++e) {
        if (e >= extra) break;
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const float4 v = staged_extra[buffer][e][q];
          const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            extra_sums[e][0] = fmaf(x[j], w[4 * q + j].x, extra_sums[e][0]);
            extra_sums[e][1] = fmaf(x[j], w[4 * q + j].y, extra_sums[e][1]);
          }
        }
      }
    }
    if (more) stage(buffer ^ 1);
    __syncthreads();
  }

  float* const out = a.out + static_cast<size_t>(blockIdx.z) * a.rows * a.n;
#pragma unroll
  for (int i = 0; i < T::kThreadX; ++i) {
    const int row = first_x + i / 4 * (T::kX / (T::kThreadX / 4)) + 4 * down + i % 4;
    if (row >= a.rows) continue;
#pragma unroll
    for (int j = 0; j < T::kThreadN; j += 4) {
      const int column = first_n + j / 4 * (T::kN / (T::kThreadN / 4)) + 4 * across;
      float* const to = out + static_cast<size_t>(row) * a.n + column;
      const float four[4] = {sums[i][j] * a.factor, sums[i][j + 1] * a.factor, sums[i][j + 2] * a.factor,
                             sums[i][j + 3] * a.factor};
      if (a.n % 4 == 0 && column < a.n) {
        store4(to, make_float4(four[0], four[1], four[2], four[3]));
      } else {
#pragma unroll
        for (int q = 0; q < 4; ++q)
          if (column + q < a.n) to[q] = four[q];
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kExtra; ++e) {
    if (e >= extra) break;
    float* const to = out + static_cast<size_t>(first_x + T::kX + e) * a.n + first_n + pair;
#pragma unroll
    for (int q = 0; q < 2; ++q)
      if (first_n + pair + q < a.n) to[q] = extra_sums[e][q] * a.factor;
  }
}

template <typename F, typename T>
int launch_tile(const TiledArgs& a, int parts, cudaStream_t stream) {
  const int down = (a.n + T::kN - 1) / T::kN;
  if (down > 65535) return cudaErrorInvalidValue;
  tiled_kernel<F, T><<<dim3((a.rows + T::kAllX - 1) / T::kAllX, down, parts), T::kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

// F unpacks into shared memory, D into registers.
template <typename F, typename D>
int tiled(const TiledArgs& a, int tile, int parts, cudaStream_t stream) {
  switch (tile) {
    case 8: return launch_direct<D, DirectCut<8, 4>>(a, parts, stream);
    case 12: return launch_direct<D, DirectCut<12, 3>>(a, parts, stream);
    case 16: return launch_direct<D, DirectCut<16, 3>>(a, parts, stream);
    case 20: return launch_direct<D, DirectCut<20, 2>>(a, parts, stream);
    case 24: return launch_direct<D, DirectCut<24, 2>>(a, parts, stream);
    case 27: return launch_direct<D, DirectCut<27, 2>>(a, parts, stream);
    case 32: return launch_tile<F, Tile<32, 128, 8, 8, 6>>(a, parts, stream);
    case 56: return launch_tile<F, Tile<32, 128, 8, 8, 4, 24>>(a, parts, stream);
    case 64: return launch_tile<F, Tile<64, 128, 8, 8, 3>>(a, parts, stream);
    case 128: return launch_tile<F, Tile<128, 128, 8, 8, 2>>(a, parts, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_linear_tiled(float* out, const float* x, const void* weight, const void* scales,
                                   const void* zeros, float unit, int bits, int rows, int n, int k, int group,
                                   int tile, int parts, void* stream) {
  using namespace kepler;
  const bool coded = bits == 4 || bits == 8;
  if (rows <= 0 || n <= 0 || k <= 0 || parts <= 0 || parts > k / kChunk || (!coded && bits != 16) ||
      k % (coded ? 32 : kChunk) || (coded && shift_of(group, k) < 0) || !aligned16(out) || !aligned16(x) ||
      !aligned16(weight))
    return cudaErrorInvalidValue;
  const int chunks = k / kChunk;
  // Whole steps a part; the last parts may be left without any, and their sums are zero.
  const int step = tile <= kMostDirect ? kSharers : kChunks;
  const int part_chunks = ((chunks + parts - 1) / parts + step - 1) / step * step;
  const TiledArgs a = {out, x, weight, static_cast<const __half*>(scales), static_cast<const __half*>(zeros),
                       coded ? unit : 1.f, rows, n, chunks, coded ? k / group : 0,
                       coded ? shift_of(group, k) - 3 : 0, part_chunks};
  const auto launched = bits == 16  ? tiled<TiledHalf, DirectHalf>
                        : bits == 8 ? tiled<TiledInt8, DirectInt8>
                                    : tiled<TiledInt4, DirectInt4>;
  return launched(a, tile, parts, static_cast<cudaStream_t>(stream));
}
