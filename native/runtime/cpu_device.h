// The CPU as a device: one scheduler thread of our own, and the threads its kernels run on; never
// libuv's pool, which serves files and DNS.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime/device.h"

namespace siglip {

class CpuDevice final : public Device {
 public:
  CpuDevice() : Device(DeviceKind::kCpu, "cpu") {}

  // Threads of a kernel. Throws ERR_ARGUMENT when SIGLIP2_THREADS cannot be used.
  int workers() override;
  void submit(std::unique_ptr<Job> job) override;
  std::shared_ptr<Memory> allocate(size_t bytes, Contents contents) override;
  std::unique_ptr<Staging> stage(size_t bytes, bool patient) override;
  void copy_in(std::byte* to, const Staging& from, size_t offset, size_t bytes,
               bool alone) override;
  void copy_out(Staging& to, const std::byte* from, size_t bytes) override;
  void fill(std::byte* to, int value, size_t bytes) override;
  std::unique_ptr<Launcher> launcher() override { return nullptr; }

 private:
  void stop() override;
  void start();
  void schedule();

  std::mutex life_;  // held while threads are started or joined
  int threads_ = 0;  // 0: not read yet
  std::unique_ptr<ThreadPool> pool_;
  std::thread scheduler_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Job>> queue_;
  bool stopping_ = false;
};

}  // namespace siglip
