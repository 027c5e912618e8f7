// The two threads of a device that works beside the processor: one takes jobs in order and queues what
// they ask for, the other waits until the device has done it and reports. So the device never waits for
// us, and nobody but the second thread waits for the device.
#pragma once

#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "runtime/bell.h"
#include "runtime/job.h"

namespace siglip {

// What the threads need of the device.
class Engine {
 public:
  // On each thread before anything else.
  virtual void enter_thread() noexcept = 0;
  // Runs the job, which queues its work. Throws what it throws, or why the device is no longer usable.
  virtual void issue(Job& job) = 0;
  // A mark behind everything the last issue() queued, or null when there is nothing to wait for.
  virtual void* mark() noexcept = 0;
  // Waits until the device has come to the mark, whose end this is. Throws when the device failed
  // before; `job` is who waits.
  virtual void await(void* mark, const Job& job) = 0;

 protected:
  ~Engine() = default;
};

class Pipeline {
 public:
  // At most `ahead` jobs are queued on the device. `thread_name` has at most 12 characters.
  Pipeline(Engine& engine, size_t ahead, std::string thread_name)
      : engine_(engine), ahead_(ahead), thread_name_(std::move(thread_name)) {}
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  // Starts the threads for the first job. Throws std::system_error when that fails.
  void submit(std::unique_ptr<Job> job);

  // A job is about to be submitted: the thread that will take it may wake up meanwhile.
  void expect();

  // Waits for the jobs that are on the device, drops those still queued, ends the threads. A later
  // submit() would start them again.
  void stop();

 private:
  struct UnderWay {
    std::unique_ptr<Job> job;
    void* mark;
    std::exception_ptr error;
  };
  void start();
  bool can_issue() const { return !queue_.empty() && under_way_.size() < ahead_; }
  void issue_jobs();
  void settle_jobs();

  Engine& engine_;
  const size_t ahead_;
  const std::string thread_name_;

  std::mutex life_;  // held while threads are started or joined
  std::thread issuer_;
  std::thread settler_;

  std::mutex mutex_;  // guards what follows
  std::deque<std::unique_ptr<Job>> queue_;
  std::deque<UnderWay> under_way_;
  bool expecting_ = false;  // a job is about to come
  bool stopping_ = false;   // the issuer is to end
  bool issued_ = false;     // and has

  Bell issuer_bell_;   // a job can be issued, or the end
  Bell settler_bell_;  // a job is under way, or the end
};

}  // namespace siglip
