// The kernel of products of 5 to 36 rows of x: a step of decoding of as many sequences.
//
// A lane has four rows of the weight and all rows of x of a tile. A tile's time follows its rows one by one: all but
// three are multiplied always, and of those two where there are two or three, and one where there are one or three.
// Codes go from memory to its registers: it unpacks eight columns of its rows at a time and multiplies each with every
// row of x, which the block holds in shared memory, 64 columns at a time. Eight lanes share a row of the weight, with
// neighboring columns, so that a warp reads four rows at once, and a load of x, of eight different words, serves sixteen
// products. Lanes next to each other want the same words, which half a warp then loads at once. The next codes and the
// next columns of x are read while these are multiplied. Sums of lanes meet at the end, in one fixed order.
#pragma once

#include "common.cuh"

namespace kepler {
namespace {

constexpr int kChunk = 8;  // columns that a thread reads at once

struct TiledArgs {
  float* out;      // [rows, n]
  float* sums;     // [2 · blocks, rows of x in a tile, outputs of a tile]: of tiles that several blocks share
  const float* x;  // [rows, k]
  const void* weight;
  const __half* scales;
  const __half* zeros;
  float factor;  // of the sums, at the end
  int rows, n, chunks;
  int groups, group_shift;  // the group of a row's chunk i is i >> group_shift
  int across, down, steps;  // tiles of rows of x (of experts: at most), tiles of rows of the weight, steps of a tile
  ExpertArgs experts;       // without sorted_rows: one matrix
};

// How blocks share a product: the steps of its tiles, tile by tile, are cut into a share for each block, as many steps
// in each. So all are done at once, however many tiles there are, and a share may end within a tile. Tiles of the same
// rows of the weight follow each other.
struct Shares {
  unsigned steps, each, longer;  // of a tile; of a share; shares that have one more
  __device__ Shares(unsigned tiles, unsigned steps, unsigned blocks)
      : steps(steps), each(tiles * steps / blocks), longer(tiles * steps % blocks) {}
  __device__ unsigned begin(unsigned block) const { return block * each + min(block, longer); }
  __device__ unsigned owner(unsigned step) const {
    const unsigned long_steps = longer * (each + 1);
    return step < long_steps ? step / (each + 1) : longer + (step - long_steps) / each;
  }
};

__device__ __forceinline__ unsigned tiles_across(const TiledArgs& a, int tile_rows) {
  return a.experts.sorted_rows ? *a.experts.num_sorted / tile_rows : a.across;
}

// A block's way through its share: what it has of one tile at a time. It lies in shared memory, where it takes no
// registers of the loops over columns.
struct Part {
  unsigned across, begun, at, last;  // tiles of rows of x; the share's first step, the next one, and the end
  int first_x, first_n;              // of the tile
  unsigned weight_row;               // where the matrix of its expert begins
  int begin, end;                    // of the part, in chunks
  int slot;                          // of its sums; -1: it has the whole tile

