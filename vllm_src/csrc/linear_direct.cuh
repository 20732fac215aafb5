// The kernel of products of 5 to 27 rows of x: a step of decoding of as many sequences.
//
// A lane has four rows of the weight and all rows of x of a tile. A tile's time follows its rows one by one: all but
// three are multiplied always, and of those two where there are two or three, and one where there are one or three. Codes go from memory to its registers: it unpacks
// four columns of its rows at a time and multiplies each with every row of x, which the block holds in shared memory,
// 64 columns at a time. Eight lanes share a row of the weight, with neighboring columns, so that a warp reads four rows
// at once, and a load of x, of eight different words, serves sixteen products. The next codes and the next columns of x
// are read while these are multiplied. Sums of lanes meet at the end, in one fixed order.
#pragma once

#include "common.cuh"

namespace kepler {
namespace {

constexpr int kChunk = 8;  // columns that a thread reads at once

struct TiledArgs {
  float* out;      // [parts, rows, n]
  const float* x;  // [rows, k]
  const void* weight;
  const __half* scales;
  const __half* zeros;
  float factor;  // of the sums, at the end
  int rows, n, chunks;
  int groups, group_shift;  // the group of a row's chunk i is i >> group_shift
  int part_chunks;          // of the columns of a part
};

constexpr int kSharers = 8;                 // lanes that share a row of the weight
constexpr int kSharing = 32 / kSharers;     // rows that a warp reads at once
constexpr int kStage = kSharers * kChunk;   // columns of x in shared memory
constexpr int kMostDirect = 27;             // rows of x a tile at most
constexpr int kDirectThreads = 128;

// Of the sums x is lifted by so much, and weights of codes are lowered.
constexpr float kLowered = 0x1p-80f;

// Formats: eight columns of a row; take() gives the first four that are left as floats. A code under a mask is a float
// already, its number times 2^(bit - 149) where it begins at `bit`, denormal or not (linear.cuh): one FMA makes it
// kLowered · scale · (code - zero), exactly, since code, zero and scale have at most 9, 9 and 11 bits.
struct DirectHalf {
  using Raw = uint4;
  static constexpr bool kCoded = false;
  static constexpr float kMiddle = 0.f;
  struct Scaled {
    __device__ __forceinline__ void set(float, float) {}
  };
  static __device__ __forceinline__ void take(float (&w)[4], Raw& raw, const Scaled&) {
    const unsigned words[2] = {raw.x, raw.y};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      w[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i / 2] >> 16 * (i % 2))));
    raw.x = raw.z, raw.y = raw.w;
  }
};

struct DirectInt8 {
  using Raw = uint2;
  static constexpr bool kCoded = true;
  static constexpr float kMiddle = 128.f;
  struct Scaled {
    float at0, at8, at16, plus;
    __device__ __forceinline__ void set(float scale, float zero) {
      at0 = scale * 0x1p69f, at8 = scale * 0x1p61f, at16 = scale * 0x1p53f, plus = -scale * zero * kLowered;
    }
  };
  static __device__ __forceinline__ void take(float (&w)[4], Raw& raw, const Scaled& s) {
    w[0] = fmaf(__uint_as_float(raw.x & 0xff), s.at0, s.plus);
    w[1] = fmaf(__uint_as_float(raw.x & 0xff00), s.at8, s.plus);
    w[2] = fmaf(__uint_as_float(raw.x & 0xff0000), s.at16, s.plus);
    w[3] = fmaf(__uint_as_float(raw.x >> 24), s.at0, s.plus);
    raw.x = raw.y;
  }
};

struct DirectInt4 {
  using Raw = unsigned;
  static constexpr bool kCoded = true;
  static constexpr float kMiddle = 8.f;
  struct Scaled {
    float at0, at4, plus;
    __device__ __forceinline__ void set(float scale, float zero) {
      at0 = scale * 0x1p69f, at4 = scale * 0x1p65f, plus = -scale * zero * kLowered;
    }
  };
  static __device__ __forceinline__ void take(float (&w)[4], Raw& word, const Scaled& s) {
    const unsigned upper = word >> 8;
    w[0] = fmaf(__uint_as_float(word & 0xf), s.at0, s.plus);
    w[1] = fmaf(__uint_as_float(word & 0xf0), s.at4, s.plus);
    w[2] = fmaf(__uint_as_float(upper & 0xf), s.at0, s.plus);
    w[3] = fmaf(__uint_as_float(upper & 0xf0), s.at4, s.plus);
    word >>= 16;
  }
};

