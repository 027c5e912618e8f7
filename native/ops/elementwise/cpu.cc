#include "ops/elementwise/elementwise.h"

#include "cpu/check.h"
#include "cpu/partition.h"
#include "cpu/simd.h"
#include "ops/elementwise/join_rows.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Ranges start at multiples of a cache line, so that no line is written by two threads.
constexpr int64_t kLineElements = 64;

// y = unary(x), any of them being the same memory.
template <typename Function>
void map(Stream& stream, const float* x, int64_t size, float* y, const Function& function) {
  const Partition part = partition(size, 1, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t end = part.end(task);
    int64_t i = part.begin(task);
    for (; i + kLanes <= end; i += kLanes) store(y + i, function(load(x + i)));
    if (i < end) store_partial(y + i, function(load_partial(x + i, end - i)), end - i);
  });
}

void add_range(const float* a, const float* b, int64_t size, float* y) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    const Vec first = load(a + i) + load(b + i);
    const Vec second = load(a + i + kLanes) + load(b + i + kLanes);
    store(y + i, first);
    store(y + i + kLanes, second);
  }
  for (; i < size; ++i) y[i] = a[i] + b[i];
}

void add(Stream& stream, const float* a, const float* b, int64_t size, float* y) {
  const Partition part = partition(size, 1, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t begin = part.begin(task);
    add_range(a + begin, b + begin, part.end(task) - begin, y + begin);
  });
}

template <typename T>
void fill_with(Stream& stream, T value, int64_t size, T* y) {
  const Partition part = partition_by_thread(stream, size, 1, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t begin = part.begin(task);
    const int64_t end = part.end(task);
    if (value == T{}) {  // long ranges of zeros go past the cache
      std::memset(y + begin, 0, static_cast<size_t>(end - begin) * sizeof(T));
    } else {
      for (int64_t i = begin; i < end; ++i) y[i] = value;
    }
  });
}

uint16_t narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
  // Rounding could carry a NaN into an infinity; the bit makes it a quiet one.
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
  return static_cast<uint16_t>((is_nan ? bits | 0x400000U : rounded) >> 16);
}

float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

// A row against the whole it is shared by: the number of its copies.
int64_t copies(const char* who, const char* what, const View& whole, const View& row) {
  const int64_t size = row.elements();
  const int64_t count = size > 0 ? whole.elements() / size : 0;
  check_elements(who, what, whole, count * size);
  return count;
}

}  // namespace

void add_forward(Stream& stream, In a, In b, Out y) {
  const int64_t size = a.elements();
  check_elements("add_forward", "b", b, size);
  check_elements("add_forward", "y", y, size);
  add(stream, a.data(), b.data(), size, y.data());
}

void add_row_forward(Stream& stream, In x, In row, Out y) {
  copies("add_row_forward", "x", x, row);
  const int64_t size = x.elements();
  check_elements("add_row_forward", "y", y, size);
  const int64_t row_size = row.elements();
  const float* x_data = x.data();
  const float* row_data = row.data();
  float* y_data = y.data();
  const Partition part = partition(size, 1, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t end = part.end(task);
    int64_t begin = part.begin(task);
    int64_t column = begin % row_size;
    while (begin < end) {
      const int64_t n = end - begin < row_size - column ? end - begin : row_size - column;
      add_range(x_data + begin, row_data + column, n, y_data + begin);
      begin += n;
      column = 0;
    }
  });
}

void repeat_row_forward(Stream& stream, In row, Out y) {
  copies("repeat_row_forward", "y", y, row);
  const int64_t row_bytes = row.elements() * static_cast<int64_t>(size_of(row.dtype()));
  const int64_t bytes = y.elements() * static_cast<int64_t>(size_of(row.dtype()));
  check_dtype("repeat_row_forward", "y", y, row.dtype());
  const std::byte* row_data = row.bytes();
  std::byte* y_data = y.bytes();
  const Partition part = partition(bytes, 1, kLineElements, kTaskElements * 4);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t end = part.end(task);
    int64_t begin = part.begin(task);
    int64_t column = begin % row_bytes;
    while (begin < end) {
      const int64_t n = end - begin < row_bytes - column ? end - begin : row_bytes - column;
      std::memcpy(y_data + begin, row_data + column, static_cast<size_t>(n));
      begin += n;
      column = 0;
    }
  });
}

