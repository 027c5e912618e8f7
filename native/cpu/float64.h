// Float64 partial sums of float32 lanes. A DoubleVec kept across a loop is two registers wide, and
// GCC holds it on the stack; two vectors of half the lanes stay in registers.
#pragma once

#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {

typedef double HalfDoubleVec __attribute__((vector_size(kLanes * 4)));

namespace unaligned {
typedef double HalfDoubleVec __attribute__((vector_size(kLanes * 4), aligned(8), may_alias));
}

// The lanes of one Vec in float64: low holds the first half.
struct Float64Vec {
  HalfDoubleVec low;
  HalfDoubleVec high;
};

// By way of an array: the one form that both GCC 12 and Clang turn into two plain conversions.
static inline Float64Vec widen(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof(lane));
  double wide[kLanes];
  for (int i = 0; i < kLanes; ++i) wide[i] = lane[i];
  Float64Vec result;
  std::memcpy(&result, wide, sizeof(result));
  return result;
}

static inline Vec narrow(Float64Vec v) {
  double wide[kLanes];
  std::memcpy(wide, &v, sizeof(wide));
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<float>(wide[i]);
  Vec result;
  std::memcpy(&result, lane, sizeof(result));
  return result;
}

static inline Float64Vec load_float64(const double* p) {
  const unaligned::HalfDoubleVec* halves = reinterpret_cast<const unaligned::HalfDoubleVec*>(p);
  return {halves[0], halves[1]};
}
static inline void store_float64(double* p, Float64Vec v) {
  unaligned::HalfDoubleVec* halves = reinterpret_cast<unaligned::HalfDoubleVec*>(p);
  halves[0] = v.low;
  halves[1] = v.high;
}

static inline void add(Float64Vec* sum, Vec v) {
  const Float64Vec wide = widen(v);
  sum->low += wide.low;
  sum->high += wide.high;
}

// The products are exact: 24 + 24 bits fit in 53, and no float32 square overflows float64.
static inline void add_product(Float64Vec* sum, Vec a, Vec b) {
  const Float64Vec x = widen(a);
  const Float64Vec y = widen(b);
  sum->low += x.low * y.low;
  sum->high += x.high * y.high;
}
static inline void add_square(Float64Vec* sum, Vec a) {
  const Float64Vec x = widen(a);
  sum->low += x.low * x.low;
  sum->high += x.high * x.high;
}

static inline double reduce_add(Float64Vec v) {
  v.low += v.high;
  double lane[kLanes / 2];
  std::memcpy(lane, &v.low, sizeof(lane));
  for (int width = kLanes / 4; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// Σ over n elements in an order that depends on n alone. term(sum, i, lanes) adds the terms of the
// `lanes` <= kLanes elements from i on.
template <typename Term>
static inline double sum_float64(int64_t n, const Term& term) {
  Float64Vec even = {};
  Float64Vec odd = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    term(&even, i, kLanes);
    term(&odd, i + kLanes, kLanes);
  }
  if (i + kLanes <= n) {
    term(&even, i, kLanes);
    i += kLanes;
  }
  if (i < n) term(&odd, i, n - i);
  even.low += odd.low;
  even.high += odd.high;
  return reduce_add(even);
}

// Σ a ∘ b.
static inline double dot_float64(const float* a, const float* b, int64_t n) {
  return sum_float64(n, [=](Float64Vec* sum, int64_t i, int64_t lanes) {
    if (lanes == kLanes) {
      add_product(sum, load(a + i), load(b + i));
    } else {
      add_product(sum, load_partial(a + i, lanes), load_partial(b + i, lanes));
    }
  });
}

// Σ a².
static inline double square_sum_float64(const float* a, int64_t n) {
  return sum_float64(n, [=](Float64Vec* sum, int64_t i, int64_t lanes) {
    add_square(sum, lanes == kLanes ? load(a + i) : load_partial(a + i, lanes));
  });
}

// sum (n) += `count` rows of n elements, `stride` apart, in their order; four at a time, so that
// the sums pass through memory once for four.
static inline void add_rows_float64(const float* rows, int64_t count, int64_t stride, int64_t n,
                                    double* sum) {
  int64_t row = 0;
  for (; row + 4 <= count; row += 4) {
    const float* from = rows + row * stride;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Float64Vec total = load_float64(sum + i);
      for (int r = 0; r < 4; ++r) add(&total, load(from + r * stride + i));
      store_float64(sum + i, total);
    }
    for (; i < n; ++i) {
      for (int r = 0; r < 4; ++r) sum[i] += from[r * stride + i];
    }
  }
  for (; row < count; ++row) {
    for (int64_t i = 0; i < n; ++i) sum[i] += rows[row * stride + i];
  }
}

}  // namespace siglip::SIGLIP_CPU
