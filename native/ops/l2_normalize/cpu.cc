#include "ops/l2_normalize/l2_normalize.h"

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {

void l2_normalize_forward(Stream& stream, In x, double eps, Out y, Out norm) {
  constexpr char kName[] = "l2_normalize_forward";
  check_not_scalar(kName, "x", x);
  const int64_t width = x.extent(-1);
  const int64_t rows = x.rows();
  check_elements(kName, "y", y, rows * width);
  check_elements(kName, "norm", norm, rows);
  const float* x_data = x.data();
  float* y_data = y.data();
  float* norm_data = norm.data();
  const Partition part = partition(rows, width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t row = part.begin(task); row < part.end(task); ++row) {
      const float* from = x_data + row * width;
      float* to = y_data + row * width;
      const double length = __builtin_sqrt(square_sum_float64(from, width));
      const float scale = static_cast<float>(1.0 / (length + eps));
      const Vec factor = splat(scale);
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes) store(to + i, load(from + i) * factor);
      for (; i < width; ++i) to[i] = from[i] * scale;
      norm_data[row] = static_cast<float>(length);
    }
  });
}

void l2_normalize_backward(Stream& stream, In dy, In x, In norm, double eps, Out dx) {
  constexpr char kName[] = "l2_normalize_backward";
  check_not_scalar(kName, "dy", dy);
  const int64_t width = dy.extent(-1);
  const int64_t rows = dy.rows();
  check_elements(kName, "x", x, rows * width);
  check_elements(kName, "norm", norm, rows);
  check_elements(kName, "dx", dx, rows * width);
  const float* dy_data = dy.data();
  const float* x_data = x.data();
  const float* norm_data = norm.data();
  float* dx_data = dx.data();
  const Partition part = partition(rows, width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t row = part.begin(task); row < part.end(task); ++row) {
      const float* gradient = dy_data + row * width;
      const float* from = x_data + row * width;
      float* to = dx_data + row * width;
      const double length = norm_data[row];
      if (length == 0.0) {
        std::memset(to, 0, static_cast<size_t>(width) * sizeof(float));
        continue;
      }
      // In two factors, (u / n) · ((u·dz) / (n + eps)²): their product may not fit in a float.
      const double divisor = length + eps;
      const float scale = static_cast<float>(1.0 / divisor);
      const float unit = static_cast<float>(1.0 / length);
      const float along =
          static_cast<float>(dot_float64(from, gradient, width) / (divisor * divisor));
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes) {
        store(to + i,
              splat(scale) * load(gradient + i) - (splat(unit) * load(from + i)) * splat(along));
      }
      for (; i < width; ++i) to[i] = scale * gradient[i] - (unit * from[i]) * along;
    }
  });
}

}  // namespace siglip::SIGLIP_CPU
