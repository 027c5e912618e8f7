// How one thread tells another of news. Who waits looks out for them for a moment before it sleeps:
// within a call the next job is nearer than what falling asleep and being woken takes.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "runtime/pause.h"

namespace siglip {

class Bell {
 public:
  // After a change of what the waiting thread asks for, which was made under its lock.
  void ring() {
    news_.fetch_add(1, std::memory_order_release);
    rung_.notify_one();
  }

  // Waits until ready(), which is called with the lock held. By one thread.
  template <typename Ready>
  void wait(std::unique_lock<std::mutex>& lock, const Ready& ready) {
    const Clock::time_point end = Clock::now() + kLookOut;
    while (!ready() && Clock::now() < end) {
      const uint32_t known = news_.load(std::memory_order_relaxed);
      lock.unlock();
      while (news_.load(std::memory_order_acquire) == known && Clock::now() < end) pause();
      lock.lock();
    }
    rung_.wait(lock, ready);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kLookOut{100};

  std::atomic<uint32_t> news_{0};
  std::condition_variable rung_;
};

}  // namespace siglip
