#include "ops/token/token.h"

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Columns of a mean summed at a time, in float64 on the stack.
constexpr int64_t kTileColumns = 512;

struct Geometry {
  int64_t sequences, length, width;
};

Geometry geometry(const char* who, const View& sequences, const View& tokens) {
  check_rank(who, "sequences", sequences, 3);
  const Geometry g = {sequences.extent(0), sequences.extent(1), sequences.extent(2)};
  check_elements(who, "tokens", tokens, g.sequences * g.width);
  return g;
}

void check_index(const char* who, int64_t index, int64_t length) {
  if (index >= 0 && index < length) return;
  fail("ERR_ARGUMENT", "%s: index must be in [0, %lld), got %lld", who,
       static_cast<long long>(length), static_cast<long long>(index));
}

// y (n) = (1/T) Σ_t x[t], rows `stride` apart; n <= kTileColumns.
void mean_tile(const float* x, int64_t length, int64_t stride, int64_t n, float* y) {
  double sum[kTileColumns] = {};
  add_rows_float64(x, length, stride, n, sum);
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(sum[i] / static_cast<double>(length));
}

}  // namespace

void token_select_forward(Stream& stream, In x, int64_t index, Out y) {
  constexpr char kName[] = "token_select_forward";
  const Geometry g = geometry(kName, x, y);
  check_index(kName, index, g.length);
  const float* x_data = x.data();
  float* y_data = y.data();
  const Partition part = partition(g.sequences, g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t b = part.begin(task); b < part.end(task); ++b) {
      std::memcpy(y_data + b * g.width, x_data + (b * g.length + index) * g.width,
                  static_cast<size_t>(g.width) * sizeof(float));
    }
  });
}

void token_select_backward(Stream& stream, In dy, int64_t index, Out dx) {
  constexpr char kName[] = "token_select_backward";
  const Geometry g = geometry(kName, dx, dy);
  check_index(kName, index, g.length);
  const float* dy_data = dy.data();
  float* dx_data = dx.data();
  const Partition part = partition(g.sequences * g.length, g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t row = part.begin(task); row < part.end(task); ++row) {
      float* out = dx_data + row * g.width;
      const size_t bytes = static_cast<size_t>(g.width) * sizeof(float);
      if (row % g.length == index) {
        std::memcpy(out, dy_data + row / g.length * g.width, bytes);
      } else {
        std::memset(out, 0, bytes);
      }
    }
  });
}

void token_write(Stream& stream, In token, In positions, InOut y) {
  constexpr char kName[] = "token_write";
  const Geometry g = geometry(kName, y, token);
  check_elements(kName, "positions", positions, g.sequences);
  const float* token_data = token.data();
  const int32_t* positions_data = positions.data<int32_t>();
  float* y_data = y.data();
  for (int64_t b = 0; b < g.sequences; ++b) check_index(kName, positions_data[b], g.length);
  const Partition part = partition(g.sequences, g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t b = part.begin(task); b < part.end(task); ++b) {
      std::memcpy(y_data + (b * g.length + positions_data[b]) * g.width, token_data + b * g.width,
                  static_cast<size_t>(g.width) * sizeof(float));
    }
  });
}

void token_mean_forward(Stream& stream, In x, Out y) {
  const Geometry g = geometry("token_mean_forward", x, y);
  const float* x_data = x.data();
  float* y_data = y.data();
  const int64_t tiles = (g.width + kTileColumns - 1) / kTileColumns;
  const Partition part = partition(g.sequences * tiles, g.length * kTileColumns);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t item = part.begin(task); item < part.end(task); ++item) {
      const int64_t b = item / tiles;
      const int64_t begin = item % tiles * kTileColumns;
      const int64_t n = g.width - begin < kTileColumns ? g.width - begin : kTileColumns;
      mean_tile(x_data + b * g.length * g.width + begin, g.length, g.width, n,
                y_data + b * g.width + begin);
    }
  });
}

void token_mean_backward(Stream& stream, In dy, Out dx) {
  const Geometry g = geometry("token_mean_backward", dx, dy);
  const float* dy_data = dy.data();
  float* dx_data = dx.data();
  const float scale = static_cast<float>(1.0 / static_cast<double>(g.length));
  const Partition part = partition(g.sequences * g.length, g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t row = part.begin(task); row < part.end(task); ++row) {
      const float* from = dy_data + row / g.length * g.width;
      float* to = dx_data + row * g.width;
      int64_t i = 0;
      for (; i + kLanes <= g.width; i += kLanes) store(to + i, splat(scale) * load(from + i));
      for (; i < g.width; ++i) to[i] = scale * from[i];
    }
  });
}

}  // namespace siglip::SIGLIP_CPU
