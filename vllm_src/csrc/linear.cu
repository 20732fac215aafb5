// Products of a few rows of x with a matrix stored in fewer bits than float32, and that matrix as float32.
#include <type_traits>

#include "linear_resident.cuh"

namespace kepler {
namespace {

// Rows of x that linear_kernel takes, and resident_kernel.
constexpr int kMaxRows = 4, kMaxResident = 8;

template <typename F, int kRows, bool kZeros>
void launch(const LinearArgs& a, cudaStream_t stream) {
  using C = typename Best<F, kRows>::type;
  constexpr int kRowsOfBlock = C::kTeams * C::kOut;
  linear_kernel<F, kRows, kZeros, C><<<(a.n + kRowsOfBlock - 1) / kRowsOfBlock, C::kThreads, 0, stream>>>(a);
}

// Packed weights; false where that kernel does not take them.
template <typename F, bool kZeros>
bool resident(const LinearArgs& a, cudaStream_t stream) {
  using More = typename std::conditional<std::is_same<F, Int4>::value, Int4Half, F>::type;
  const auto launched = a.rows == 1   ? launch_resident<F, 1, kZeros>
                        : a.rows == 2 ? launch_resident<F, 2, kZeros>
                        : a.rows <= 4 ? launch_resident<F, 4, kZeros>
                        : a.rows == 5 ? launch_resident<More, 5, kZeros>
                        : a.rows == 6 ? launch_resident<More, 6, kZeros>
                                      : launch_resident<More, 8, kZeros>;
  return launched(a, stream);
}
template <>
bool resident<Half, false>(const LinearArgs&, cudaStream_t) {
  return false;
}

template <typename F, bool kZeros>
int product(const LinearArgs& a, cudaStream_t stream) {
  if (!resident<F, kZeros>(a, stream)) {
    if (a.rows > kMaxRows) return cudaErrorInvalidValue;
    const auto launched =
        a.rows == 1 ? launch<F, 1, kZeros> : a.rows == 2 ? launch<F, 2, kZeros> : launch<F, 4, kZeros>;
    launched(a, stream);
  }
  return cudaGetLastError();
}

constexpr int kUnpackThreads = 256;

// 16 bytes of codes a thread, in one row of it after the other.
template <int kBits>
__global__ void __launch_bounds__(kUnpackThreads) unpack_kernel(float* out, const uint4* __restrict__ codes,
                                                                const __half* __restrict__ scales,
                                                                const __half* __restrict__ zeros, float unit, int n,
                                                                int k, int groups, int group_shift) {
  constexpr int kColumns = 128 / kBits;
  const long long i = static_cast<long long>(blockIdx.x) * kUnpackThreads + threadIdx.x;
  const int pieces = k / kColumns;
  if (i >= static_cast<long long>(n) * pieces) return;
  const int row = i / pieces, column = i % pieces * kColumns;
  const uint4 v = codes[i];
  const unsigned words[4] = {v.x, v.y, v.z, v.w};
  const long long at = static_cast<long long>(row) * groups + (column >> group_shift);
  const float scale = __half2float(scales[at]) * unit;
  const float zero = zeros ? __half2float(zeros[at]) : static_cast<float>(1 << (kBits - 1));
#pragma unroll
  for (int c = 0; c < kColumns; c += 4) {
    float four[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int bit = (c + j) * kBits;
      four[j] = (static_cast<float>(words[bit / 32] >> bit % 32 & ((1 << kBits) - 1)) - zero) * scale;
    }
    store4(out + i * kColumns + c, make_float4(four[0], four[1], four[2], four[3]));
  }
}

}  // namespace
}  // namespace kepler

extern "C" int kepler_linear_half(float* out, const float* x, const void* weight, int rows, int n, int k,
                                  void* stream) {
  using namespace kepler;
  if (rows <= 0 || rows > kMaxRows || n <= 0 || k <= 0 || k % Half::kColumns || !aligned16(x) ||
      !aligned16(weight))
    return cudaErrorInvalidValue;
  return product<Half, false>({out, x, weight, nullptr, nullptr, 1.f, rows, n, k, 0, 0},
                              static_cast<cudaStream_t>(stream));
}

extern "C" int kepler_linear_packed(float* out, const float* x, const void* codes, const void* scales,
                                    const void* zeros, float unit, int bits, int rows, int n, int k, int group,
                                    void* stream) {
  using namespace kepler;
  if (rows <= 0 || rows > kMaxResident || n <= 0 || k <= 0 || k % Int4::kColumns || (bits != 4 && bits != 8) ||
      shift_of(group, k) < 0 || !aligned16(x) || !aligned16(codes))
    return cudaErrorInvalidValue;
  const LinearArgs a = {out, x, codes, static_cast<const __half*>(scales), static_cast<const __half*>(zeros),
                        unit * kInverseBit, rows, n, k, k / group,
                        shift_of(group, k) - (bits == 4 ? 5 : 4)};
  const auto launched = bits == 4 ? (zeros ? product<Int4, true> : product<Int4, false>)
                                  : (zeros ? product<Int8, true> : product<Int8, false>);
  return launched(a, static_cast<cudaStream_t>(stream));
}

extern "C" int kepler_linear_unpack(float* out, const void* codes, const void* scales, const void* zeros, float unit,
                             int bits, int n, int k, int group, void* stream) {
  using namespace kepler;
  if (n <= 0 || k <= 0 || k % Int4::kColumns || (bits != 4 && bits != 8) || shift_of(group, k) < 0 ||
      !aligned16(codes) || !aligned16(out))
    return cudaErrorInvalidValue;
  const long long pieces = static_cast<long long>(n) * (k * bits / 128);
  const long long blocks = (pieces + kUnpackThreads - 1) / kUnpackThreads;
  if (blocks > 0x7fffffffLL) return cudaErrorInvalidValue;
  const auto kernel = bits == 4 ? unpack_kernel<4> : unpack_kernel<8>;
  kernel<<<static_cast<unsigned>(blocks), kUnpackThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      out, static_cast<const uint4*>(codes), static_cast<const __half*>(scales), static_cast<const __half*>(zeros),
      unit, n, k, k / group, shift_of(group, k));
  return cudaGetLastError();
}
