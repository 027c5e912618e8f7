#include "ops/position_resize/position_resize.h"

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/partition.h"
#include "cpu/segments.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// One axis of the resize, n -> m. A row of weights is recomputed wherever it is needed (a handful
// of operations against D channels), so that nothing bounds the grids.
struct Axis {
  int64_t n;
  int64_t m;
  double step;     // s = n / m
  double support;  // f = max(s, 1)

  Axis(int64_t from, int64_t to)
      : n(from), m(to), step(static_cast<double>(from) / static_cast<double>(to)) {
    support = step > 1.0 ? step : 1.0;
  }
  double center(int64_t i) const { return step * (static_cast<double>(i) + 0.5); }
  // Taps of output i are [first(i), last(i)); never empty.
  int64_t first(int64_t i) const {
    const double low = center(i) - support + 0.5;
    return low > 0.0 ? static_cast<int64_t>(low) : 0;
  }
  int64_t last(int64_t i) const {
    const int64_t high = static_cast<int64_t>(center(i) + support + 0.5);
    return high < n ? high : n;
  }
  double triangle(int64_t i, int64_t k) const {
    const double distance = __builtin_fabs(static_cast<double>(k) - center(i) + 0.5) / support;
    return distance < 1.0 ? 1.0 - distance : 0.0;
  }
  double triangle_sum(int64_t i) const {
    double sum = 0.0;
    for (int64_t k = first(i), end = last(i); k < end; ++k) sum += triangle(i, k);
    return sum;
  }
  // Outputs that may have tap k lie in [first_output(k), last_output(k)): one more on either side
  // than in exact arithmetic, where their weight is zero.
  int64_t first_output(int64_t k) const {
    const double low = (static_cast<double>(k) + 0.5 - support) / step - 1.5;
    return low > 0.0 ? static_cast<int64_t>(low) : 0;
  }
  int64_t last_output(int64_t k) const {
    const int64_t high =
        static_cast<int64_t>((static_cast<double>(k) + 0.5 + support) / step + 1.5);
    return high < m ? high : m;
  }
};

// A weighted sum of rows of D floats, gathered a few at a time.
constexpr int kTerms = 16;
struct Terms {
  const float* rows[kTerms];
  float weights[kTerms];
  int count = 0;
};

inline Vec weighted_sum(const Terms& terms, int64_t i) {
  Vec sum = splat(terms.weights[0]) * load(terms.rows[0] + i);
  for (int t = 1; t < terms.count; ++t) sum += splat(terms.weights[t]) * load(terms.rows[t] + i);
  return sum;
}

inline float weighted_sum_at(const Terms& terms, int64_t i) {
  float sum = terms.weights[0] * terms.rows[0][i];
  for (int t = 1; t < terms.count; ++t) sum += terms.weights[t] * terms.rows[t][i];
  return sum;
}

// out = the terms, or out += the terms.
void flush(const Terms& terms, int64_t width, bool overwrite, float* out) {
  int64_t i = 0;
  if (overwrite) {
    for (; i + kLanes <= width; i += kLanes) store(out + i, weighted_sum(terms, i));
    for (; i < width; ++i) out[i] = weighted_sum_at(terms, i);
  } else {
    for (; i + kLanes <= width; i += kLanes) {
      store(out + i, load(out + i) + weighted_sum(terms, i));
    }
    for (; i < width; ++i) out[i] += weighted_sum_at(terms, i);
  }
}

void flush(const Terms& terms, int64_t width, double* sum) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    Float64Vec total = load_float64(sum + i);
    add(&total, weighted_sum(terms, i));
    store_float64(sum + i, total);
  }
  for (; i < width; ++i) sum[i] += weighted_sum_at(terms, i);
}

