// What a kernel gets besides its operands: the threads of the CPU, or a stream of a GPU.
#pragma once

#include <cstdint>

#include "runtime/thread_pool.h"

namespace siglip {

struct CudaContext;  // runtime/cuda_context.h

class Stream {
 public:
  explicit Stream(ThreadPool& pool) : pool_(&pool) {}
  explicit Stream(CudaContext& cuda) : cuda_(&cuda) {}

  // What kernels in namespace cuda work with; theirs alone, as all that follows is the CPU's.
  CudaContext& cuda() const { return *cuda_; }

  // Number of workers; `worker` below is in [0, threads()).
  int threads() const { return pool_->threads(); }

  // Set when the device is being shut down: what is computed from then on will be thrown away.
  bool cancelled() const { return pool_ != nullptr && pool_->cancelled(); }

  // Runs body(task, worker) for every task in [0, tasks), in parallel, and returns when all are
  // done. Workers begin with consecutive ranges and take tasks over from each other in the end, so a
  // few tasks for each are better than one. A kernel's result must depend on `task` alone, never on
  // `worker` or threads(), so that a run repeats bit for bit whatever the number of threads;
  // per-worker scratch is for packing buffers only. An exception thrown by a body is rethrown here
  // after all workers have stopped.
  template <typename Body>
  void parallel(int64_t tasks, const Body& body) {
    pool_->run(
        tasks,
        [](const void* context, int64_t task, int worker) {
          (*static_cast<const Body*>(context))(task, worker);
        },
        &body);
  }

 private:
  ThreadPool* pool_ = nullptr;
  CudaContext* cuda_ = nullptr;
};

}  // namespace siglip
