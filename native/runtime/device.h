// A device: memory, and a queue of jobs that a thread of the device takes in order. Shared by all
// environments of the process (the main thread and worker threads of Node).
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "runtime/job.h"
#include "runtime/launcher.h"
#include "runtime/memory.h"
#include "runtime/staging.h"
#include "runtime/stream.h"

namespace siglip {

class Device : public MemorySource {
 public:
  static Device& cpu();
  // That of a name: cpu, cuda:0, cuda:1 …, or cuda for the first GPU that can be used. Throws
  // ERR_ARGUMENT for another name, ERR_DEVICE, saying why and what to do, for a device that is not
  // there.
  static Device& named(const std::string& name);

  // An environment begins or ends to use devices. The end of the last one shuts them down: what is
  // under way is cut short as far as can be and every thread joined, since the code they run may be
  // unloaded next. A later submit() would start them again.
  static void attach();
  static void detach();

  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  DeviceKind kind() const final { return kind_; }
  const std::string& name() const { return name_; }
  Arena& arena() { return arena_; }

  // How much runs side by side, which scratch functions are given: threads of the CPU,
  // multiprocessors of a GPU.
  virtual int workers() = 0;

  // Queues a job; starts the threads for the first one. From any thread. Throws ERR_DEVICE when that
  // fails.
  virtual void submit(std::unique_ptr<Job> job) = 0;

  // Host memory for the copies below. Of two kinds where making the better one takes time: who is not
  // `patient` gets what is at hand. From any thread.
  virtual std::unique_ptr<Staging> stage(size_t bytes, bool patient) = 0;

  // A job is about to be submitted: the thread that will take it may wake up meanwhile. From any thread.
  virtual void expect() {}

  // For jobs, on the scheduler thread: copies `bytes` bytes, those at `offset` of `from`. The staging memory has to live until the
  // job is done. `alone` says that no other job uses the memory: then the copy need not wait for work
  // queued before.
  virtual void copy_in(std::byte* to, const Staging& from, size_t offset, size_t bytes,
                       bool alone) = 0;
  virtual void copy_out(Staging& to, const std::byte* from, size_t bytes) = 0;

  // For jobs: sets `bytes` bytes to `value`.
  virtual void fill(std::byte* to, int value, size_t bytes) = 0;

  // For a program; null when its steps are simply to be called.
  virtual std::unique_ptr<Launcher> launcher() = 0;

  // Who has work on the device that may wait for another process.
  class Attendant {
   public:
    // Before the threads are joined: that work has to end.
    virtual void on_stop() noexcept = 0;

   protected:
    ~Attendant() = default;
  };
  // From any thread. Once leave() returns, on_stop() is neither under way nor called any more.
  void attend(Attendant& attendant);
  void leave(Attendant& attendant);

 protected:
  Device(DeviceKind kind, std::string name) : kind_(kind), name_(std::move(name)), arena_(*this) {}
  // Devices are never destroyed: process.exit() runs no cleanup hook of the main environment, so
  // threads may be alive while static objects die.
  ~Device() = default;

 private:
  static void stop_all();
  void end();
  // Ends the threads.
  virtual void stop() = 0;

  DeviceKind kind_;
  std::string name_;
  Arena arena_;
  std::mutex attendants_mutex_;
  std::set<Attendant*> attendants_;
};

}  // namespace siglip
