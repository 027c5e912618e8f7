// What the kernels that keep their own tiles of products in cache share (attention, the sigmoid
// loss). One operand is a panel: up to kPanel columns side by side in the lanes, one row after the
// other, (depth, kPanel). The other is read in place, a scalar at a time.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {

// A register tile is rows of scalars times one to kTileVectors vectors. Its sums take as many
// registers as leave room for the operands (there are 16; 32 with AVX-512).
#if defined(SIGLIP_ISA_AVX512)
inline constexpr int kTileVectors = 3;
inline constexpr int kTileSums = 24;
#elif defined(SIGLIP_ISA_AVX2)
inline constexpr int kTileVectors = 3;
inline constexpr int kTileSums = 12;
#else
inline constexpr int kTileVectors = 2;
inline constexpr int kTileSums = 8;
#endif
template <int kVectors>
inline constexpr int kTileRows = kTileSums / kVectors < 8 ? kTileSums / kVectors : 8;

inline constexpr int64_t kPanel = kTileVectors * kLanes;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- Parts -------------------------------------------------------------------------------------

// A range cut into parts of nearly equal size.
struct Parts {
  int64_t size;
  int64_t count;

  int64_t begin(int64_t part) const { return size * part / count; }
  int64_t end(int64_t part) const { return size * (part + 1) / count; }
};

// The fewest parts of at most `most`.
static inline Parts cut(int64_t size, int64_t most) { return {size, ceil_div(size, most)}; }

// The same with borders at multiples of a vector; `most` is such a multiple.
struct LaneParts {
  int64_t size;
  Parts vectors;

  int64_t count() const { return vectors.count; }
  int64_t begin(int64_t part) const { return vectors.begin(part) * kLanes; }
  int64_t end(int64_t part) const { return smaller(size, vectors.end(part) * kLanes); }
};

static inline LaneParts cut_lanes(int64_t size, int64_t most) {
  return {size, cut(ceil_div(size, kLanes), most / kLanes)};
}

static inline LaneParts cut_panels(int64_t size) { return cut_lanes(size, kPanel); }

template <int kNumber>
struct Constant {
  static constexpr int value = kNumber;
};

// body(Constant<n>()) for 1 <= n <= kMost.
template <int kMost, typename Body>
inline void with_constant(int64_t n, const Body& body) {
  if constexpr (kMost > 1) {
    if (n < kMost) {
      with_constant<kMost - 1>(n, body);
      return;
    }
  }
  body(Constant<kMost>());
}

// body(first row, Constant<rows>()) over the tiles of `rows` rows. They are of nearly equal height,
// as a tile of one row takes as long as one of four.
template <int kVectors, typename Body>
inline void for_tiles(int64_t rows, const Body& body) {
  if (rows < 1) return;
  const int64_t tiles = ceil_div(rows, kTileRows<kVectors>);
  const int64_t height = rows / tiles;
  const int64_t higher = rows % tiles;  // tiles of one row more
  int64_t first = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t count = height + (tile < higher ? 1 : 0);
    with_constant<kTileRows<kVectors>>(count, [&](auto constant) { body(first, constant); });
    first += count;
  }
}

// body(panel, first column, columns, Constant<vectors>()) over the panels of `columns` columns.
template <typename Body>
inline void for_panels(int64_t columns, const Body& body) {
  const LaneParts panels = cut_panels(columns);
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t first = panels.begin(panel);
    const int64_t size = panels.end(panel) - first;
    with_constant<kTileVectors>(ceil_div(size, kLanes),
                                [&](auto vectors) { body(panel, first, size, vectors); });
  }
}

// ---- Products ----------------------------------------------------------------------------------

// sum[i][j] += Σ_k a[i · row_step + k · depth_step] · b[k · b_step + j-th vector]
template <int kRows, int kVectors>
[[gnu::always_inline]] inline void multiply(int64_t depth, const float* a, int64_t row_step,
                                            int64_t depth_step, const float* b, int64_t b_step,
                                            Vec (&sum)[kRows][kVectors]) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec vector[kVectors];
    for (int j = 0; j < kVectors; ++j) vector[j] = load(b + k * b_step + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Vec scalar = splat(a[i * row_step + k * depth_step]);
      for (int j = 0; j < kVectors; ++j) sum[i][j] = multiply_add(scalar, vector[j], sum[i][j]);
    }
  }
}

