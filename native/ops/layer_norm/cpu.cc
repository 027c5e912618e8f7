#include "ops/layer_norm/layer_norm.h"

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// The backward takes four rows at a time: their weight gradients meet in registers, and the float64
// partial sums in memory are touched once per group. Four rows of x and dy of width 768 are 24 kB,
// so that the second pass over them finds them in the first-level cache.
constexpr int kGroup = 4;
// A block of rows owns one partial sum of dweight and dbias; larger blocks, less to add up after.
constexpr int64_t kBlockElements = int64_t{1} << 14;
constexpr int64_t kMaxBlocks = 64;
constexpr int64_t kCombineColumns = 64;
constexpr int64_t kLineElements = 16;

Partition backward_blocks(int64_t rows, int64_t width) {
  return partition(rows, width, kGroup, kBlockElements, kMaxBlocks);
}

// Four accumulators, so that the additions overlap and every lane adds few terms. term(i, n) is the
// Vec of the n <= kLanes columns from i on, zero beyond them.
template <typename Term>
inline float sum_columns(int64_t width, const Term& term) {
  Vec a = {}, b = {}, c = {}, d = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    a += term(i, kLanes);
    b += term(i + kLanes, kLanes);
    c += term(i + 2 * kLanes, kLanes);
    d += term(i + 3 * kLanes, kLanes);
  }
  for (; i + kLanes <= width; i += kLanes) a += term(i, kLanes);
  if (i < width) b += term(i, width - i);
  return reduce_add((a + b) + (c + d));
}

// `next` is fetched into the cache meanwhile: the row's three passes would leave the memory idle.
template <bool has_bias>
void forward_row(const float* x, const float* next, const float* weight, const float* bias,
                 int64_t width, double eps, float* y, float* mean_out, float* rstd_out) {
  const double count = static_cast<double>(width);
  const auto value = [&](int64_t i, int64_t n) {
    return n == kLanes ? load(x + i) : load_partial(x + i, n);
  };
  const float mean = static_cast<float>(sum_columns(width, value) / count);
  const Vec center = splat(mean);
  const auto squared_deviation = [&](int64_t i, int64_t n) {
    const Vec d = (n == kLanes ? load(x + i) : load_partial(x + i, n, mean)) - center;
    return d * d;
  };
  const double variance = sum_columns(width, squared_deviation) / count;
  const float rstd = static_cast<float>(1.0 / __builtin_sqrt(variance + eps));
  const Vec factor = splat(rstd);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    if (i % kLineElements == 0) __builtin_prefetch(next + i);
    Vec v = (load(x + i) - center) * factor * load(weight + i);
    if constexpr (has_bias) v += load(bias + i);
    store(y + i, v);
  }
  if (i < width) {
    const int64_t n = width - i;
    Vec v = (load_partial(x + i, n) - center) * factor * load_partial(weight + i, n);
    if constexpr (has_bias) v += load_partial(bias + i, n);
    store_partial(y + i, v, n);
  }
  *mean_out = mean;
  *rstd_out = rstd;
}

// What a row's second pass needs: dx = rstd (dy · weight − mean_g − x̂ mean_gx).
struct RowMeans {
  float g;
  float gx;
};

RowMeans row_means(const float* dy, const float* x, const float* weight, int64_t width, float mean,
                   float rstd) {
  const Vec center = splat(mean);
  Vec g0 = {}, g1 = {}, gx0 = {}, gx1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    const Vec a = load(dy + i) * load(weight + i);
    const Vec b = load(dy + i + kLanes) * load(weight + i + kLanes);
    g0 += a;
    g1 += b;
    gx0 += a * (load(x + i) - center);
    gx1 += b * (load(x + i + kLanes) - center);
  }
  for (; i < width; i += kLanes) {
    const int64_t n = width - i;
    const Vec a = n < kLanes ? load_partial(dy + i, n) * load_partial(weight + i, n)
                             : load(dy + i) * load(weight + i);
    g0 += a;
    gx0 += a * ((n < kLanes ? load_partial(x + i, n) : load(x + i)) - center);
  }
  const double count = static_cast<double>(width);
  return {static_cast<float>(reduce_add(g0 + g1) / count),
          static_cast<float>(static_cast<double>(reduce_add(gx0 + gx1)) * rstd / count)};
}

