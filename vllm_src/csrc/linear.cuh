// The kernel of products of a few rows of x with weights stored in fewer bits than float32: out = x · weight^T, of one
// matrix (linear.cu) and of the experts of a mixture (linear_experts.cu).
//
// A warp takes a few rows of the weight. A lane reads 16 bytes of each, neighboring columns, and uses them for every
// row of x, which the block holds in shared memory, some thousand columns at a time; the next of them are on their way
// meanwhile. In some cuts several warps share a row's columns. Sums are added in one fixed order, without atomics:
// equal inputs give equal bits.
//
// Codes become floats without a conversion, which Kepler does at a sixth of the rate of an FMA. The lowest 24 bits of
// a float32 are linear: as a float they are their number times 2^-149, denormal or not, and an FMA takes denormals at
// full speed. So a code under a mask is a factor already, times a power of two that depends on where in the word it
// lies; x in shared memory is divided by that power and lifted by 2^80 toward the middle of the range, both exact.
// The group's zero is taken off once, by the sum of x over the columns that the lane has read:
//   sum x · scale · (code - zero) = scale · (sum x · code - zero · sum x)
#pragma once

#include "common.cuh"

namespace kepler {
namespace {

constexpr float kLift = 0x1p80f;
// What the sum of lifted x times a code's bits counts in: 2^80 · 2^-149.
constexpr float kBit = 0x1p-69f, kInverseBit = 0x1p69f;

struct Words {
  unsigned at[4];
};

// Formats: kColumns a lane reads at once; four() gives those of a quad as factors; lifts() what x is multiplied by.
struct Half {
  static constexpr int kColumns = 8;
  static constexpr bool kCoded = false;
  static constexpr float kMiddle = 0.f;
  static __device__ __forceinline__ void four(float (&w)[4], const Words& words, int quad) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned word = words.at[2 * quad + i / 2];
      w[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(i % 2 ? word >> 16 : word & 0xffff)));
    }
  }
  static __device__ __forceinline__ float4 lifts(int) { return make_float4(1.f, 1.f, 1.f, 1.f); }
};

struct Int8 {
  static constexpr int kColumns = 16;
  static constexpr bool kCoded = true;
  static constexpr float kMiddle = 128.f;  // the zero of codes that come without
  static __device__ __forceinline__ void four(float (&w)[4], const Words& words, int quad) {
    const unsigned word = words.at[quad];
    w[0] = __uint_as_float(word & 0xff);
    w[1] = __uint_as_float(word & 0xff00);
    w[2] = __uint_as_float(word & 0xff0000);
    w[3] = __uint_as_float(word >> 24);
  }
  static __device__ __forceinline__ float4 lifts(int) {
    return make_float4(kLift, kLift * 0x1p-8f, kLift * 0x1p-16f, kLift);
  }
};

struct Int4 {
  static constexpr int kColumns = 32;
  static constexpr bool kCoded = true;
  static constexpr float kMiddle = 8.f;  // the zero of codes that come without
  static __device__ __forceinline__ void four(float (&w)[4], const Words& words, int quad) {
    const unsigned word = words.at[quad / 2];
    if (quad % 2 == 0) {
      w[0] = __uint_as_float(word & 0xf);
      w[1] = __uint_as_float(word & 0xf0);
      w[2] = __uint_as_float(word & 0xf00);
      w[3] = __uint_as_float(word & 0xf000);
    } else {
      // The two codes above the linear bits.
      const unsigned top = word >> 24;
      w[0] = __uint_as_float(word & 0xf0000);
      w[1] = __uint_as_float(word & 0xf00000);
      w[2] = __uint_as_float(top & 0xf);
      w[3] = __uint_as_float(word >> 28);
    }
  }
  static __device__ __forceinline__ float4 lifts(int quad) {
    return quad % 2 == 0 ? make_float4(kLift, kLift * 0x1p-4f, kLift * 0x1p-8f, kLift * 0x1p-12f)
                         : make_float4(kLift * 0x1p-16f, kLift * 0x1p-20f, kLift, kLift);
  }
};

// Sums each of kCount values over the warp; the lanes from l · 32 / kCount on return the sum of value l.
template <int kCount>
__device__ __forceinline__ float scattered_sum(float (&values)[kCount], int lane) {
  static_assert(kCount <= 32 && (kCount & (kCount - 1)) == 0, "a value for each lane at most");
  int step = 16;
#pragma unroll
  for (int count = kCount / 2; count > 0; count /= 2, step /= 2) exchange(values, count, lane, step);
#pragma unroll
  for (int rest = 16 / kCount; rest > 0; rest /= 2) values[0] += __shfl_xor_sync(kAllLanes, values[0], rest);
  return values[0];
}

struct LinearArgs {
  float* out;      // [rows, n]
  const float* x;  // [rows, k]
  const void* weight;
  const __half* scales;
  const __half* zeros;
  float factor;    // of the sums, at the end
  int rows, n, k;
  int groups, group_shift;  // the group of a row's 16-byte piece i is i >> group_shift
  ExpertArgs experts;
};

