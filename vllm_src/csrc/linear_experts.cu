// Products of a few rows of x with the matrices of a mixture's experts, stored in fewer bits than float32.
//
// The rows are those of moe.cu, sorted by expert into tiles of 1, 2 or 4: a tile reads its expert's matrix once. Tiles
// of one row are not sorted at all: row r is for expert tile_experts[r].
#include "linear.cuh"

namespace kepler {
namespace {

template <typename F, int kRows, bool kZeros>
void launch(const LinearArgs& a, cudaStream_t stream, int tiles) {
  using C = typename Best<F, kRows>::type;
  constexpr int kRowsOfBlock = C::kTeams * C::kOut;
  const dim3 grid((a.n + kRowsOfBlock - 1) / kRowsOfBlock, tiles);
  linear_kernel<F, kRows, kZeros, C, true><<<grid, C::kThreads, 0, stream>>>(a);
}

template <typename F, bool kZeros>
int product(const LinearArgs& a, int tile, cudaStream_t stream, int tiles) {
  const auto launched = tile == 1   ? launch<F, 1, kZeros>
                        : tile == 2 ? launch<F, 2, kZeros>
                                    : launch<F, 4, kZeros>;
  launched(a, stream, tiles);
  return cudaGetLastError();
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_moe_linear(float* out, const float* x, const void* weight, const void* scales, const void* zeros,
                                 float unit, int bits, int group, const float* row_scales, const int* sorted_rows,
                                 const int* tile_experts, const int* num_sorted, int num_rows, int num_experts, int n,
                                 int k, int rows_per_x, int tile, void* stream) {
  using namespace kepler;
  const bool coded = bits == 4 || bits == 8;
  if (num_rows <= 0 || num_experts <= 0 || n <= 0 || k <= 0 || rows_per_x <= 0 || !aligned16(x) || !aligned16(weight) ||
      (tile != 1 && tile != 2 && tile != 4) || (!coded && bits != 16) ||
      k % (coded ? Int4::kColumns : Half::kColumns) || (coded && shift_of(group, k) < 0))
    return cudaErrorInvalidValue;
  const int tiles = kepler_moe_capacity(num_rows, num_experts, tile) / tile, groups = coded ? k / group : 0;
  // Indices of scales and of x are of 32 bits.
  if (tiles > 65535 || static_cast<long long>(num_rows) * k > 0x7fffffffLL ||
      static_cast<long long>(num_experts) * n * (groups + 1) > 0x7fffffffLL)
    return cudaErrorInvalidValue;
  const LinearArgs a = {out, x, weight, static_cast<const __half*>(scales), static_cast<const __half*>(zeros),
                        coded ? unit * kInverseBit : 1.f, tile, n, k, groups,
                        coded ? shift_of(group, k) - (bits == 4 ? 5 : 4) : 0,
                        {sorted_rows, tile_experts, num_sorted, row_scales, num_rows, rows_per_x, num_experts}};
  const auto launched = bits == 16  ? product<Half, false>
                        : bits == 8 ? (zeros ? product<Int8, true> : product<Int8, false>)
                                    : (zeros ? product<Int4, true> : product<Int4, false>);
  return launched(a, tile, static_cast<cudaStream_t>(stream), tiles);
}