  __device__ void start(const TiledArgs& a, int tile_rows) {
    across = tiles_across(a, tile_rows);
    const Shares shares(across * a.down, a.steps, gridDim.x);
    begun = at = shares.begin(blockIdx.x), last = shares.begin(blockIdx.x + 1);
  }
  __device__ void next(const TiledArgs& a, int tile_rows, int outputs, int step_chunks) {
    const unsigned tile = at / a.steps, skipped = at % a.steps, taken = min(a.steps - skipped, last - at);
    slot = taken == a.steps ? -1 : static_cast<int>(2 * blockIdx.x + (at != begun));
    at += taken;
    first_x = tile % across * tile_rows, first_n = tile / across * outputs;
    weight_row = a.experts.sorted_rows ? a.experts.tile_experts[tile % across] * a.n : 0;
    begin = skipped * step_chunks, end = min(static_cast<int>(skipped + taken) * step_chunks, a.chunks);
  }
};

// The row of out, a.rows or more for none, of a tile's row.
__device__ __forceinline__ int out_row(const TiledArgs& a, int first_x, int row) {
  return a.experts.sorted_rows ? a.experts.sorted_rows[first_x + row] : first_x + row;
}

// The row of x of a tile's row; past the last it is another one, whose sums are not stored.
__device__ __forceinline__ unsigned x_row(const TiledArgs& a, int first_x, int row) {
  const int to = min(out_row(a, first_x, row), a.rows - 1);
  return a.experts.sorted_rows ? to / a.experts.rows_per_x : to;
}

// Puts a sum where meet_kernel finds it, or where there is no such place, since a block has the whole tile, into out.
__device__ __forceinline__ void put(const TiledArgs& a, float* at, int first_x, int row, int column, float sum) {
  if (at) {
    *at = sum;
    return;
  }
  const int to = out_row(a, first_x, row);
  if (to >= a.rows || column >= a.n) return;
  a.out[static_cast<size_t>(to) * a.n + column] = a.experts.row_scales ? sum * a.experts.row_scales[to] : sum;
}

// The sums of tiles that several blocks share, in one order. A block of this kernel is for the place where one share
// ends and the next begins: the first such place of a tile is for all of it.
constexpr int kMeetThreads = 256;

__global__ void __launch_bounds__(kMeetThreads) meet_kernel(TiledArgs a, int tile_rows, int outputs, unsigned blocks) {
  const unsigned across = tiles_across(a, tile_rows);
  const Shares shares(across * a.down, a.steps, blocks);
  const unsigned block = blockIdx.x + 1, begin = shares.begin(block), tile = begin / a.steps;
  if (begin % a.steps == 0 || shares.owner(tile * a.steps) != block - 1) return;
  const unsigned last = shares.owner(tile * a.steps + a.steps - 1);
  const unsigned quads = outputs / 4, i = blockIdx.y * kMeetThreads + threadIdx.x, row = i / quads;
  if (row >= static_cast<unsigned>(tile_rows)) return;
  const int to_row = out_row(a, tile % across * tile_rows, row), column = tile / across * outputs + i % quads * 4;
  if (to_row >= a.rows || column >= a.n) return;
  const size_t size = static_cast<size_t>(tile_rows) * quads;
  const float4* const from = reinterpret_cast<const float4*>(a.sums) + i;
  // The first of them may have begun with another tile.
  float4 sum = from[(2 * (block - 1) + (shares.begin(block - 1) / a.steps != tile)) * size];
  for (unsigned b = block; b <= last; ++b) {
    const float4 v = from[2 * b * size];
    sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
  }
  const float scale = a.experts.row_scales ? a.experts.row_scales[to_row] : 1.f;
  const float four[4] = {sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale};
  float* const to = a.out + static_cast<size_t>(to_row) * a.n + column;
#pragma unroll
  for (int q = 0; q < 4; ++q)
    if (column + q < a.n) to[q] = four[q];
}

constexpr int kSharers = 8;                 // lanes that share a row of the weight
constexpr int kSharing = 32 / kSharers;     // rows that a warp reads at once
constexpr int kStage = kSharers * kChunk;  // columns of x in shared memory
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
    float at0, at8, plus;
    __device__ __forceinline__ void set(float scale, float zero) {
      at0 = scale * 0x1p69f, at8 = scale * 0x1p61f, plus = -scale * zero * kLowered;
    }
  };
  static __device__ __forceinline__ void take(float (&w)[4], Raw& raw, const Scaled& s) {
    const unsigned upper = raw.x >> 16;
    w[0] = fmaf(__uint_as_float(raw.x & 0xff), s.at0, s.plus);
    w[1] = fmaf(__uint_as_float(raw.x & 0xff00), s.at8, s.plus);
    w[2] = fmaf(__uint_as_float(upper & 0xff), s.at0, s.plus);
    w[3] = fmaf(__uint_as_float(upper & 0xff00), s.at8, s.plus);
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
  // Quads of columns that are multiplied in one go, so that few warps find enough to do; registers bound them.
  static constexpr int kTogether = kX > 32 ? 1 : 2;
  // Whether there are registers for the next scales, and for where rows of x are: else for where those begin there is
  // shared memory.
  static constexpr bool kRoom = kX <= 28;
  static constexpr int kN = 4, kBlocks = kBlocks_, kOutputs = kDirectThreads / kSharers * kN;
};

template <typename F, typename C>
__global__ void __launch_bounds__(kDirectThreads, C::kBlocks) direct_kernel(TiledArgs a) {
  constexpr int kX = C::kX, kN = C::kN;
  constexpr int kRowsOnce = kDirectThreads / (kStage / 4), kLoads = (kX + kRowsOnce - 1) / kRowsOnce;
  __shared__ float4 staged[2][kX][kStage / 4];
  // Weights of 16 bits leave none for where their rows are either.
  constexpr bool kRoom = C::kRoom, kWeightRoom = kRoom || F::kCoded;
  __shared__ unsigned w_begin[kWeightRoom ? 1 : C::kOutputs], x_begin[kRoom ? 1 : kLoads * kRowsOnce];

  const int thread = threadIdx.x, lane = thread % 32, sharer = lane / 2 % kSharers;
  const int own_n = thread / 32 * (kSharing * kN) + lane % 2 + lane / (2 * kSharers) * 2;
  // A thread's float4 of x; the two of a lane lie kSharers apart, so that its neighbors' are next to them.
  const int x_own = thread / (kStage / 4), x_quad = thread % (kStage / 4);
  const int x_slot = x_quad % 2 * kSharers + x_quad / 2;

  __shared__ Part part;
  if (thread == 0) part.start(a, kX);
  __syncthreads();
  bool more = part.at < part.last;
  __syncthreads();
#pragma unroll 1
  while (more) {
    if (thread == 0) part.next(a, kX, C::kOutputs, kSharers);
    __syncthreads();
    const int first_x = part.first_x, begin = part.begin, end = part.end;

    // Beside the fixed rows: two that take part where bit 1 of their number is set, and one where bit 0 is. Each has a
    // place of its own; place p is for row row_of(p) of the tile. What lies past the tile's rows is not stored.
    const int loose = a.experts.sorted_rows ? kX - C::kFixed : max(min(a.rows - first_x, kX) - C::kFixed, 0);
    const auto row_of = [&](int p) { return p == kX - 1 && !(loose & 2) ? C::kFixed : p; };

    // Rows past the last are the last again, and their sums are not stored; past the last column x is zero.
    const auto weight_row = [&](int n) { return part.weight_row + min(part.first_n + n, a.n - 1); };
    const auto begin_of_x = [&](int p) { return x_row(a, first_x, min(row_of(p), kX - 1)) * a.chunks * (kChunk / 4); };
    int mine = begin + sharer;  // this lane's chunk
    int x_chunk = begin + x_quad / 2;
    unsigned x_column = begin * (kChunk / 4) + x_quad;  // in float4
    unsigned w_at[kN], x_at[kLoads];
#pragma unroll
    for (int i = 0; i < kN; ++i) w_at[i] = weight_row(own_n + i * kSharing) * a.chunks + mine;
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (kRoom) x_at[j] = begin_of_x(x_own + j * kRowsOnce) + x_column;
    if (!kWeightRoom && thread < C::kOutputs) w_begin[thread] = weight_row(thread) * a.chunks;
    if (!kRoom && thread < kLoads * kRowsOnce) x_begin[thread] = begin_of_x(thread);
    if (!kRoom) __syncthreads();
    const auto chunk_of = [&](int i) { return kWeightRoom ? w_at[i] : w_begin[own_n + i * kSharing] + mine; };
    typename F::Raw next[kN] = {};
    typename F::Scaled scaled[kN];
    const auto scale_by = [&](int i, unsigned from) {
      scaled[i].set(__half2float(__ldg(a.scales + from)), a.zeros ? __half2float(__ldg(a.zeros + from)) : F::kMiddle);
    };
    int group = min(mine, end - 1) >> a.group_shift;
    // Codes of the next chunk, and its scales if there is room: the place of a chunk's is chunk >> a.group_shift, since
    // a row with several groups has a power of two of chunks in each.
    __half scale[kN], zero[kN];
    bool fresh = false;  // they have come, and `scaled` is not made of them yet
    const auto fetch = [&] {
      if (mine < end) {
#pragma unroll
        for (int i = 0; i < kN; ++i) next[i] = __ldg(static_cast<const typename F::Raw*>(a.weight) + chunk_of(i));
        const int now = mine >> a.group_shift;
        if (F::kCoded && kRoom && now != group) {
#pragma unroll
          for (int i = 0; i < kN; ++i) {
            scale[i] = __ldg(a.scales + (chunk_of(i) >> a.group_shift));
            if (a.zeros) zero[i] = __ldg(a.zeros + (chunk_of(i) >> a.group_shift));
          }
          group = now, fresh = true;
        }
      }
      mine += kSharers;
#pragma unroll
      for (int i = 0; i < kN; ++i) w_at[i] += kSharers;
    };
    // Before the chunk that fetch has read is multiplied.
    const auto rescale = [&] {
      if (kRoom) {
        if (!fresh) return;
#pragma unroll
        for (int i = 0; i < kN; ++i)
          scaled[i].set(__half2float(scale[i]), a.zeros ? __half2float(zero[i]) : F::kMiddle);
        fresh = false;
        return;
      }
      const int now = (mine - kSharers) >> a.group_shift;
      if (now == group || mine - kSharers >= end) return;
#pragma unroll
      for (int i = 0; i < kN; ++i) scale_by(i, (chunk_of(i) - kSharers) >> a.group_shift);
      group = now;
    };

    // The multiplication of one or two quads hides the loads of its share of x.
    constexpr int kShares = 2 / C::kTogether, kOnce = (kLoads + kShares - 1) / kShares;
    // Either says the same; ptxas spills with the other one.
    const unsigned x_end = end * (kChunk / 4);
    const auto inside = [&] { return F::kCoded ? x_chunk < end : x_column < x_end; };
    float4 coming[kOnce];
    const auto load_x = [&](int first) {
#pragma unroll
      for (int j = first; j < first + kOnce && j < kLoads; ++j) {
        coming[j - first] = make_float4(0.f, 0.f, 0.f, 0.f);
        const unsigned at = kRoom ? x_at[j] : x_begin[x_own + j * kRowsOnce] + x_column;
        if (inside()) coming[j - first] = __ldg(reinterpret_cast<const float4*>(a.x) + at);
        x_at[j] += kStage / 4;
      }
    };
    const auto store_x = [&](int buffer, int first) {
#pragma unroll
      for (int j = first; j < first + kOnce && j < kLoads; ++j)
        if (kX % kRowsOnce == 0 || x_own + j * kRowsOnce < kX) {
          const float4 v = coming[j - first];
          constexpr float kLift = F::kCoded ? 1.f / kLowered : 1.f;
          staged[buffer][x_own + j * kRowsOnce][x_slot] =
              make_float4(v.x * kLift, v.y * kLift, v.z * kLift, v.w * kLift);
        }
    };

    constexpr int kAtOnce = kSharers / kN;  // rows of x whose sums meet at once
    float sums[(kX + kX % kAtOnce) * kN] = {};  // the row of the weight is the faster index
    // Of lanes that never have a column too: nothing times not a number is not a number.
#pragma unroll
    for (int i = 0; i < kN; ++i)
      if (F::kCoded) scale_by(i, weight_row(own_n + i * kSharing) * a.groups + group);
    fetch();
#pragma unroll
    for (int first = 0; first < kLoads; first += kOnce) {
      load_x(first);
      store_x(0, first);
    }
    x_chunk += kSharers, x_column += kStage / 4;
    __syncthreads();
    int buffer = 0;
#pragma unroll 1
    for (int chunk = begin; chunk < end; chunk += kSharers, buffer ^= 1) {
      if (F::kCoded) rescale();
      typename F::Raw raw[kN];
#pragma unroll
      for (int i = 0; i < kN; ++i) raw[i] = next[i];
      const float4* from = &staged[buffer][0][sharer];
      fetch();
#pragma unroll
      for (int quad = 0; quad < 2; quad += C::kTogether) {
        const int first = quad / C::kTogether * kOnce;
        load_x(first);
        float w[C::kTogether][kN][4];
#pragma unroll
        for (int q = 0; q < C::kTogether; ++q)
#pragma unroll
          for (int i = 0; i < kN; ++i) F::take(w[q][i], raw[i], scaled[i]);
        const auto multiply = [&](int first, int last) {
#pragma unroll
          for (int q = 0; q < C::kTogether; ++q)
#pragma unroll
            for (int m = first; m < last; ++m) {
              const float4 v = from[m * (kStage / 4) + (quad + q) * kSharers];
#pragma unroll
              for (int i = 0; i < kN; ++i) {
                float& sum = sums[m * kN + i];
                sum = fmaf(w[q][i][0], v.x, sum);
                sum = fmaf(w[q][i][1], v.y, sum);
                sum = fmaf(w[q][i][2], v.z, sum);
                sum = fmaf(w[q][i][3], v.w, sum);
              }
            }
        };
        multiply(0, C::kFixed);
        if (loose & 2) multiply(C::kFixed, kX - 1);
        if (loose & 1) multiply(kX - 1, kX);
        store_x(buffer ^ 1, first);
      }
      x_chunk += kSharers, x_column += kStage / 4;
      __syncthreads();
    }

    // Eight sums at a time: each of the lanes that share rows of the weight ends up with one of them.
    static_assert(kSharers % kN == 0 && kAtOnce == 2, "whole rows of x");
    const int own_to = own_n + sharer % kN * kSharing, to_n = part.first_n + own_to, slot = part.slot;
    float* const sums_at = a.sums + slot * static_cast<size_t>(kX * C::kOutputs) + own_to;
#pragma unroll
    for (int m = 0; m < kX; m += kAtOnce) {
      float eight[kSharers];
#pragma unroll
      for (int i = 0; i < kSharers; ++i) eight[i] = sums[m * kN + i];
      exchange(eight, 4, lane, 8);
      exchange(eight, 2, lane, 4);
      exchange(eight, 1, lane, 2);
      const int p = m + sharer / kN, to = row_of(p);
      // With one row the places of two have none, and with two the place of one.
      if (p < C::kFixed || (p < kX - 1 ? loose & 2 : p < kX && loose & 1))
        put(a, slot < 0 ? nullptr : sums_at + to * C::kOutputs, first_x, to, to_n, eight[0] * a.factor);
    }
    more = part.at < part.last;
    __syncthreads();
  }
}

template <typename F, typename C>
struct Direct {
  static constexpr int kX = C::kX, kOutputs = C::kOutputs, kThreads = kDirectThreads, kStep = kSharers;
  static constexpr auto kernel() { return direct_kernel<F, C>; }
};

}  // namespace
}  // namespace kepler