// How a tile is cut: rows of x at most, of which three may be missing, and blocks that a multiprocessor shall hold.
// kN: rows of the weight a lane; kOutputs: a block.
template <int kX_, int kBlocks_>
struct DirectCut {
  static constexpr int kX = kX_, kFixed = kX - 3;
  static constexpr int kN = 4, kBlocks = kBlocks_, kOutputs = kDirectThreads / kSharers * kN;
  static_assert(kX <= kMostDirect, "the launcher cuts columns for it");
};

template <typename F, typename C>
__global__ void __launch_bounds__(kDirectThreads, C::kBlocks) direct_kernel(TiledArgs a) {
  constexpr int kX = C::kX, kN = C::kN;
  constexpr int kRowsOnce = kDirectThreads / (kStage / 4), kLoads = (kX + kRowsOnce - 1) / kRowsOnce;
  __shared__ float4 staged[2][kX][kStage / 4];

  const int thread = threadIdx.x, lane = thread % 32, sharer = lane % kSharers;
  const int first_x = blockIdx.x * kX;
  // Beside the fixed rows: two that take part where bit 1 of their number is set, and one where bit 0 is. Each has a
  // place of its own; place p is for row row_of(p) of the tile. What lies past the tile's rows is not stored.
  const int loose = max(min(a.rows - first_x, kX) - C::kFixed, 0);
  const auto row_of = [&](int place) { return place == kX - 1 && !(loose & 2) ? C::kFixed : place; };
  const int first_n = blockIdx.y * C::kOutputs + thread / 32 * (kSharing * kN) + lane / kSharers;
  const int begin = blockIdx.z * a.part_chunks, end = min(begin + a.part_chunks, a.chunks);

  // Rows past the last are the last again, and their sums are not stored; past the last column x is zero.
  const auto row = [&](int i) { return static_cast<unsigned>(min(first_n + i * kSharing, a.n - 1)); };
  int mine = begin + sharer;  // this lane's chunk
  unsigned at[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) at[i] = row(i) * a.chunks + mine;
  typename F::Raw next[kN] = {};
  // Of lanes that never have a column too: nothing times not a number is not a number.
  __half scale[kN], zero[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) scale[i] = zero[i] = __float2half(0.f);
  int group = -1;
  bool fresh = true;  // scales have come that `scaled` is not made of
  const auto fetch = [&] {
    if (mine < end) {
#pragma unroll
      for (int i = 0; i < kN; ++i) next[i] = __ldg(static_cast<const typename F::Raw*>(a.weight) + at[i]);
      const int now = mine >> a.group_shift;
      if (F::kCoded && now != group) {
#pragma unroll
        for (int i = 0; i < kN; ++i) {
          scale[i] = __ldg(a.scales + (row(i) * a.groups + now));
          if (a.zeros) zero[i] = __ldg(a.zeros + (row(i) * a.groups + now));
        }
        group = now, fresh = true;
      }
    }
    mine += kSharers;
#pragma unroll
    for (int i = 0; i < kN; ++i) at[i] += kSharers;
  };

  // A thread's float4 of x; the two of a lane lie kSharers apart, so that its neighbors' are next to them.
  const int x_row = thread / (kStage / 4), x_quad = thread % (kStage / 4);
  const int x_slot = x_quad % 2 * kSharers + x_quad / 2;
  int x_chunk = begin + x_quad / 2;
  const float* from_x[kLoads];
#pragma unroll
  for (int j = 0; j < kLoads; ++j)
    from_x[j] = a.x + (static_cast<size_t>(min(first_x + row_of(x_row + j * kRowsOnce), a.rows - 1)) * a.chunks + begin) *
                          kChunk + 4 * x_quad;
  float4 coming[kLoads];
  const auto load_x = [&] {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      coming[j] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (x_chunk < end) coming[j] = load4(from_x[j]);
      from_x[j] += kStage;
    }
    x_chunk += kSharers;
  };
  const auto store_x = [&](int buffer) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (kX % kRowsOnce == 0 || x_row + j * kRowsOnce < kX) {
        const float4 v = coming[j];
        constexpr float kLift = F::kCoded ? 1.f / kLowered : 1.f;
        staged[buffer][x_row + j * kRowsOnce][x_slot] = make_float4(v.x * kLift, v.y * kLift, v.z * kLift, v.w * kLift);
      }
  };

  typename F::Scaled scaled[kN];
  constexpr int kAtOnce = kSharers / kN;  // rows of x whose sums meet at once
  float sums[(kX + kX % kAtOnce) * kN] = {};  // the row of the weight is the faster index
  fetch();
  load_x();
  store_x(0);
  __syncthreads();
  int buffer = 0;
