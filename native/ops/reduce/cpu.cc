#include "ops/reduce/reduce.h"

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Columns summed at a time, in 4 kB of the stack.
constexpr int64_t kTileColumns = 512;
constexpr int64_t kLineElements = 64;

double sum_in_order(const double* partial, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += partial[i];
  return sum;
}

int64_t total_elements(const InList& tensors) {
  int64_t total = 0;
  for (int64_t i = 0; i < tensors.count; ++i) total += tensors[i].elements();
  return total;
}

}  // namespace

void sum_rows_forward(Stream& stream, In x, Out y) {
  constexpr char kName[] = "sum_rows_forward";
  check_not_scalar(kName, "x", x);
  const int64_t count = x.extent(0);
  const int64_t size = y.elements();
  check_elements(kName, "x", x, count * size);
  const float* x_data = x.data();
  float* y_data = y.data();
  const Partition part = partition_by_thread(stream, size, count, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t end = part.end(task);
    for (int64_t begin = part.begin(task); begin < end; begin += kTileColumns) {
      const int64_t n = end - begin < kTileColumns ? end - begin : kTileColumns;
      double sum[kTileColumns] = {};
      add_rows_float64(x_data + begin, count, size, n, sum);
      for (int64_t i = 0; i < n; ++i) y_data[begin + i] = static_cast<float>(sum[i]);
    }
  });
}

void row_shares_forward(Stream& stream, In x, Out y) {
  constexpr char kName[] = "row_shares_forward";
  check_not_scalar(kName, "x", x);
  check_elements(kName, "y", y, x.elements());
  const int64_t width = x.extent(-1);
  const float* x_data = x.data();
  float* y_data = y.data();
  const Partition part = partition(x.rows(), width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t row = part.begin(task); row < part.end(task); ++row) {
      const float* from = x_data + row * width;
      double sum = 0.0;
      for (int64_t i = 0; i < width; ++i) sum += static_cast<double>(from[i]);
      const double factor = sum == 0.0 ? 0.0 : 1.0 / sum;
      for (int64_t i = 0; i < width; ++i) {
        y_data[row * width + i] = static_cast<float>(static_cast<double>(from[i]) * factor);
      }
    }
  });
}

void dot_forward(Stream& stream, In a, In b, Out y, Scratch scratch) {
  constexpr char kName[] = "dot_forward";
  const int64_t size = a.elements();
  check_elements(kName, "b", b, size);
  check_elements(kName, "y", y, 1);
  check_scratch(kName, scratch, dot_forward_scratch(stream.threads(), a));
  const float* a_data = a.data();
  const float* b_data = b.data();
  double* partial = reinterpret_cast<double*>(scratch.data);
  const Partition part = partition(size, 1, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t begin = part.begin(task);
    partial[task] = dot_float64(a_data + begin, b_data + begin, part.end(task) - begin);
  });
  y.data()[0] = static_cast<float>(sum_in_order(partial, part.tasks()));
}

size_t dot_forward_scratch(int, In a) {
  return static_cast<size_t>(partition(a.elements(), 1, kLineElements).tasks()) * sizeof(double);
}

void global_norm_forward(Stream& stream, InList tensors, Out y, Scratch scratch) {
  constexpr char kName[] = "global_norm_forward";
  check_elements(kName, "y", y, 1);
  check_scratch(kName, scratch, global_norm_forward_scratch(stream.threads(), tensors));
  double* partial = reinterpret_cast<double*>(scratch.data);
  float* y_data = y.data();
  for (int64_t i = 0; i < tensors.count; ++i) tensors[i].data();  // dtypes, before any work

  // The tensors laid end to end, cut without regard to where one ends: sizes range from one element
  // to a quarter of the whole.
  const Partition part = partition(total_elements(tensors), 1, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    int64_t begin = part.begin(task);
    int64_t left = part.end(task) - begin;
    double sum = 0.0;
    for (int64_t i = 0; left > 0; ++i) {
      const int64_t size = tensors[i].elements();
      if (begin >= size) {
        begin -= size;
        continue;
      }
      const int64_t n = size - begin < left ? size - begin : left;
      sum += square_sum_float64(tensors[i].data() + begin, n);
      left -= n;
      begin = 0;
    }
    partial[task] = sum;
  });
  y_data[0] = static_cast<float>(__builtin_sqrt(sum_in_order(partial, part.tasks())));
}

size_t global_norm_forward_scratch(int, InList tensors) {
  return static_cast<size_t>(partition(total_elements(tensors), 1, kLineElements).tasks()) *
         sizeof(double);
}

void root_sum_forward(Stream&, InList scalars, Out y) {
  constexpr char kName[] = "root_sum_forward";
  check_elements(kName, "y", y, 1);
  double sum = 0.0;
  for (int64_t i = 0; i < scalars.count; ++i) {
    check_elements(kName, "a scalar", scalars[i], 1);
    sum += static_cast<double>(scalars[i].data()[0]);
  }
  y.data()[0] = static_cast<float>(__builtin_sqrt(sum));
}

}  // namespace siglip::SIGLIP_CPU
