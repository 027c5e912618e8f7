#include "ops/embedding/embedding.h"

#include "cpu/check.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Ranges start at multiples of a cache line, so that no line is written by two threads.
constexpr int64_t kLineElements = 16;

// All ids are checked before anything is written, so that a bad one leaves the output untouched.
void check_ids(const char* who, const int32_t* ids, int64_t count, int64_t vocabulary) {
  constexpr int64_t kIdLimit = int64_t{1} << 31;
  // A negative id is a large unsigned one.
  const uint32_t limit = static_cast<uint32_t>(vocabulary < kIdLimit ? vocabulary : kIdLimit);
  constexpr int64_t kBlock = 1024;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    uint32_t bad = 0;
    for (int64_t m = begin; m < end; ++m) bad |= static_cast<uint32_t>(ids[m]) >= limit ? 1U : 0U;
    if (bad == 0) continue;
    for (int64_t m = begin; m < end; ++m) {
      if (static_cast<uint32_t>(ids[m]) < limit) continue;
      fail("ERR_ARGUMENT", "%s: ids[%lld] must be in [0, %lld), got %d", who,
           static_cast<long long>(m), static_cast<long long>(vocabulary), ids[m]);
    }
  }
}

// table row += dy[m] + dy[m + 1] + …, in this order, over the rows of one run of equal ids: padding
// makes long runs, whose sum then stays in registers.
void add_run(const float* dy, int64_t count, int64_t width, int64_t columns, float* row) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= columns; i += 2 * kLanes) {
    Vec first = load(row + i);
    Vec second = load(row + i + kLanes);
    for (int64_t m = 0; m < count; ++m) {
      first += load(dy + m * width + i);
      second += load(dy + m * width + i + kLanes);
    }
    store(row + i, first);
    store(row + i + kLanes, second);
  }
  for (; i < columns; ++i) {
    float sum = row[i];
    for (int64_t m = 0; m < count; ++m) sum += dy[m * width + i];
    row[i] = sum;
  }
}

}  // namespace

void embedding_forward(Stream& stream, In table, In ids, Out y) {
  constexpr char kName[] = "embedding_forward";
  check_rank(kName, "table", table, 2);
  const int64_t width = table.extent(1);
  const int64_t count = ids.elements();
  check_elements(kName, "y", y, count * width);
  const float* table_data = table.data();
  const int32_t* ids_data = ids.data<int32_t>();
  float* y_data = y.data();
  check_ids(kName, ids_data, count, table.extent(0));
  const Partition part = partition(count, width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t m = part.begin(task); m < part.end(task); ++m) {
      std::memcpy(y_data + m * width, table_data + ids_data[m] * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
  });
}

size_t embedding_backward_scratch(int, In, In, In) { return 0; }

void embedding_backward(Stream& stream, In dy, In ids, Out dtable, Scratch) {
  constexpr char kName[] = "embedding_backward";
  check_rank(kName, "dtable", dtable, 2);
  const int64_t vocabulary = dtable.extent(0);
  const int64_t width = dtable.extent(1);
  const int64_t count = ids.elements();
  check_elements(kName, "dy", dy, count * width);
  const float* dy_data = dy.data();
  const int32_t* ids_data = ids.data<int32_t>();
  float* dtable_data = dtable.data();
  check_ids(kName, ids_data, count, vocabulary);

  const Partition zeros = partition_by_thread(stream, vocabulary * width, 1, kLineElements);
  stream.parallel(zeros.tasks(), [&](int64_t task, int) {
    std::memset(dtable_data + zeros.begin(task), 0,
                static_cast<size_t>(zeros.end(task) - zeros.begin(task)) * sizeof(float));
  });

  // By columns: however the ids repeat, no two threads meet in an element.
  const Partition part = partition_by_thread(stream, width, count, kLineElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t begin = part.begin(task);
    const int64_t end = part.end(task);
    for (int64_t m = 0; m < count;) {
      int64_t next = m + 1;
      while (next < count && ids_data[next] == ids_data[m]) ++next;
      add_run(dy_data + m * width + begin, next - m, width, end - begin,
              dtable_data + ids_data[m] * width + begin);
      m = next;
    }
  });
}

}  // namespace siglip::SIGLIP_CPU
