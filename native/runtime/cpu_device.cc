#include "runtime/cpu_device.h"

#include <cstring>
#include <system_error>
#include <utility>

#include "runtime/error.h"
#include "runtime/machine.h"
#include "runtime/thread_name.h"

namespace siglip {

int CpuDevice::workers() {
  const std::lock_guard<std::mutex> lock(life_);
  if (threads_ == 0) threads_ = configured_threads();
  return threads_;
}

void CpuDevice::submit(std::unique_ptr<Job> job) {
  const std::lock_guard<std::mutex> life(life_);
  if (!scheduler_.joinable()) start();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(job));
  }
  changed_.notify_one();
}

std::shared_ptr<Memory> CpuDevice::allocate(size_t bytes, Contents contents) {
  return std::make_shared<Block>(bytes, contents);
}

std::unique_ptr<Staging> CpuDevice::stage(size_t bytes, bool) {
  return std::make_unique<HeapStaging>(bytes);
}

void CpuDevice::copy_in(std::byte* to, const Staging& from, size_t offset, size_t bytes, bool) {
  std::memcpy(to, from.data() + offset, bytes);
}

void CpuDevice::copy_out(Staging& to, const std::byte* from, size_t bytes) {
  std::memcpy(to.data(), from, bytes);
}

void CpuDevice::fill(std::byte* to, int value, size_t bytes) { std::memset(to, value, bytes); }

void CpuDevice::start() {
  if (threads_ == 0) threads_ = configured_threads();
  const SignalsBlocked blocked;
  pool_ = std::make_unique<ThreadPool>(threads_);
  try {
    scheduler_ = std::thread([this] { schedule(); });
  } catch (const std::system_error& error) {
    pool_.reset();
    throw Error("ERR_DEVICE",
                std::string("cpu: a scheduler thread must start, got ") + error.what());
  }
}

void CpuDevice::stop() {
  const std::lock_guard<std::mutex> life(life_);
  if (!scheduler_.joinable()) return;
  pool_->cancel();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  scheduler_.join();
  pool_.reset();
  const std::lock_guard<std::mutex> lock(mutex_);
  queue_.clear();
  stopping_ = false;
}

void CpuDevice::schedule() {
  name_this_thread("siglip2-cpu");
  Stream stream(*pool_);
  while (true) {
    std::unique_ptr<Job> job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    std::exception_ptr error;
    try {
      job->run(stream);
    } catch (...) {
      error = std::current_exception();
    }
    job->done(error);
  }
}

}  // namespace siglip
