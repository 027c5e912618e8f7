// The CPU as a device: a queue of jobs that one scheduler thread of our own takes in order, and the
// threads its kernels run on. One per process, shared by all environments (the main thread and
// worker threads of Node); never libuv's pool, which serves files and DNS.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime/memory.h"
#include "runtime/stream.h"

namespace siglip {

class Job {
 public:
  virtual ~Job() = default;
  // On the scheduler thread. Exceptions go to done().
  virtual void run(Stream& stream) = 0;
  // Behind run(), on the scheduler thread, with what run() threw. Jobs left in the queue when the
  // device shuts down are destroyed without it.
  virtual void done(std::exception_ptr error) noexcept = 0;
};

class Device {
 public:
  static Device& cpu();

  // Workers of a kernel. Throws ERR_ARGUMENT when SIGLIP2_THREADS cannot be used.
  int threads();
  Arena& arena() { return arena_; }

  // An environment begins or ends to use the device. The end of the last one shuts it down: the
  // kernel under way is cut short and every thread joined, since the code they run may be unloaded
  // next. A later submit() would start it again.
  void attach();
  void detach();

  // Queues a job; starts the threads for the first one. Throws ERR_DEVICE when that fails.
  void submit(std::unique_ptr<Job> job);

 private:
  Device() = default;
  void start();
  void stop();
  void schedule();

  std::mutex life_;  // held while threads are started or joined
  int environments_ = 0;
  int threads_ = 0;  // 0: not read yet
  Arena arena_;
  std::unique_ptr<ThreadPool> pool_;
  std::thread scheduler_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Job>> queue_;
  bool stopping_ = false;
};

}  // namespace siglip
