// A piece of work for a device.
#pragma once

#include <exception>
#include <string>

#include "runtime/stream.h"

namespace siglip {

class Job {
 public:
  virtual ~Job() = default;
  // What it is, for error messages.
  virtual std::string name() const = 0;
  // On the scheduler thread: does the work, or on a GPU queues it. Exceptions go to done().
  virtual void run(Stream& stream) = 0;
  // Once the device has done what run() asked for, with what went wrong; in the order of the jobs, on
  // a thread of the device. Jobs left in the queue when the device shuts down are destroyed without.
  virtual void done(std::exception_ptr error) noexcept = 0;
};

}  // namespace siglip
