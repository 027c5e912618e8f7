#include "runtime/pipeline.h"

#include <utility>

#include "runtime/thread_name.h"

namespace siglip {

void Pipeline::submit(std::unique_ptr<Job> job) {
  const std::lock_guard<std::mutex> life(life_);
  if (!issuer_.joinable()) start();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(job));
  }
  issuer_bell_.ring();
}

void Pipeline::expect() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    expecting_ = true;
  }
  issuer_bell_.ring();
}

void Pipeline::start() {
  stopping_ = false;
  issued_ = false;
  const SignalsBlocked blocked;
  settler_ = std::thread([this] { settle_jobs(); });
  try {
    issuer_ = std::thread([this] { issue_jobs(); });
  } catch (...) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      issued_ = true;
    }
    settler_bell_.ring();
    settler_.join();
    throw;
  }
}

void Pipeline::stop() {
  const std::lock_guard<std::mutex> life(life_);
  if (!issuer_.joinable()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  issuer_bell_.ring();
  issuer_.join();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    issued_ = true;
  }
  settler_bell_.ring();
  settler_.join();
  std::deque<std::unique_ptr<Job>> dropped;
  const std::lock_guard<std::mutex> lock(mutex_);
  dropped.swap(queue_);
}

void Pipeline::issue_jobs() {
  name_this_thread(thread_name_.c_str());
  engine_.enter_thread();
  while (true) {
    UnderWay next = {};
    {
      std::unique_lock<std::mutex> lock(mutex_);
      issuer_bell_.wait(lock, [this] { return stopping_ || expecting_ || can_issue(); });
      if (stopping_) return;
      expecting_ = false;
      if (!can_issue()) continue;
      next.job = std::move(queue_.front());
      queue_.pop_front();
    }
    try {
      engine_.issue(*next.job);
    } catch (...) {
      next.error = std::current_exception();
    }
    next.mark = engine_.mark();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      under_way_.push_back(std::move(next));
    }
    settler_bell_.ring();
  }
}

void Pipeline::settle_jobs() {
  name_this_thread((thread_name_ + ":w").c_str());
  engine_.enter_thread();
  while (true) {
    UnderWay* first = nullptr;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      settler_bell_.wait(lock, [this] { return issued_ || !under_way_.empty(); });
      if (under_way_.empty()) return;
      first = &under_way_.front();  // stays where it is while others are added behind it
    }
    std::exception_ptr error = first->error;
    try {
      engine_.await(first->mark, *first->job);
    } catch (...) {
      if (!error) error = std::current_exception();
    }
    first->job->done(std::move(error));
    first->job.reset();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      under_way_.pop_front();
    }
    issuer_bell_.ring();
  }
}

}  // namespace siglip