// One row of the resized grid: out (D) = Σ_y Σ_x wy wx grid[y, x].
void resize_at(const float* grid, const Axis& y, const Axis& x, int64_t i, int64_t j, int64_t width,
               float* out) {
  const double scale_y = 1.0 / y.triangle_sum(i);
  const double scale_x = 1.0 / x.triangle_sum(j);
  Terms terms;
  bool overwrite = true;
  for (int64_t ky = y.first(i), end_y = y.last(i); ky < end_y; ++ky) {
    const double weight_y = y.triangle(i, ky) * scale_y;
    if (weight_y == 0.0) continue;
    for (int64_t kx = x.first(j), end_x = x.last(j); kx < end_x; ++kx) {
      const float weight = static_cast<float>(weight_y * (x.triangle(j, kx) * scale_x));
      if (weight == 0.0F) continue;
      terms.rows[terms.count] = grid + (ky * x.n + kx) * width;
      terms.weights[terms.count] = weight;
      if (++terms.count < kTerms) continue;
      flush(terms, width, overwrite, out);
      overwrite = false;
      terms.count = 0;
    }
  }
  if (terms.count > 0) flush(terms, width, overwrite, out);
}

struct Geometry {
  int64_t side;           // n
  int64_t images;         // B
  int64_t length;         // L
  int64_t width;          // D
  const int32_t* shapes;  // (B, 2)
  const int32_t* starts;  // of packed images, else null

  int64_t rows() const { return starts == nullptr ? images * length : length; }
  int64_t first(int64_t image) const { return starts == nullptr ? image * length : starts[image]; }
  // The image a row lies in, given that of a row before it; `images` behind the last.
  int64_t image_of(int64_t row, int64_t image) const {
    if (starts == nullptr) return row / length;
    while (image < images && starts[image + 1] <= row) ++image;
    return image;
  }
};

Geometry geometry(const char* who, const View& grid, const In& shapes, const MaybeIn& segments,
                  const View& positions) {
  check_rank(who, "grid", grid, 2);
  check_rank(who, "positions", positions, 3);
  const bool packed = segments.present();
  const Geometry g = {static_cast<int64_t>(__builtin_sqrt(static_cast<double>(grid.extent(0)))),
                      packed ? segments.elements() - 1 : positions.extent(0),
                      positions.extent(1),
                      positions.extent(2),
                      shapes.data<int32_t>(),
                      packed ? segments.data<int32_t>() : nullptr};
  if (g.side * g.side != grid.extent(0) || g.side < 1) {
    fail("ERR_SHAPE", "%s: extent 0 of grid must be a square number, got %lld", who,
         static_cast<long long>(grid.extent(0)));
  }
  check_extent(who, "grid", grid, 1, g.width);
  check_elements(who, "shapes", shapes, 2 * g.images);
  if (packed) {
    check_extent(who, "positions", positions, 0, 1);
    check_segments(who, "segments", segments, g.length);
  }
  for (int64_t b = 0; b < g.images; ++b) {
    const int64_t height = g.shapes[2 * b];
    const int64_t width = g.shapes[2 * b + 1];
    const int64_t most = packed ? g.starts[b + 1] - g.starts[b] : g.length;
    const bool fits = packed ? height * width == most : height * width <= most;
    if (height >= 1 && width >= 1 && fits) continue;
    fail("ERR_ARGUMENT",
         "%s: shapes[%lld] must be at least 1 x 1 and %s %lld positions, got %lld x %lld", who,
         static_cast<long long>(b), packed ? "have" : "at most", static_cast<long long>(most),
         static_cast<long long>(height), static_cast<long long>(width));
  }
  return g;
}

// The scratch of the backward. scales (rows + B): per image, 1 / Σ_k of every output of both axes,
// which fit since gh + gw <= gh·gw + 1. sums (threads, D): each worker's accumulator.
int64_t scales_count(int64_t rows, int64_t images) { return rows + images; }

}  // namespace

