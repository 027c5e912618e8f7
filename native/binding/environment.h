// What one environment (the main thread or a worker thread of Node) keeps: the error class handed
// over by TypeScript, and the promises that native work will settle. Nothing here is shared with
// another environment but the channel, through which the scheduler thread reports.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace siglip {

// A promise under way and what its settlement needs of JavaScript.
struct Pending {
  Napi::Promise::Deferred deferred;
  Napi::ObjectReference into;  // what the work reads or fills, else empty
};

// The outcome of a job, on its way to the JavaScript thread.
class Settlement {
 public:
  explicit Settlement(uint64_t id) : id_(id) {}
  virtual ~Settlement() = default;

  uint64_t id() const { return id_; }
  void fail(std::exception_ptr error) { error_ = std::move(error); }
  const std::exception_ptr& error() const { return error_; }

  // Resolves the promise, or does a part of the work and returns false to be called again when
  // other events have had their turn.
  virtual bool resolve(Napi::Env env, Pending& pending) = 0;

 private:
  friend class Channel;
  uint64_t id_;
  std::exception_ptr error_;
  std::unique_ptr<Settlement> next_;
};

// From the scheduler thread to one JavaScript thread. Outlives its environment as long as jobs hold
// it; what is posted after the end is dropped.
class Channel {
 public:
  explicit Channel(napi_threadsafe_function wake) : wake_(wake) {}
  ~Channel();

  // From any thread. Does not allocate.
  void post(std::unique_ptr<Settlement> settlement) noexcept;
  // In the order of posting; the rest hangs on next_ of the first.
  std::unique_ptr<Settlement> take();
  static std::unique_ptr<Settlement> next_of(Settlement& settlement);

  void close();
  // Set when the environment has ended: its jobs may stop.
  const std::atomic<bool>& closed() const { return closed_; }
  // A job that touches memory of JavaScript holds this meanwhile and looks at closed() first: the
  // end of the environment, which frees that memory, waits for it.
  std::mutex& memory() { return memory_; }

 private:
  std::mutex memory_;
  std::mutex mutex_;
  napi_threadsafe_function wake_;  // null once closed
  std::unique_ptr<Settlement> first_;
  Settlement* last_ = nullptr;
  std::atomic<bool> closed_{false};
};

class Environment {
 public:
  // Makes the environment and ties its end to that of `env`.
  static void create(Napi::Env env);
  static Environment& of(Napi::Env env);

  void set_error_class(Napi::Function error_class);
  const Napi::FunctionReference& error_class() const { return error_class_; }
  const std::shared_ptr<Channel>& channel() const { return channel_; }

  // A new promise; the loop stays alive until it is settled, here or by what a job posts.
  uint64_t open(Napi::Env env, Napi::Value into);
  Napi::Promise promise_of(uint64_t id);
  void resolve(Napi::Env env, uint64_t id);
  void reject(Napi::Env env, uint64_t id, const std::exception_ptr& error);

 private:
  static void on_wake(napi_env env, napi_value callback, void* context, void* data);
  static void on_end(void* environment);
  void settle(Napi::Env env);
  void close(Napi::Env env, uint64_t id);

  napi_threadsafe_function wake_ = nullptr;
  std::shared_ptr<Channel> channel_;
  Napi::FunctionReference error_class_;
  std::unordered_map<uint64_t, Pending> pending_;
  uint64_t next_id_ = 1;
};

}  // namespace siglip
