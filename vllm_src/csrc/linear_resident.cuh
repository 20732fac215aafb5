// The kernel of products of one to eight rows of x with packed weights: a step of decoding of one or a few sequences.
//
// Where linear.cuh brings x to the weights, here x stays: a lane holds its 16 bytes' columns of x in registers, a warp
// 1,024 columns of 4 bits or 512 of 8, and walks down rows of the weight; of 4 bits and more than four rows of x it has
// 8 bytes' columns. The warps of a team share a row; a block holds as many teams as fit, the grid as many blocks as the
// GPU holds at once, and each team has its share of rows. The loop over rows has neither x's shared memory nor a barrier
// of the block in it: a row's codes are unpacked as in linear.cuh, and while four rows are multiplied the next four are
// on their way. Sums of a team's warps meet in shared memory at the end and are added in one fixed order.
//
// A group is at least the columns of four lanes. So the four rows of a batch are first spread over each four lanes, and
// each lane scales one sum, of one row and one group: one scale is read for every lane and batch.
#pragma once

#include <algorithm>

#include "linear.cuh"

namespace kepler {
namespace {

// 4 bits, half as many columns a lane, for as many more rows of x.
struct Int4Half : Int4 {
  static constexpr int kColumns = 16;
};

// What a lane reads of a row of the weight at once.
template <typename F>
struct Piece {
  using type = uint4;
  static __device__ __forceinline__ Words words(uint4 v) { return {{v.x, v.y, v.z, v.w}}; }
};
template <>
struct Piece<Int4Half> {
  using type = uint2;
  static __device__ __forceinline__ Words words(uint2 v) { return {{v.x, v.y, 0, 0}}; }
};

// Warps of a block at most: registers of x bound them.
template <typename F, int kRows>
struct Resident { static constexpr int kWarps = 8; };
template <> struct Resident<Int4, 1> { static constexpr int kWarps = 16; };
template <> struct Resident<Int4, 2> { static constexpr int kWarps = on(16, 12); };
template <> struct Resident<Int8, 1> { static constexpr int kWarps = 28; };
template <> struct Resident<Int8, 2> { static constexpr int kWarps = 20; };
template <> struct Resident<Int8, 4> { static constexpr int kWarps = 16; };

constexpr int kBatch = 4;  // rows of the weight, and the lanes that they are spread over

struct ResidentArgs {
  float* out;      // [rows, n]
  const float* x;  // [rows, k]
  const void* weight;
  const __half* scales;
  const __half* zeros;
  float factor;  // of the sums, at the end
  int rows, n;
  unsigned pieces;  // of a row of the weight
  int groups, group_shift;  // the group of a row's piece i is i >> group_shift
  int team_rows, padded;  // rows of the weight a team, and those up to a whole batch
  int passes;             // times that the warps of a team go over them; once with one row of x
  unsigned all_lanes;     // kAllLanes, which ptxas must not know
};

// How x comes to its lanes: two halves of their quads, in rows of shared memory that keep stores out of each other's
// banks.
template <typename F>
struct Staging {
  static constexpr int kQuads = F::kColumns / 4, kHalf = kQuads / 2, kStride = 32 + 8 / kHalf;
};

template <typename F, int kRows, bool kZeros>
__global__ void __launch_bounds__(32 * Resident<F, kRows>::kWarps) resident_kernel(ResidentArgs a) {
  constexpr int kColumns = F::kColumns, kQuads = Staging<F>::kQuads, kHalf = Staging<F>::kHalf;
  constexpr int kStride = Staging<F>::kStride;
  __shared__ float4 staged[Resident<F, kRows>::kWarps][kHalf * kStride];
  extern __shared__ float partial[];  // [teams, parts, kRows, a.padded]

  const unsigned lane = threadIdx.x;
  const int part = threadIdx.y, team = threadIdx.z, parts = blockDim.y;
  const int first = (blockIdx.x * blockDim.z + team) * a.team_rows;
  const int count = min(a.team_rows, a.n - first);  // none, or less than that, for teams past the end
  float4* const mine = staged[team * parts + part];

  // What a lane has after a batch: the sum of row lane % 4 and of row my_m of x; of kTwins such lanes one stores.
  constexpr int kSlots = kRows > 4 ? 8 : kRows, kTwins = 8 / kSlots;
  using P = Piece<F>;
  const int my_row = lane % kBatch, my_m = lane / 4 / kTwins;
  const bool stores = lane / 4 % kTwins == 0 && my_m < kRows;

#pragma unroll 1
  for (int pass = 0; pass < (kRows == 1 ? 1 : a.passes); ++pass) {
    const unsigned first_piece = (pass * parts + part) * 32;
    // Coalesced: a lane loads quad lane % kHalf of each half, of every (32 / kHalf)th piece.
    const unsigned x_piece = first_piece + lane / kHalf;
    const float* const my_x = a.x + (x_piece * kColumns + lane % kHalf * 4);
    const auto load_x = [&](float4 (&to)[kQuads], int m) {
      const float* x = m ? my_x + static_cast<size_t>(min(m, a.rows - 1)) * (a.pieces * kColumns) : my_x;
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        const int next = j % kHalf * (32 / kHalf);
        to[j] = make_float4(0.f, 0.f, 0.f, 0.f);
        if (x_piece + next < a.pieces) to[j] = load4(x + (next * kColumns + j / kHalf * (kHalf * 4)));
      }
    };
    float4 coming[2][kQuads];
    load_x(coming[0], 0);

    // Past the last row and the last column the last is read again: x is zero there, or the sum is not stored.
    const unsigned from = min(first_piece + lane, a.pieces - 1);
    const int top = min(first, a.n - 1), more = max(count - 1, 0);
    unsigned at = top * a.pieces + from;
    const unsigned last = at + more * a.pieces;
    unsigned scale_at = (top + my_row) * a.groups + (from >> a.group_shift);
    const unsigned scale_last = (top + more) * a.groups + (from >> a.group_shift);
    struct Batch {
      typename P::type codes[kBatch];
      __half scale, zero;
    };
    // Plain loads: ptxas puts off those of constant memory until their registers are free.
    const auto fetch = [&](Batch& to) {
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        to.codes[r] = static_cast<const typename P::type*>(a.weight)[at];
        at = min(at + a.pieces, last);
      }
      const unsigned i = min(scale_at, scale_last);
      to.scale = a.scales[i];
      if (kZeros) to.zero = a.zeros[i];
      scale_at += kBatch * a.groups;
    };
    Batch batch;
    fetch(batch);
    __syncwarp();