void position_resize_forward(Stream& stream, In grid, In shapes, MaybeIn segments, Out positions) {
  const Geometry g = geometry("position_resize_forward", grid, shapes, segments, positions);
  const float* grid_data = grid.data();
  float* positions_data = positions.data();
  const Partition part = partition(g.rows(), g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    int64_t b = 0;
    for (int64_t row = part.begin(task); row < part.end(task); ++row) {
      b = g.image_of(row, b);
      float* out = positions_data + row * g.width;
      if (b < g.images) {
        const int64_t position = row - g.first(b);
        const Axis y(g.side, g.shapes[2 * b]);
        const Axis x(g.side, g.shapes[2 * b + 1]);
        if (position < y.m * x.m) {
          resize_at(grid_data, y, x, position / x.m, position % x.m, g.width, out);
          continue;
        }
      }
      std::memset(out, 0, static_cast<size_t>(g.width) * sizeof(float));
    }
  });
}

void position_resize_backward(Stream& stream, In dpositions, In shapes, MaybeIn segments, Out dgrid,
                              Scratch scratch) {
  constexpr char kName[] = "position_resize_backward";
  const Geometry g = geometry(kName, dgrid, shapes, segments, dpositions);
  check_scratch(kName, scratch,
                position_resize_backward_scratch(stream.threads(), dpositions, shapes));
  const float* dpositions_data = dpositions.data();
  float* dgrid_data = dgrid.data();
  double* scales = reinterpret_cast<double*>(scratch.data);
  double* sums = scales + scales_count(g.rows(), g.images);

  for (int64_t b = 0; b < g.images; ++b) {
    const Axis y(g.side, g.shapes[2 * b]);
    const Axis x(g.side, g.shapes[2 * b + 1]);
    double* scale = scales + g.first(b) + b;
    for (int64_t i = 0; i < y.m; ++i) *scale++ = 1.0 / y.triangle_sum(i);
    for (int64_t j = 0; j < x.m; ++j) *scale++ = 1.0 / x.triangle_sum(j);
  }

  // Every cell of the grid gathers what it gave: no two tasks write the same row, and the terms of
  // a row come in the order of (b, i, j).
  const Partition part = partition(g.side * g.side, g.images * g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int worker) {
    double* sum = sums + worker * g.width;
    for (int64_t cell = part.begin(task); cell < part.end(task); ++cell) {
      const int64_t ky = cell / g.side;
      const int64_t kx = cell % g.side;
      for (int64_t d = 0; d < g.width; ++d) sum[d] = 0.0;
      Terms terms;
      for (int64_t b = 0; b < g.images; ++b) {
        const Axis y(g.side, g.shapes[2 * b]);
        const Axis x(g.side, g.shapes[2 * b + 1]);
        const double* scale_y = scales + g.first(b) + b;
        const double* scale_x = scale_y + y.m;
        const float* image = dpositions_data + g.first(b) * g.width;
        const int64_t end_j = x.last_output(kx);
        for (int64_t i = y.first_output(ky), end_i = y.last_output(ky); i < end_i; ++i) {
          if (ky < y.first(i) || ky >= y.last(i)) continue;
          const double weight_y = y.triangle(i, ky) * scale_y[i];
          if (weight_y == 0.0) continue;
          for (int64_t j = x.first_output(kx); j < end_j; ++j) {
            if (kx < x.first(j) || kx >= x.last(j)) continue;
            const float weight = static_cast<float>(weight_y * (x.triangle(j, kx) * scale_x[j]));
            if (weight == 0.0F) continue;
            terms.rows[terms.count] = image + (i * x.m + j) * g.width;
            terms.weights[terms.count] = weight;
            if (++terms.count < kTerms) continue;
            flush(terms, g.width, sum);
            terms.count = 0;
          }
        }
      }
      if (terms.count > 0) flush(terms, g.width, sum);
      float* out = dgrid_data + cell * g.width;
      for (int64_t d = 0; d < g.width; ++d) out[d] = static_cast<float>(sum[d]);
    }
  });
}

size_t position_resize_backward_scratch(int threads, In dpositions, In shapes) {
  if (dpositions.rank() != 3) return 0;
  const int64_t rows = dpositions.extent(0) * dpositions.extent(1);
  const int64_t scales = scales_count(rows, shapes.elements() / 2);
  return static_cast<size_t>(scales + threads * dpositions.extent(2)) * sizeof(double);
}

}  // namespace siglip::SIGLIP_CPU