template <int kRows, int kVectors>
inline void load_tile(const float* p, int64_t stride, Vec (&tile)[kRows][kVectors]) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) tile[i][j] = load(p + i * stride + j * kLanes);
  }
}
template <int kRows, int kVectors>
inline void store_tile(const Vec (&tile)[kRows][kVectors], float* p, int64_t stride) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) store(p + i * stride + j * kLanes, tile[i][j]);
  }
}

// ---- Panels ------------------------------------------------------------------------------------

// Lanes of the j-th vector of a panel.
static inline IntVec lane_numbers(int j) {
  IntVec number;
  for (int i = 0; i < kLanes; ++i) number[i] = j * kLanes + i;
  return number;
}

// The first n lanes, n >= 1 of any size.
static inline Vec load_up_to(const float* p, int64_t n) {
  return n >= kLanes ? load(p) : load_partial(p, n);
}
static inline void store_up_to(float* p, Vec v, int64_t n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_partial(p, v, n);
  }
}

// Rows of a matrix, `stride` elements apart.
struct Rows {
  const float* data;
  int64_t stride;

  const float* at(int64_t row) const { return data + row * stride; }
};

using LaneIndices = std::make_integer_sequence<int, kLanes>;

#if defined(__clang__)
#define SIGLIP_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SIGLIP_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// Of every 2 · kSpan lanes: the first halves of a and b, or the second halves.
template <int kSpan, int... kLane>
inline Vec first_halves(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  return SIGLIP_SHUFFLE(a, b, ((kLane & kSpan) != 0 ? kLanes + kLane - kSpan : kLane)...);
}
template <int kSpan, int... kLane>
inline Vec second_halves(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  return SIGLIP_SHUFFLE(a, b, ((kLane & kSpan) != 0 ? kLanes + kLane : kLane + kSpan)...);
}

#undef SIGLIP_SHUFFLE

template <int kSpan = kLanes / 2>
inline void transpose(Vec (&v)[kLanes]) {
  if constexpr (kSpan > 0) {
    for (int i = 0; i < kLanes; ++i) {
      if ((i & kSpan) != 0) continue;
      const Vec a = v[i];
      const Vec b = v[i + kSpan];
      v[i] = first_halves<kSpan>(a, b, LaneIndices());
      v[i + kSpan] = second_halves<kSpan>(a, b, LaneIndices());
    }
    transpose<kSpan / 2>(v);
  }
}

// panel[d][i] = factor · rows[i][d] for i < count; the lanes after those, up to kVectors vectors,
// become zero. The panel has `width` rows, rounded up to whole vectors.
template <int kVectors>
void rows_to_lanes(Rows rows, int64_t count, int64_t width, float factor, float* panel) {
  for (int j = 0; j < kVectors; ++j) {
    const int64_t first = j * kLanes;
    for (int64_t d = 0; d < width; d += kLanes) {
      Vec v[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        v[i] = first + i < count ? load_up_to(rows.at(first + i) + d, width - d) : Vec{};
      }
      transpose(v);
      for (int i = 0; i < kLanes; ++i)
        store(panel + (d + i) * kPanel + first, v[i] * splat(factor));
    }
  }
}

// rows[i][d] = factor[i] · panel[d][i] for i < count, stride elements from row to row.
template <int kVectors>
void lanes_to_rows(const float* panel, const Vec (&factor)[kVectors], int64_t count, int64_t width,
                   float* rows, int64_t stride) {
  for (int j = 0; j < kVectors; ++j) {
    const int64_t first = j * kLanes;
    for (int64_t d = 0; d < width; d += kLanes) {
      Vec v[kLanes];
      for (int i = 0; i < kLanes; ++i) v[i] = load(panel + (d + i) * kPanel + first) * factor[j];
      transpose(v);
      for (int i = 0; i < kLanes && first + i < count; ++i) {
        store_up_to(rows + (first + i) * stride + d, v[i], width - d);
      }
    }
  }
}

// ---- Scratch -----------------------------------------------------------------------------------

// Hands out parts of the scratch, each on its own cache lines; without a base it only counts, so
// that one function serves a kernel and its scratch size.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}

  template <typename T>
  T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return part;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  size_t bytes_ = 0;
};

}  // namespace siglip::SIGLIP_CPU
