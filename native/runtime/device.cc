#include "runtime/device.h"

#include <cstdlib>
#include <system_error>
#include <utility>

#include "runtime/error.h"
#include "runtime/machine.h"
#include "runtime/thread_name.h"

namespace siglip {

// Never destroyed: process.exit() runs no cleanup hook of the main environment, so threads may be
// alive while static objects die, and a dead condition variable would hang or crash them. The exit
// handler joins them first.
Device& Device::cpu() {
  static Device* device = [] {
    auto* created = new Device();
    std::atexit([] {
      Device& cpu = Device::cpu();
      const std::lock_guard<std::mutex> lock(cpu.life_);
      cpu.stop();
    });
    return created;
  }();
  return *device;
}

int Device::threads() {
  const std::lock_guard<std::mutex> lock(life_);
  if (threads_ == 0) threads_ = configured_threads();
  return threads_;
}

void Device::attach() {
  const std::lock_guard<std::mutex> lock(life_);
  ++environments_;
}

void Device::detach() {
  const std::lock_guard<std::mutex> lock(life_);
  if (--environments_ == 0) stop();
}

void Device::submit(std::unique_ptr<Job> job) {
  const std::lock_guard<std::mutex> life(life_);
  if (!scheduler_.joinable()) start();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(job));
  }
  changed_.notify_one();
}

void Device::start() {
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

void Device::stop() {
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

void Device::schedule() {
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
