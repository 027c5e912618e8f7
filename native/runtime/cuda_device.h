// A GPU of CUDA as a device. Its queue is a stream; memory is allocated, zeroed and, where nothing
// queued uses it yet, filled on a second one, so that the next batch arrives while one is computed.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "runtime/cublaslt.h"
#include "runtime/cuda_context.h"
#include "runtime/device.h"
#include "runtime/pipeline.h"

namespace siglip {

class CudaDevice final : public Device, private Engine {
 public:
  explicit CudaDevice(int index);

  int workers() override { return context_.multiprocessors; }
  void submit(std::unique_ptr<Job> job) override;
  std::shared_ptr<Memory> allocate(size_t bytes, Contents contents) override;
  std::unique_ptr<Staging> stage(size_t bytes, bool patient) override;
  void expect() override;
  void copy_in(std::byte* to, const Staging& from, size_t offset, size_t bytes,
               bool alone) override;
  void copy_out(Staging& to, const std::byte* from, size_t bytes) override;
  void fill(std::byte* to, int value, size_t bytes) override;
  std::unique_ptr<Launcher> launcher() override;

 private:
  class Allocation;

  void stop() override;
  void enter_thread() noexcept override;
  void issue(Job& job) override;
  void* mark() noexcept override;
  void await(void* mark, const Job& job) override;

  // A block of `padded` bytes. Small ones that were given back come first, the lowest
  // address of them: so the runs of a program find the addresses that its graphs were recorded with.
  void* take(size_t padded);
  // Keeps a small block for take(); gives others back to the pool, and the pool's to the device when
  // that was the last.
  void free(void* data, size_t bytes) noexcept;
  // Gives what is kept for take() back to the pool.
  void drop_idle() noexcept;
  // Waits until the device has come to the event.
  static cudaError_t wait_for(cudaEvent_t event);
  // Lets what is queued from now on see the allocations and copies of the second stream.
  void join_copies();
  // ERR_CUDA once the device has failed in a way that it does not come back from.
  void check_usable();
  // Remembers that it has, with the first cause.
  void break_down(cudaError_t status, const std::string& job);

  CudaContext context_;
  cudaStream_t compute_ = nullptr;
  cudaStream_t copies_ = nullptr;
  cudaStream_t recorder_ = nullptr;
  cudaMemPool_t pool_ = nullptr;
  cudaEvent_t copied_ = nullptr;            // of join_copies()
  cudaStream_t used_ = nullptr;             // where the job under way has queued its last work
  std::atomic<bool> copies_queued_{false};  // since the last join_copies()
  std::atomic<int> under_way_{0};           // jobs between mark() and await()
  std::atomic<int64_t> allocations_{0};
  std::atomic<bool> stopped_{true};
  bool graphs_ = true;
  StagingPool staging_;
  std::unique_ptr<CublasLt> blas_;

  std::mutex idle_mutex_;                   // guards what follows
  std::map<size_t, std::set<void*>> idle_;  // small blocks that were given back, by their size
  size_t idle_bytes_ = 0;

  std::mutex mutex_;                // guards what follows
  std::vector<cudaEvent_t> marks_;  // not in use
  std::string failure_;             // empty: none

  Pipeline pipeline_;
};

}  // namespace siglip
