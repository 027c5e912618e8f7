#include "runtime/thread_pool.h"

#include <string>
#include <system_error>

#include "runtime/error.h"
#include "runtime/pause.h"
#include "runtime/thread_name.h"

namespace siglip {
namespace {

// About 40 µs of pause instructions: longer than the gap between two kernels of a program, shorter
// than what putting a thread to sleep and waking it costs.
constexpr int kSpins = 2000;

// Of a share's range.
constexpr int kHalf = 32;
constexpr uint64_t kLowerHalf = 0xffffffff;

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(threads),
      shares_(static_cast<size_t>(threads)),
      errors_(static_cast<size_t>(threads)) {
  try {
    for (int worker = 1; worker < threads; ++worker) {
      workers_.emplace_back([this, worker] { work(worker); });
    }
  } catch (const std::system_error& error) {
    stop();
    throw Error("ERR_DEVICE", "cpu: " + std::to_string(threads) +
                                  " threads must be available, got " + error.what() +
                                  "\nto do: set SIGLIP2_THREADS to a smaller number");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    epoch_.fetch_add(1, std::memory_order_release);
  }
  begun_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run(int64_t tasks, Body body, const void* context) {
  if (tasks <= 0) return;
  if (tasks > static_cast<int64_t>(kLowerHalf)) {
    throw Error("ERR_ARGUMENT",
                "parallel: tasks must be fewer than 2^32, got " + std::to_string(tasks));
  }
  if (busy_.exchange(true, std::memory_order_acquire)) {
    throw Error("ERR_ARGUMENT", "parallel: a loop must not run inside another, got two at once");
  }
  struct Idle {
    std::atomic<bool>& busy;
    ~Idle() { busy.store(false, std::memory_order_release); }
  } idle{busy_};

  if (threads_ == 1 || tasks == 1) {
    for (int64_t task = 0; task < tasks && !cancelled(); ++task) body(context, task, 0);
    return;
  }
  // Task t belongs to worker ⌊t · threads / tasks⌋, so the range begins at ⌈worker · tasks / threads⌉.
  const auto first_of = [&](int worker) {
    return static_cast<uint64_t>((worker * tasks + threads_ - 1) / threads_);
  };
  for (int worker = 0; worker < threads_; ++worker) {
    shares_[static_cast<size_t>(worker)].range.store(
        first_of(worker) << kHalf | first_of(worker + 1), std::memory_order_relaxed);
  }
  body_ = body;
  context_ = context;
  remaining_.store(threads_ - 1, std::memory_order_relaxed);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    epoch_.fetch_add(1, std::memory_order_release);
  }
  begun_.notify_all();
  run_share(0);
  await_workers();

  std::exception_ptr first;
  for (std::exception_ptr& error : errors_) {
    if (error && !first) first = error;
    error = nullptr;
  }
  if (first) std::rethrow_exception(first);
}

void ThreadPool::run_share(int worker) {
  try {
    int64_t task = 0;
    while (!cancelled() && take_first(worker, task)) body_(context_, task, worker);
    for (int i = 1; i < threads_; ++i) {
      const int other = (worker + i) % threads_;
      while (!cancelled() && take_last(other, task)) body_(context_, task, worker);
    }
  } catch (...) {
    errors_[static_cast<size_t>(worker)] = std::current_exception();
  }
}

bool ThreadPool::take_first(int worker, int64_t& task) {
  std::atomic<uint64_t>& range = shares_[static_cast<size_t>(worker)].range;
  uint64_t now = range.load(std::memory_order_relaxed);
  while (now >> kHalf < (now & kLowerHalf)) {
    if (range.compare_exchange_weak(now, now + (uint64_t{1} << kHalf), std::memory_order_relaxed)) {
      task = static_cast<int64_t>(now >> kHalf);
      return true;
    }
  }
  return false;
}

bool ThreadPool::take_last(int worker, int64_t& task) {
  std::atomic<uint64_t>& range = shares_[static_cast<size_t>(worker)].range;
  uint64_t now = range.load(std::memory_order_relaxed);
  while (now >> kHalf < (now & kLowerHalf)) {
    if (range.compare_exchange_weak(now, now - 1, std::memory_order_relaxed)) {
      task = static_cast<int64_t>((now & kLowerHalf) - 1);
      return true;
    }
  }
  return false;
}

void ThreadPool::work(int worker) {
  name_this_thread("siglip2-worker");
  uint64_t seen = 0;
  while (true) {
    seen = await_epoch(seen);
    if (stopping_) return;
    run_share(worker);
    if (remaining_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      // Taking the lock orders this behind a caller that has looked at remaining_ but sleeps not yet.
      { const std::lock_guard<std::mutex> lock(mutex_); }
      ended_.notify_one();
    }
  }
}

uint64_t ThreadPool::await_epoch(uint64_t seen) {
  for (int spin = 0; spin < kSpins; ++spin) {
    const uint64_t epoch = epoch_.load(std::memory_order_acquire);
    if (epoch != seen) return epoch;
    pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  begun_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
  return epoch_.load(std::memory_order_acquire);
}

void ThreadPool::await_workers() {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (remaining_.load(std::memory_order_acquire) == 0) return;
    pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  ended_.wait(lock, [&] { return remaining_.load(std::memory_order_acquire) == 0; });
}

}  // namespace siglip
