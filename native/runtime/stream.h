// What a kernel gets besides its operands: the device's threads.
#pragma once

#include <cstdint>

#include "runtime/thread_pool.h"

namespace siglip {

class Stream {
 public:
  explicit Stream(ThreadPool& pool) : pool_(pool) {}

  // Number of workers; `worker` below is in [0, threads()).
  int threads() const { return pool_.threads(); }

  // Set when the device is being shut down: what is computed from then on will be thrown away.
  bool cancelled() const { return pool_.cancelled(); }

  // Runs body(task, worker) for every task in [0, tasks), in parallel, and returns when all are
  // done. Workers begin with consecutive ranges and take tasks over from each other in the end, so a
  // few tasks for each are better than one. A kernel's result must depend on `task` alone, never on
  // `worker` or threads(), so that a run repeats bit for bit whatever the number of threads;
  // per-worker scratch is for packing buffers only. An exception thrown by a body is rethrown here
  // after all workers have stopped.
  template <typename Body>
  void parallel(int64_t tasks, const Body& body) {
    pool_.run(
        tasks,
        [](const void* context, int64_t task, int worker) {
          (*static_cast<const Body*>(context))(task, worker);
        },
        &body);
  }

 private:
  ThreadPool& pool_;
};

}  // namespace siglip