// kRows consecutive rows; dweight and dbias are the block's float64 partial sums.
template <int kRows, bool kResidual>
void backward_rows(const float* dy, const float* x, const float* weight, const float* mean,
                   const float* rstd, const float* residual, int64_t width, float* dx,
                   double* dweight, double* dbias) {
  Vec center[kRows], factor[kRows], mean_g[kRows], mean_gx[kRows];
  for (int r = 0; r < kRows; ++r) {
    const RowMeans means =
        row_means(dy + r * width, x + r * width, weight, width, mean[r], rstd[r]);
    center[r] = splat(mean[r]);
    factor[r] = splat(rstd[r]);
    mean_g[r] = splat(means.g);
    mean_gx[r] = splat(means.gx);
  }
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec w = load(weight + i);
    Vec dw = {};
    Vec db = {};
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * width + i;
      const Vec d = load(dy + at);
      const Vec normal = (load(x + at) - center[r]) * factor[r];
      dw += d * normal;
      db += d;
      Vec out = factor[r] * (d * w - mean_g[r] - normal * mean_gx[r]);
      if (kResidual) out += load(residual + at);
      store(dx + at, out);
    }
    Float64Vec sum = load_float64(dweight + i);
    add(&sum, dw);
    store_float64(dweight + i, sum);
    sum = load_float64(dbias + i);
    add(&sum, db);
    store_float64(dbias + i, sum);
  }
  for (; i < width; ++i) {
    float dw = 0.0F;
    float db = 0.0F;
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * width + i;
      const float normal = (x[at] - center[r][0]) * factor[r][0];
      dw += dy[at] * normal;
      db += dy[at];
      float out = factor[r][0] * (dy[at] * weight[i] - mean_g[r][0] - normal * mean_gx[r][0]);
      if (kResidual) out += residual[at];
      dx[at] = out;
    }
    dweight[i] += dw;
    dbias[i] += db;
  }
}

template <bool kResidual>
void backward_block(const float* dy, const float* x, const float* weight, const float* mean,
                    const float* rstd, const float* residual, int64_t begin, int64_t end,
                    int64_t width, float* dx, double* dweight, double* dbias) {
  for (int64_t i = 0; i < width; ++i) dweight[i] = 0.0;
  for (int64_t i = 0; i < width; ++i) dbias[i] = 0.0;
  int64_t row = begin;
  for (; row + kGroup <= end; row += kGroup) {
    const int64_t at = row * width;
    backward_rows<kGroup, kResidual>(dy + at, x + at, weight, mean + row, rstd + row,
                                     kResidual ? residual + at : nullptr, width, dx + at, dweight,
                                     dbias);
  }
  for (; row < end; ++row) {
    const int64_t at = row * width;
    backward_rows<1, kResidual>(dy + at, x + at, weight, mean + row, rstd + row,
                                kResidual ? residual + at : nullptr, width, dx + at, dweight,
                                dbias);
  }
}

}  // namespace

void layer_norm_forward(Stream& stream, In x, In weight, MaybeIn bias, double eps, Out y, Out mean,
                        Out rstd) {
  constexpr char kName[] = "layer_norm_forward";
  check_not_scalar(kName, "x", x);
  const int64_t width = x.extent(-1);
  const int64_t rows = x.rows();
  check_elements(kName, "weight", weight, width);
  if (bias.present()) check_elements(kName, "bias", bias, width);
  check_elements(kName, "y", y, rows * width);
  check_elements(kName, "mean", mean, rows);
  check_elements(kName, "rstd", rstd, rows);
  const float* x_data = x.data();
  const float* weight_data = weight.data();
  const float* bias_data = bias.present() ? bias.data() : nullptr;
  float* y_data = y.data();
  float* mean_data = mean.data();
  float* rstd_data = rstd.data();
  const Partition part = partition(rows, width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t row = part.begin(task); row < part.end(task); ++row) {
      const int64_t next = row + 1 < rows ? row + 1 : row;
      const auto forward = bias_data == nullptr ? forward_row<false> : forward_row<true>;
      forward(x_data + row * width, x_data + next * width, weight_data, bias_data, width, eps,
              y_data + row * width, mean_data + row, rstd_data + row);
    }
  });
}

