#include "ops/token/token.h"

#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

using device::Floats;
using device::kWarpThreads;
using device::lane_index;
using device::warp_index;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;

struct Geometry {
  int64_t sequences, length, width;
};

Geometry geometry(const char* who, const View& sequences, const View& tokens) {
  check_rank(who, "sequences", sequences, 3);
  const Geometry g = {sequences.extent(0), sequences.extent(1), sequences.extent(2)};
  check_elements(who, "tokens", tokens, g.sequences * g.width);
  check_dtype(who, "tokens", tokens, sequences.dtype());
  return g;
}

void check_index(const char* who, int64_t index, int64_t length) {
  if (index >= 0 && index < length) return;
  fail("ERR_ARGUMENT", "%s: index must be in [0, %lld), got %lld", who,
       static_cast<long long>(length), static_cast<long long>(index));
}

// Blocks for `warps` warps.
unsigned blocks_of(int64_t warps) { return static_cast<unsigned>((warps + kWarps - 1) / kWarps); }

// y[b] = x[b, index], in words; a warp a row.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    select_rows(const Word* __restrict__ x, int64_t sequences, int64_t length, int64_t words,
                int64_t index, Word* __restrict__ y) {
  const int64_t b = int64_t{blockIdx.x} * kWarps + warp_index();
  if (b >= sequences) return;
  const Word* from = x + (b * length + index) * words;
  for (int64_t i = lane_index(); i < words; i += kWarpThreads) y[b * words + i] = from[i];
}

// dx[b, index] = dy[b], zeros elsewhere; a warp a row.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    place_rows(const Word* __restrict__ dy, int64_t sequences, int64_t length, int64_t words,
               int64_t index, Word* __restrict__ dx) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= sequences * length) return;
  const int64_t b = row / length;
  const bool chosen = row % length == index;
  for (int64_t i = lane_index(); i < words; i += kWarpThreads) {
    dx[row * words + i] = chosen ? dy[b * words + i] : Word{};
  }
}

// y[b, positions[b]] = token[b]; a warp a row. A position outside of the sequence writes nothing.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    write_rows(const Word* __restrict__ token, const int32_t* __restrict__ positions,
               int64_t sequences, int64_t length, int64_t words, Word* __restrict__ y) {
  const int64_t b = int64_t{blockIdx.x} * kWarps + warp_index();
  if (b >= sequences || positions[b] < 0 || positions[b] >= length) return;
  Word* to = y + (b * length + positions[b]) * words;
  for (int64_t i = lane_index(); i < words; i += kWarpThreads) to[i] = token[b * words + i];
}

// body(words of a row, Word{}) with the widest words that rows of so many bytes at these addresses
// allow.
template <typename Body>
void with_words(int64_t bytes, const void* from, const void* to, const Body& body) {
  const auto bits = static_cast<uintptr_t>(bytes) | reinterpret_cast<uintptr_t>(from) |
                    reinterpret_cast<uintptr_t>(to);
  if (bits % 16 == 0) {
    body(bytes / 16, uint4{});
  } else if (bits % 4 == 0) {
    body(bytes / 4, uint32_t{});
  } else {
    body(bytes / 2, uint16_t{});
  }
}

// A block a sequence and kVector columns a lane, its warps every eighth token.
template <int kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    mean_rows(const T* __restrict__ x, int64_t length, int64_t width, T* __restrict__ y) {
  __shared__ Floats<kVector> sums[kWarps][kWarpThreads];
  const int64_t b = blockIdx.x;
  const int64_t column = (int64_t{blockIdx.y} * kWarpThreads + lane_index()) * kVector;
  Floats<kVector> sum = device::splat<kVector>(0.0F);
  if (column < width) {
    const T* from = x + b * length * width + column;
#pragma unroll 4
    for (int64_t t = warp_index(); t < length; t += kWarps) {
      const Floats<kVector> row = device::load<kVector>(from + t * width);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum[i] += row[i];
    }
  }
  sums[warp_index()][lane_index()] = sum;
  __syncthreads();
  if (warp_index() > 0 || column >= width) return;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] += sums[w][lane_index()][i];
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] /= static_cast<float>(length);
  device::store(y + b * width + column, sum);
}