// How a kernel is cut: rows of the weight a warp, warps a block, warps that share a row's columns, columns of x in
// shared memory, blocks that a multiprocessor shall hold, and whether a step's loads
// go out before the arithmetic of the one before, into registers of their own, or after it, into the same.
template <int kOut_, int kWarps_, int kParts_, int kStaged_, int kBlocks_, bool kEarly_>
struct Cut {
  static constexpr int kOut = kOut_, kWarps = kWarps_, kParts = kParts_, kStaged = kStaged_, kBlocks = kBlocks_;
  static constexpr bool kEarly = kEarly_;
  static constexpr int kThreads = 32 * kWarps, kTeams = kWarps / kParts;
};

template <typename F, int kRows, bool kZeros, typename C, bool kExperts = false>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks) linear_kernel(LinearArgs a) {
  constexpr int kOut = C::kOut, kParts = C::kParts, kThreads = C::kThreads;
  constexpr int kQuads = F::kColumns / 4;       // float4 of x for the columns of a lane
  constexpr int kQuadStride = 32 + 8 / kQuads;  // those of all lanes; the rest keeps stores out of each other's banks
  constexpr int kStep = 32 * F::kColumns;       // columns that a warp reads at once
  constexpr int kSteps = C::kStaged / kStep;
  static_assert(kSteps % kParts == 0 && C::kWarps % kParts == 0, "each part has its columns");
  static_assert(kRows * C::kStaged / 4 % kThreads == 0, "no thread may be missing in a shuffle");
  constexpr int kStepStride = kQuads * kQuadStride;
  __shared__ float4 staged[kRows][kSteps][kStepStride];
  __shared__ float sums[F::kCoded ? kRows : 1][kSteps][32];

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = warp % kParts;
  const int first_row = (blockIdx.x * C::kTeams + warp / kParts) * kOut;
  const unsigned pieces = a.k / F::kColumns;  // 16 bytes each, in a row
  const int steps = (a.k + kStep - 1) / kStep;

  // Where the tile's rows of x begin, and which rows of out they are for; past the last the first is read again.
  __shared__ int x_at[kExperts ? kRows : 1], to_row[kExperts ? kRows : 1];
  int expert_row = 0;  // of the weights
  if (kExperts) {
    const ExpertArgs& e = a.experts;
    const int first = blockIdx.y * kRows;
    if (kRows > 1 && first >= *e.num_sorted) return;
    expert_row = e.tile_experts[blockIdx.y] * a.n;
    if (threadIdx.x < kRows) {
      const int to = kRows > 1 ? e.sorted_rows[first + threadIdx.x] : first;
      to_row[threadIdx.x] = to;
      x_at[threadIdx.x] = (to < e.num_rows ? to : e.sorted_rows[first]) / e.rows_per_x * a.k;
    }
    __syncthreads();
  }

  // Past the last row and the last column the last is read again: x is zero there, or the sum is not stored.
  const uint4* weight[kOut];
  int scale_at[kOut];
#pragma unroll
  for (int r = 0; r < kOut; ++r) {
    const int row = min(first_row + r, a.n - 1) + expert_row;
    weight[r] = static_cast<const uint4*>(a.weight) + static_cast<size_t>(row) * pieces;
    scale_at[r] = row * a.groups;
  }

  struct Step {
    Words words[kOut];
    __half scale[kOut], zero[kOut];
  };
  unsigned piece = part * 32 + lane;
  const auto fetch = [&](Step& to) {
    const unsigned from = min(piece, pieces - 1);
    piece += kParts * 32;
#pragma unroll
    for (int r = 0; r < kOut; ++r) {
      const uint4 v = __ldg(weight[r] + from);
      to.words[r].at[0] = v.x, to.words[r].at[1] = v.y, to.words[r].at[2] = v.z, to.words[r].at[3] = v.w;
    }
    if (F::kCoded) {
      const int group = from >> a.group_shift;
#pragma unroll
      for (int r = 0; r < kOut; ++r) {
        to.scale[r] = __ldg(a.scales + (scale_at[r] + group));
        if (kZeros) to.zero[r] = __ldg(a.zeros + (scale_at[r] + group));
      }
    }
  };

  // A thread's share of x: float4 number tid, tid + kThreads, ... of the block's. With OR for the sum the compiler sees
  // that all but the first lie at fixed distances from it.
  constexpr int kLoads = kRows * C::kStaged / 4 / kThreads;
  const unsigned tid = threadIdx.x & (kThreads - 1);
  float4 coming[kLoads];
  const auto load_x = [&](int begin) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const unsigned i = tid | j * kThreads;
      const int m = kRows == 1 ? 0 : min(static_cast<int>(i / (C::kStaged / 4)), kExperts ? kRows - 1 : a.rows - 1);
      const int column = begin * kStep + 4 * (i % (C::kStaged / 4));
      const int from = kExperts ? x_at[m] : m * a.k;
      coming[j] = column < a.k ? load4(a.x + (from + column)) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  };

  float total[kOut * kRows] = {};  // the row of the weight is the faster index
  // One step's products with the columns of x at `x_at`, whose sums are at `sum_at`.
  const auto multiply = [&](const Step& by, const float4* x_at, const float* sum_at) {
    // Codes have a sum for the group; halves go on with the whole one.
    float product[kOut * kRows];
#pragma unroll
    for (int i = 0; i < kOut * kRows; ++i) product[i] = F::kCoded ? 0.f : total[i];
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      float w[kOut][4];
#pragma unroll
      for (int r = 0; r < kOut; ++r) F::four(w[r], by.words[r], quad);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const float4 v = x_at[m * kSteps * kStepStride + quad * kQuadStride];
#pragma unroll
        for (int r = 0; r < kOut; ++r) {
          float& sum = product[m * kOut + r];
          sum = fmaf(w[r][0], v.x, sum);
          sum = fmaf(w[r][1], v.y, sum);
          sum = fmaf(w[r][2], v.z, sum);
          sum = fmaf(w[r][3], v.w, sum);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const float sum = F::kCoded ? sum_at[m * kSteps * 32] : 0.f;
#pragma unroll
      for (int r = 0; r < kOut; ++r) {
        const int i = m * kOut + r;
        const float zero = kZeros ? __half2float(by.zero[r]) : F::kMiddle;
        total[i] = F::kCoded ? fmaf(__half2float(by.scale[r]), fmaf(zero, sum, product[i]), total[i]) : product[i];
      }
    }
  };

  load_x(0);
  Step next;
  if (part < steps) fetch(next);
  for (int begin = 0; begin < steps; begin += kSteps) {
    if (begin) __syncthreads();
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const unsigned i = tid | j * kThreads;
      const unsigned m = i / (C::kStaged / 4), at = i % (C::kStaged / 4);
      const unsigned quad = at % kQuads, owner = at / kQuads % 32, step = at / (kQuads * 32);
      float4 v = coming[j];
      if (F::kCoded) {
        float sum = (v.x + v.y) + (v.z + v.w);
#pragma unroll
        for (int lanes = kQuads / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
        sums[m][step][owner] = sum * -kBit;  // all of an owner's quads store the same
        const float4 lift = F::lifts(quad);
        v = make_float4(v.x * lift.x, v.y * lift.y, v.z * lift.z, v.w * lift.w);
      }
      staged[m][step][quad * kQuadStride + owner] = v;
    }
    __syncthreads();
    if (begin + kSteps < steps) load_x(begin + kSteps);
    const int end = min(kSteps, steps - begin);
    const float4* x_at = &staged[0][part][lane];
    const float* sum_at = &sums[0][part][lane];
#pragma unroll 1
    for (int step = part; step < end; step += kParts) {
      const bool more = begin + step + kParts < steps;
      if (C::kEarly) {
        const Step now = next;
        if (more) fetch(next);
        multiply(now, x_at, sum_at);
      } else {
        multiply(next, x_at, sum_at);
        if (more) fetch(next);
      }
      x_at += kParts * kStepStride, sum_at += kParts * 32;
    }
  }

  constexpr int kCount = kOut * kRows, kTwins = 32 / kCount;
  float result = scattered_sum<kCount>(total, lane);
  const int i = lane / kTwins, m = i / kOut, row = first_row + i % kOut;
  if (kParts > 1) {
    __shared__ float partial[C::kWarps][kCount];
    if (lane % kTwins == 0) partial[warp][i] = result;
    __syncthreads();
    if (part) return;
    result = 0.f;
#pragma unroll
    for (int p = 0; p < kParts; ++p) result += partial[warp + p][i];
  }
  if (lane % kTwins || row >= a.n) return;
  if (kExperts) {
    const int to = to_row[m];
    if (to >= a.experts.num_rows) return;
    const float scale = a.experts.row_scales ? a.experts.row_scales[to] : 1.f;
    a.out[static_cast<size_t>(to) * a.n + row] = result * a.factor * scale;
  } else if (m < a.rows) {
    a.out[static_cast<size_t>(m) * a.n + row] = result * a.factor;
  }
}

// The fastest of some dozens on one H200, over the layers of Llama 7B, 8B and 13B; on sm_70 as many blocks as spill
// nothing.
template <typename F, int kRows>
struct Best;
template <> struct Best<Half, 1> { using type = Cut<4, 8, 4, 2048, 3, true>; };
template <> struct Best<Half, 2> { using type = Cut<4, 16, 2, 4096, 1, true>; };
template <> struct Best<Half, 4> { using type = Cut<4, 16, 2, 2048, 1, true>; };
template <> struct Best<Int8, 1> { using type = Cut<4, 8, 2, 2048, on(4, 3), false>; };
template <> struct Best<Int8, 2> { using type = Cut<4, 8, 2, 2048, on(3, 2), false>; };
template <> struct Best<Int8, 4> { using type = Cut<4, 8, 1, 1024, on(2, 1), true>; };
template <> struct Best<Int4, 1> { using type = Cut<2, 8, 1, 4096, on(4, 3), true>; };
template <> struct Best<Int4, 2> { using type = Cut<4, 8, 1, 2048, on(3, 2), false>; };
template <> struct Best<Int4, 4> { using type = Cut<4, 8, 1, 1024, 2, true>; };

}  // namespace
}  // namespace kepler
