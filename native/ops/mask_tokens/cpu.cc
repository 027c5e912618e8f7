#include "ops/mask_tokens/mask_tokens.h"

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Columns of the token's gradient summed at a time, in float64 on the stack.
constexpr int64_t kTileColumns = 64;

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

}  // namespace

void mask_tokens_forward(Stream& stream, In x, In mask, In token, Out y) {
  constexpr char kName[] = "mask_tokens_forward";
  const Geometry g = geometry(kName, x, mask, token);
  check_elements(kName, "y", y, g.tokens * g.width);
  const float* x_data = x.data();
  const auto* mask_data = mask.data<uint8_t>();
  const float* token_data = token.data();
  float* y_data = y.data();
  const Partition part = partition(g.tokens, g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t t = part.begin(task); t < part.end(task); ++t) {
      std::memcpy(y_data + t * g.width, mask_data[t] != 0 ? token_data : x_data + t * g.width,
                  static_cast<size_t>(g.width) * sizeof(float));
    }
  });
}

void mask_tokens_backward(Stream& stream, In dy, In mask, Out dx, Out dtoken) {
  constexpr char kName[] = "mask_tokens_backward";
  const Geometry g = geometry(kName, dy, mask, dtoken);
  check_elements(kName, "dx", dx, g.tokens * g.width);
  const float* dy_data = dy.data();
  const auto* mask_data = mask.data<uint8_t>();
  float* dx_data = dx.data();
  float* dtoken_data = dtoken.data();
  const Partition part = partition(g.tokens, g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t t = part.begin(task); t < part.end(task); ++t) {
      const size_t bytes = static_cast<size_t>(g.width) * sizeof(float);
      if (mask_data[t] != 0) {
        std::memset(dx_data + t * g.width, 0, bytes);
      } else {
        std::memcpy(dx_data + t * g.width, dy_data + t * g.width, bytes);
      }
    }
  });
  const Partition columns =
      partition((g.width + kTileColumns - 1) / kTileColumns, g.tokens * kTileColumns);
  stream.parallel(columns.tasks(), [&](int64_t task, int) {
    for (int64_t tile = columns.begin(task); tile < columns.end(task); ++tile) {
      const int64_t begin = tile * kTileColumns;
      const int64_t count = g.width - begin < kTileColumns ? g.width - begin : kTileColumns;
      double sum[kTileColumns] = {};
      for (int64_t t = 0; t < g.tokens; ++t) {
        if (mask_data[t] == 0) continue;
        add_rows_float64(dy_data + t * g.width + begin, 1, g.width, count, sum);
      }
      for (int64_t i = 0; i < count; ++i) dtoken_data[begin + i] = static_cast<float>(sum[i]);
    }
  });
}

}  // namespace siglip::SIGLIP_CPU