#pragma unroll 1
  for (int chunk = begin; chunk < end; chunk += kSharers, buffer ^= 1) {
    if (F::kCoded && fresh) {
#pragma unroll
      for (int i = 0; i < kN; ++i) scaled[i].set(__half2float(scale[i]), a.zeros ? __half2float(zero[i]) : F::kMiddle);
      fresh = false;
    }
    typename F::Raw raw[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) raw[i] = next[i];
    const float4* x_at = &staged[buffer][0][sharer];
    fetch();
    load_x();
#pragma unroll 1
    for (int quad = 0; quad < 2; ++quad, x_at += kSharers) {
      float w[kN][4];
#pragma unroll
      for (int i = 0; i < kN; ++i) F::take(w[i], raw[i], scaled[i]);
      const auto multiply = [&](int first, int last) {
#pragma unroll
        for (int m = first; m < last; ++m) {
          const float4 v = x_at[m * (kStage / 4)];
#pragma unroll
          for (int i = 0; i < kN; ++i) {
            float& sum = sums[m * kN + i];
            sum = fmaf(w[i][0], v.x, sum);
            sum = fmaf(w[i][1], v.y, sum);
            sum = fmaf(w[i][2], v.z, sum);
            sum = fmaf(w[i][3], v.w, sum);
          }
        }
      };
      multiply(0, C::kFixed);
      if (loose & 2) multiply(C::kFixed, kX - 1);
      if (loose & 1) multiply(kX - 1, kX);
    }
    store_x(buffer ^ 1);
    __syncthreads();
  }

  // Eight sums at a time: each of the lanes that share rows of the weight ends up with one of them.
  static_assert(kSharers % kN == 0 && kAtOnce == 2, "whole rows of x");
  const int to_n = first_n + sharer % kN * kSharing;
  float* const out = a.out + (static_cast<size_t>(blockIdx.z) * a.rows + first_x) * a.n + to_n;
#pragma unroll
  for (int m = 0; m < kX; m += kAtOnce) {
    float eight[kSharers];
#pragma unroll
    for (int i = 0; i < kSharers; ++i) eight[i] = sums[m * kN + i];
    exchange(eight, 4, lane, 4);
    exchange(eight, 2, lane, 2);
    exchange(eight, 1, lane, 1);
    const int place = m + sharer / kN, to = row_of(place);
    // With one row the places of two have none, and with two the place of one.
    const bool taken = place < C::kFixed || (place < kX - 1 ? loose & 2 : place < kX && loose & 1);
    if (taken && first_x + to < a.rows && to_n < a.n) out[static_cast<size_t>(to) * a.n] = eight[0] * a.factor;
  }
}

template <typename F, typename C>
int launch_direct(const TiledArgs& a, int parts, cudaStream_t stream) {
  const int down = (a.n + C::kOutputs - 1) / C::kOutputs;
  if (down > 65535) return cudaErrorInvalidValue;
  direct_kernel<F, C><<<dim3((a.rows + C::kX - 1) / C::kX, down, parts), kDirectThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace
}  // namespace kepler