    float x[kRows][kColumns];  // lifted
    float zero_sum[kRows];     // of x over the group's four lanes, negative
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      if (m + 1 < kRows) load_x(coming[(m + 1) % 2], m + 1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (m || half) __syncwarp();
        const float4 lift = F::lifts(half * kHalf + lane % kHalf);
#pragma unroll
        for (int j = 0; j < kHalf; ++j) {
          const float4 v = coming[m % 2][half * kHalf + j];
          mine[lane % kHalf * kStride + lane / kHalf + j * (32 / kHalf)] =
              make_float4(v.x * lift.x, v.y * lift.y, v.z * lift.z, v.w * lift.w);
        }
        __syncwarp();
#pragma unroll
        for (int j = 0; j < kHalf; ++j) {
          const float4 v = mine[j * kStride + lane];
          float* to = &x[m][4 * (half * kHalf + j)];
          to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        }
      }
      float sums[4] = {};
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        const float4 lift = F::lifts(quad);
        sums[0] = fmaf(x[m][4 * quad], 1.f / lift.x, sums[0]);
        sums[1] = fmaf(x[m][4 * quad + 1], 1.f / lift.y, sums[1]);
        sums[2] = fmaf(x[m][4 * quad + 2], 1.f / lift.z, sums[2]);
        sums[3] = fmaf(x[m][4 * quad + 3], 1.f / lift.w, sums[3]);
      }
      float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * (kZeros ? -kBit : -kBit * F::kMiddle);
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      zero_sum[m] = sum + __shfl_xor_sync(kAllLanes, sum, 2);
    }
    __syncwarp();

    float* to = partial + ((team * parts + part) * kRows + my_m) * a.padded + my_row;
#pragma unroll 1
    for (int row = 0; row < count; row += kBatch, to += kBatch) {
      // For GPUs with registers for 16 warps alone: ptxas puts the loads off until half of the products are done,
      // unless there is a barrier that it cannot leave out. On sm_37 they come after all, and 48 warps wait in turn.
      Batch next;
      if (kRows > 1 || row + kBatch < count) fetch(next);  // with more rows of x the condition spills
      __syncwarp(a.all_lanes);
      float product[kRows][kBatch] = {};
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const Words words = P::words(batch.codes[r]);
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
          float w[4];
          F::four(w, words, quad);
#pragma unroll
          for (int m = 0; m < kRows; ++m)
#pragma unroll
            for (int j = 0; j < 4; ++j) product[m][r] = fmaf(w[j], x[m][4 * quad + j], product[m][r]);
        }
      }
      const float by = __half2float(batch.scale), zero_of = kZeros ? __half2float(batch.zero) : 1.f;
      float total[kSlots] = {};
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        exchange(product[m], 2, lane, 2);
        exchange(product[m], 1, lane, 1);
        total[m] = by * fmaf(zero_of, zero_sum[m], product[m][0]);
      }
      if (kSlots >= 2) exchange(total, kSlots / 2, lane, 16);
      if (kSlots >= 4) exchange(total, kSlots / 4, lane, 8);
      if (kSlots >= 8) exchange(total, 1, lane, 4);
