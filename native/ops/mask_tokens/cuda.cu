#include "ops/mask_tokens/mask_tokens.h"

#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

using device::kWarpThreads;
using device::lane_index;
using device::warp_index;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kSumWarps = 32;

struct Geometry {
  int64_t tokens, width;
};

Geometry geometry(const char* who, const View& tokens, const View& mask, const View& token) {
  check_rank(who, "tokens", tokens, 3);
  const Geometry g = {tokens.extent(0) * tokens.extent(1), tokens.extent(2)};
  check_elements(who, "mask", mask, g.tokens);
  check_elements(who, "token", token, g.width);
  return g;
}

unsigned blocks_of(int64_t warps) { return static_cast<unsigned>((warps + kWarps - 1) / kWarps); }

// y[t] = mask[t] ? token : x[t], zero without a token; a warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    replace_rows(const T* __restrict__ x, const uint8_t* __restrict__ mask,
                 const float* __restrict__ token, int64_t tokens, int64_t width,
                 T* __restrict__ y) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= tokens) return;
  const bool masked = mask[row] != 0;
  for (int64_t d = lane_index(); d < width; d += kWarpThreads) {
    const float instead = token == nullptr ? 0.0F : token[d];
    y[row * width + d] = masked ? device::from_float<T>(instead) : x[row * width + d];
  }
}

// The sum of masked rows: a block for 32 columns, its warps every 32nd row.
template <typename T>
__global__ void __launch_bounds__(kSumWarps* kWarpThreads)
    sum_masked(const T* __restrict__ dy, const uint8_t* __restrict__ mask, int64_t tokens,
               int64_t width, float* __restrict__ dtoken) {
  __shared__ float sums[kSumWarps][kWarpThreads];
  const int64_t column = int64_t{blockIdx.x} * kWarpThreads + lane_index();
  float sum = 0.0F;
  if (column < width) {
    for (int64_t t = warp_index(); t < tokens; t += kSumWarps) {
      if (mask[t] != 0) sum += device::to_float(dy[t * width + column]);
    }
  }
  sums[warp_index()][lane_index()] = sum;
  __syncthreads();
  if (warp_index() > 0 || column >= width) return;
  for (int w = 1; w < kSumWarps; ++w) sum += sums[w][lane_index()];
  dtoken[column] = sum;
}

}  // namespace

void mask_tokens_forward(Stream& stream, In x, In mask, In token, Out y) {
  constexpr char kName[] = "mask_tokens_forward";
  const Geometry g = geometry(kName, x, mask, token);
  check_elements(kName, "y", y, g.tokens * g.width);
  check_dtype(kName, "y", y, x.dtype());
  const auto* mask_data = mask.data<uint8_t>();
  const float* token_data = token.data();
  if (g.tokens == 0) return;
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    replace_rows<<<blocks_of(g.tokens), kThreads, 0, stream.cuda().stream>>>(
        elements_of<T>(x), mask_data, token_data, g.tokens, g.width, elements_of<T>(y));
    check_launch(kName);
  });
}

void mask_tokens_backward(Stream& stream, In dy, In mask, Out dx, Out dtoken) {
  constexpr char kName[] = "mask_tokens_backward";
  const Geometry g = geometry(kName, dy, mask, dtoken);
  check_elements(kName, "dx", dx, g.tokens * g.width);
  check_dtype(kName, "dx", dx, dy.dtype());
  const auto* mask_data = mask.data<uint8_t>();
  float* dtoken_data = dtoken.data();
  if (g.tokens == 0 || g.width == 0) return;
  with_type(kName, "dy", dy, [&](auto type) {
    using T = decltype(type);
    const auto columns = static_cast<unsigned>((g.width + kWarpThreads - 1) / kWarpThreads);
    replace_rows<T><<<blocks_of(g.tokens), kThreads, 0, stream.cuda().stream>>>(
        elements_of<T>(dy), mask_data, nullptr, g.tokens, g.width, elements_of<T>(dx));
    check_launch(kName);
    sum_masked<<<columns, kSumWarps * kWarpThreads, 0, stream.cuda().stream>>>(
        elements_of<T>(dy), mask_data, g.tokens, g.width, dtoken_data);
    check_launch(kName);
  });
}

}  // namespace siglip::cuda