// dx[b, t] = scale · dy[b]; a warp a row.
template <int kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    repeat_scaled(const T* __restrict__ dy, int64_t rows, int64_t length, int64_t width,
                  float scale, T* __restrict__ dx) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= rows) return;
  const T* from = dy + row / length * width;
  for (int64_t d = lane_index() * kVector; d < width; d += kWarpThreads * kVector) {
    Floats<kVector> values = device::load<kVector>(from + d);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] *= scale;
    device::store(dx + row * width + d, values);
  }
}

}  // namespace

void token_select_forward(Stream& stream, In x, int64_t index, Out y) {
  constexpr char kName[] = "token_select_forward";
  const Geometry g = geometry(kName, x, y);
  check_index(kName, index, g.length);
  const auto bytes = g.width * static_cast<int64_t>(size_of(x.dtype()));
  with_words(bytes, x.bytes(), y.bytes(), [&](int64_t words, auto word) {
    using Word = decltype(word);
    select_rows<<<blocks_of(g.sequences), kThreads, 0, stream.cuda().stream>>>(
        elements_of<Word>(x), g.sequences, g.length, words, index, elements_of<Word>(y));
    check_launch("select_rows");
  });
}

void token_select_backward(Stream& stream, In dy, int64_t index, Out dx) {
  constexpr char kName[] = "token_select_backward";
  const Geometry g = geometry(kName, dx, dy);
  check_index(kName, index, g.length);
  const auto bytes = g.width * static_cast<int64_t>(size_of(dx.dtype()));
  with_words(bytes, dy.bytes(), dx.bytes(), [&](int64_t words, auto word) {
    using Word = decltype(word);
    place_rows<<<blocks_of(g.sequences * g.length), kThreads, 0, stream.cuda().stream>>>(
        elements_of<Word>(dy), g.sequences, g.length, words, index, elements_of<Word>(dx));
    check_launch("place_rows");
  });
}

void token_write(Stream& stream, In token, In positions, InOut y) {
  constexpr char kName[] = "token_write";
  const Geometry g = geometry(kName, y, token);
  check_elements(kName, "positions", positions, g.sequences);
  const auto bytes = g.width * static_cast<int64_t>(size_of(y.dtype()));
  with_words(bytes, token.bytes(), y.bytes(), [&](int64_t words, auto word) {
    using Word = decltype(word);
    write_rows<<<blocks_of(g.sequences), kThreads, 0, stream.cuda().stream>>>(
        elements_of<Word>(token), positions.data<int32_t>(), g.sequences, g.length, words,
        elements_of<Word>(y));
    check_launch("write_rows");
  });
}

void token_mean_forward(Stream& stream, In x, Out y) {
  constexpr char kName[] = "token_mean_forward";
  const Geometry g = geometry(kName, x, y);
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    const T* x_data = elements_of<T>(x);
    T* y_data = elements_of<T>(y);
    constexpr int kVector = device::kElements16<T>;
    const bool vectors = g.width % kVector == 0 && device::aligned16(x_data, y_data);
    const int64_t columns = kWarpThreads * (vectors ? kVector : 1);
    const dim3 blocks(static_cast<unsigned>(g.sequences),
                      static_cast<unsigned>((g.width + columns - 1) / columns));
    const auto kernel = vectors ? mean_rows<kVector, T> : mean_rows<1, T>;
    kernel<<<blocks, kThreads, 0, stream.cuda().stream>>>(x_data, g.length, g.width, y_data);
    check_launch("mean_rows");
  });
}

void token_mean_backward(Stream& stream, In dy, Out dx) {
  constexpr char kName[] = "token_mean_backward";
  const Geometry g = geometry(kName, dx, dy);
  with_type(kName, "dy", dy, [&](auto type) {
    using T = decltype(type);
    const T* dy_data = elements_of<T>(dy);
    T* dx_data = elements_of<T>(dx);
    constexpr int kVector = device::kElements16<T>;
    const bool vectors = g.width % kVector == 0 && device::aligned16(dy_data, dx_data);
    const auto scale = static_cast<float>(1.0 / static_cast<double>(g.length));
    const int64_t rows = g.sequences * g.length;
    const auto kernel = vectors ? repeat_scaled<kVector, T> : repeat_scaled<1, T>;
    kernel<<<blocks_of(rows), kThreads, 0, stream.cuda().stream>>>(dy_data, rows, g.length, g.width,
                                                                   scale, dx_data);
    check_launch("repeat_scaled");
  });
}

}  // namespace siglip::cuda