void layer_norm_backward(Stream& stream, In dy, In x, In weight, In mean, In rstd, MaybeIn residual,
                         Out dx, Out dweight, MaybeOut dbias, Scratch scratch) {
  constexpr char kName[] = "layer_norm_backward";
  check_not_scalar(kName, "dy", dy);
  const int64_t width = dy.extent(-1);
  const int64_t rows = dy.rows();
  check_elements(kName, "x", x, rows * width);
  check_elements(kName, "weight", weight, width);
  check_elements(kName, "mean", mean, rows);
  check_elements(kName, "rstd", rstd, rows);
  if (residual.present()) check_elements(kName, "residual", residual, rows * width);
  check_elements(kName, "dx", dx, rows * width);
  check_elements(kName, "dweight", dweight, width);
  if (dbias.present()) check_elements(kName, "dbias", dbias, width);
  check_scratch(kName, scratch, layer_norm_backward_scratch(stream.threads(), dy));
  const float* dy_data = dy.data();
  const float* x_data = x.data();
  const float* weight_data = weight.data();
  const float* mean_data = mean.data();
  const float* rstd_data = rstd.data();
  const float* residual_data = residual.present() ? residual.data() : nullptr;
  float* dx_data = dx.data();
  float* dweight_data = dweight.data();
  float* dbias_data = dbias.present() ? dbias.data() : nullptr;

  // (blocks, 2, width): every block's partial dweight and dbias.
  double* partial = reinterpret_cast<double*>(scratch.data);
  const Partition blocks = backward_blocks(rows, width);
  stream.parallel(blocks.tasks(), [&](int64_t block, int) {
    double* own = partial + block * 2 * width;
    if (residual_data != nullptr) {
      backward_block<true>(dy_data, x_data, weight_data, mean_data, rstd_data, residual_data,
                           blocks.begin(block), blocks.end(block), width, dx_data, own,
                           own + width);
    } else {
      backward_block<false>(dy_data, x_data, weight_data, mean_data, rstd_data, nullptr,
                            blocks.begin(block), blocks.end(block), width, dx_data, own,
                            own + width);
    }
  });

  const int64_t sums = dbias_data == nullptr ? width : 2 * width;
  const Partition columns = partition(sums, blocks.tasks(), kCombineColumns);
  stream.parallel(columns.tasks(), [&](int64_t task, int) {
    for (int64_t begin = columns.begin(task); begin < columns.end(task); begin += kCombineColumns) {
      const int64_t left = columns.end(task) - begin;
      const int64_t n = left < kCombineColumns ? left : kCombineColumns;
      double sum[kCombineColumns] = {};
      for (int64_t block = 0; block < blocks.tasks(); ++block) {
        const double* own = partial + block * 2 * width + begin;
        for (int64_t i = 0; i < n; ++i) sum[i] += own[i];
      }
      for (int64_t i = 0; i < n; ++i) {
        const int64_t column = begin + i;
        float* out = column < width ? dweight_data + column : dbias_data + (column - width);
        *out = static_cast<float>(sum[i]);
      }
    }
  });
}

size_t layer_norm_backward_scratch(int, In dy) {
  if (dy.rank() < 1) return 0;
  const int64_t width = dy.extent(-1);
  return static_cast<size_t>(backward_blocks(dy.rows(), width).tasks() * 2 * width) *
         sizeof(double);
}

}  // namespace siglip::SIGLIP_CPU
