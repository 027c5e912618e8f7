// The threads a kernel's parallel loop runs on. Owned by a device and used by its scheduler thread,
// which is worker 0; the others spin for a moment between loops, so that the short gaps inside a
// program cost no wake-up, and sleep after that.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace siglip {

class ThreadPool {
 public:
  using Body = void (*)(const void* context, int64_t task, int worker);

  // Starts threads - 1 threads. Throws ERR_DEVICE when the system refuses one.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(context, task, worker) for every task in [0, tasks) and returns when all are done.
  // Every worker begins with a range of its own, task t with worker t · threads / tasks, and then
  // takes over from the end of others' ranges: a processor that somebody else uses as well holds up
  // one task, not the loop. One caller at a time, and no call from inside a body. When bodies throw,
  // the exception of the lowest worker is rethrown after all have stopped; tasks may be left undone.
  void run(int64_t tasks, Body body, const void* context);

  // From any thread, for good: workers leave out the tasks they have not begun. What a loop
  // computes is undefined from here on; its caller has to look at cancelled().
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

 private:
  void work(int worker);
  void run_share(int worker);
  bool take_first(int worker, int64_t& task);
  bool take_last(int worker, int64_t& task);
  uint64_t await_epoch(uint64_t seen);
  void await_workers();
  void stop();

  // Tasks of a worker that nobody has begun: the first in the upper half, the end in the lower.
  struct alignas(64) Share {
    std::atomic<uint64_t> range{0};
  };

  const int threads_;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> busy_{false};

  // The loop under way; written before epoch_ is raised.
  Body body_ = nullptr;
  const void* context_ = nullptr;
  bool stopping_ = false;

  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<int> remaining_{0};
  alignas(64) std::mutex mutex_;
  std::condition_variable begun_;
  std::condition_variable ended_;
  std::vector<Share> shares_;               // by worker
  std::vector<std::exception_ptr> errors_;  // by worker
  std::vector<std::thread> workers_;
};

}  // namespace siglip