void scale_forward(Stream& stream, In x, In factor, Out y) {
  const int64_t size = x.elements();
  check_elements("scale_forward", "factor", factor, 1);
  check_elements("scale_forward", "y", y, size);
  const Vec by = splat(factor.data()[0]);
  map(stream, x.data(), size, y.data(), [&](Vec v) { return by * v; });
}

void scale_by_forward(Stream& stream, In x, double factor, Out y) {
  const int64_t size = x.elements();
  check_elements("scale_by_forward", "y", y, size);
  const Vec by = splat(static_cast<float>(factor));
  map(stream, x.data(), size, y.data(), [&](Vec v) { return by * v; });
}

void accumulate(Stream& stream, In x, InOut accumulator) {
  const int64_t size = x.elements();
  check_elements("accumulate", "accumulator", accumulator, size);
  add(stream, accumulator.data(), x.data(), size, accumulator.data());
}

void moving_average(Stream& stream, In x, double momentum, InOut average) {
  const int64_t size = x.elements();
  check_elements("moving_average", "average", average, size);
  const float* x_data = x.data();
  float* average_data = average.data();
  const auto keep = static_cast<float>(momentum);
  const auto take = static_cast<float>(1.0 - momentum);
  const Partition part = partition_by_thread(stream, size, 1, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t end = part.end(task);
    int64_t i = part.begin(task);
    for (; i + kLanes <= end; i += kLanes) {
      store(average_data + i,
            splat(keep) * load(average_data + i) + splat(take) * load(x_data + i));
    }
    for (; i < end; ++i) average_data[i] = keep * average_data[i] + take * x_data[i];
  });
}

void fill(Stream& stream, double value, Out y) {
  const int64_t size = y.elements();
  switch (y.dtype()) {
    case DType::kFloat32:
      return fill_with(stream, static_cast<float>(value), size, y.data());
    case DType::kInt32:
      return fill_with(stream, static_cast<int32_t>(value), size, y.data<int32_t>());
    case DType::kUint8:
      return fill_with(stream, static_cast<uint8_t>(value), size, y.data<uint8_t>());
    case DType::kBfloat16:
      fail("ERR_DTYPE", "fill: y must be float32, int32 or uint8 on the CPU, got bfloat16");
  }
}

void copy_forward(Stream& stream, In x, Out y) {
  const int64_t size = x.elements();
  check_elements("copy_forward", "y", y, size);
  const int64_t bytes = size * static_cast<int64_t>(size_of(x.dtype()));
  check_dtype("copy_forward", "y", y, x.dtype());
  const std::byte* x_data = x.bytes();
  std::byte* y_data = y.bytes();
  const Partition part = partition(bytes, 1, kLineElements, kTaskElements * 4);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t begin = part.begin(task);
    std::memcpy(y_data + begin, x_data + begin, static_cast<size_t>(part.end(task) - begin));
  });
}

void cast_forward(Stream& stream, In x, Out y) {
  if (x.dtype() == y.dtype()) return copy_forward(stream, x, y);
  const int64_t size = x.elements();
  check_elements("cast_forward", "y", y, size);
  const bool narrows = y.dtype() == DType::kBfloat16;
  const float* wide = narrows ? x.data() : nullptr;
  const Bfloat16* narrow = narrows ? nullptr : x.data<Bfloat16>();
  Bfloat16* narrow_y = narrows ? y.data<Bfloat16>() : nullptr;
  float* wide_y = narrows ? nullptr : y.data();
  const Partition part = partition(size, 1, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t begin = part.begin(task);
    const int64_t end = part.end(task);
    if (narrows) {
      for (int64_t i = begin; i < end; ++i) narrow_y[i].bits = narrowed(wide[i]);
    } else {
      for (int64_t i = begin; i < end; ++i) wide_y[i] = widened(narrow[i].bits);
    }
  });
}

void join_rows_forward(Stream& stream, InList parts, Out y) { cast_parts(stream, parts, y); }

}  // namespace siglip::SIGLIP_CPU
