// How a kernel cuts its work for Stream::parallel: consecutive ranges of items whose number depends
// on the sizes alone, so that partial sums per range come out the same for any number of threads.
#pragma once

#include "cpu/isa.h"

namespace siglip::SIGLIP_CPU {

// Less work than this (in elements read or written once) is not worth a second thread.
inline constexpr int64_t kSerialElements = int64_t{1} << 14;
// The least a task should do: about a microsecond.
inline constexpr int64_t kTaskElements = int64_t{1} << 12;
inline constexpr int64_t kMaxTasks = 1024;
// So many, that a thread that is held up can leave its work to others.
inline constexpr int64_t kTasksPerThread = 4;

struct Partition {
  int64_t items;
  int64_t grain;  // items of every task but the last

  int64_t tasks() const { return (items + grain - 1) / grain; }
  int64_t begin(int64_t task) const { return task * grain; }
  int64_t end(int64_t task) const {
    const int64_t end = (task + 1) * grain;
    return end < items ? end : items;
  }
};

// Items of `item_elements` elements each; every range but the last has a multiple of `multiple`
// items.
static inline Partition partition(int64_t items, int64_t item_elements, int64_t multiple = 1,
                                  int64_t task_elements = kTaskElements,
                                  int64_t max_tasks = kMaxTasks) {
  if (item_elements < 1) item_elements = 1;
  if (items < 1) return {0, 1};
  if (items <= kSerialElements / item_elements) return {items, items};
  int64_t grain = (task_elements + item_elements - 1) / item_elements;
  const int64_t least = (items + max_tasks - 1) / max_tasks;
  if (grain < least) grain = least;
  return {items, (grain + multiple - 1) / multiple * multiple};
}

// A few ranges per thread, for kernels that compute every element alone and in its own fixed order:
// the cut cannot show in the result, and long runs of memory are what the prefetchers like.
static inline Partition partition_by_thread(const Stream& stream, int64_t items,
                                            int64_t item_elements, int64_t multiple = 1) {
  return partition(items, item_elements, multiple, kTaskElements,
                   kTasksPerThread * stream.threads());
}

}  // namespace siglip::SIGLIP_CPU