#pragma unroll
      for (int step = 2 * kTwins; step >= 4; step /= 2) total[0] += __shfl_xor_sync(kAllLanes, total[0], step);
      if (stores) *to = pass ? *to + total[0] : total[0];
      batch = next;
    }
  }

  __syncthreads();
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m >= a.rows) break;
#pragma unroll 1
    for (int row = part * 32 + lane; row < count; row += parts * 32) {
      const float* from = partial + (team * parts * kRows + m) * a.padded + row;
      float sum = 0.f;
#pragma unroll 2
      for (int p = 0; p < parts; ++p, from += kRows * a.padded) sum += *from;
      a.out[static_cast<size_t>(m) * a.n + first + row] = sum * a.factor;
    }
  }
}

// Blocks of the kernel that the GPU holds at once; 0 where it cannot be asked.
template <typename F, int kRows, bool kZeros>
int resident_blocks() {
  static int blocks = 0;
  if (blocks == 0) {
    int device = 0, multiprocessors = 0, each = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, resident_kernel<F, kRows, kZeros>,
                                                  32 * Resident<F, kRows>::kWarps, 0);
    blocks = multiprocessors * each;
  }
  return blocks;
}

// False where nothing was launched: linear.cuh takes groups that are too small for this kernel.
template <typename F, int kRows, bool kZeros>
bool launch_resident(const LinearArgs& a, cudaStream_t stream) {
  constexpr int kWarps = Resident<F, kRows>::kWarps, kBytes = sizeof(typename Piece<F>::type);
  if (a.k / a.groups < kBatch * F::kColumns && a.groups > 1) return false;
  const int pieces = a.k / F::kColumns;
  if (static_cast<long long>(a.n) * pieces > 0x7fffffffLL) return false;
  const int blocks = resident_blocks<F, kRows, kZeros>();
  if (blocks == 0) return false;  // an earlier error: the launch of linear.cuh tells it
  const int all_parts = (pieces + 31) / 32;
  int passes = (all_parts + kWarps - 1) / kWarps;
  if (kRows == 1 && passes > 1) return false;
  // More passes may leave fewer warps out; each takes its batches, and x as long as one of them.
  const auto time = [&](int passes) {
    const int teams = blocks * (kWarps / ((all_parts + passes - 1) / passes));
    return passes * ((a.n + teams * kBatch - 1) / (teams * kBatch) + 1);
  };
  if (kRows > 4) {
    int least = time(passes);
    for (int more = passes + 1, most = std::min(all_parts, 4 * passes); more <= most; ++more) {
      const int found = time(more);
      if (found < least) least = found, passes = more;
    }
  }
  const int parts = (all_parts + passes - 1) / passes, teams = kWarps / parts;
  // Four rows of x leave room for few warps: where teams do not fill them, linear.cuh is faster.
  if (kRows == 4 && 8 * parts * teams < 7 * kWarps) return false;
  // Sums of a block's rows lie in what x leaves of 48 KiB. Where that is too little, blocks follow each other, all of
  // them with as many rows.
  constexpr int kSums = ((48 << 10) - kWarps * Staging<F>::kHalf * Staging<F>::kStride * 16) / 4;
  const int most = kSums / (teams * parts * kRows) / kBatch * kBatch;
  const int all_teams = blocks * teams, turns = (a.n + all_teams * most - 1) / (all_teams * most);
  const int rows = (a.n + all_teams * turns - 1) / (all_teams * turns);
  const int padded = (rows + kBatch - 1) / kBatch * kBatch;
  const ResidentArgs args = {a.out, a.x, a.weight, a.scales, a.zeros, a.factor, a.rows, a.n,
                             static_cast<unsigned>(pieces), a.groups, a.group_shift + 16 / kBytes - 1, rows, padded,
                             passes, kAllLanes};
  resident_kernel<F, kRows, kZeros><<<(a.n + rows * teams - 1) / (rows * teams), dim3(32, parts, teams),
                                      sizeof(float) * teams * parts * kRows * padded, stream>>>(args);
  return true;
}

}  // namespace
}  // namespace kepler
