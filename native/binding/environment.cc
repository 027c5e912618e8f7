#include "binding/environment.h"

#include <utility>

#include "binding/errors.h"
#include "runtime/device.h"

namespace siglip {

// Iteratively, since the list may be long.
Channel::~Channel() {
  while (first_) first_ = std::move(first_->next_);
}

void Channel::post(std::unique_ptr<Settlement> settlement) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (wake_ == nullptr) return;
  Settlement* last = settlement.get();
  const bool waking = first_ != nullptr;
  (waking ? last_->next_ : first_) = std::move(settlement);
  last_ = last;
  if (!waking) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

std::unique_ptr<Settlement> Channel::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::move(first_);
}

std::unique_ptr<Settlement> Channel::next_of(Settlement& settlement) {
  return std::move(settlement.next_);
}

void Channel::close() {
  closed_.store(true, std::memory_order_relaxed);
  const std::lock_guard<std::mutex> memory(memory_);
  const std::lock_guard<std::mutex> lock(mutex_);
  wake_ = nullptr;
}

void Environment::create(Napi::Env env) {
  auto* environment = new Environment();
  env.SetInstanceData<Environment>(environment);

  const auto check = [&](napi_status status) {
    if (status != napi_ok) throw Napi::Error::New(env);
  };
  const Napi::String name = Napi::String::New(env, "siglip2");
  check(napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr,
                                        environment, on_wake, &environment->wake_));
  check(napi_unref_threadsafe_function(env, environment->wake_));
  environment->channel_ = std::make_shared<Channel>(environment->wake_);
  // Hooks run last in, first out, so this one comes before the end of the thread-safe function.
  check(napi_add_env_cleanup_hook(env, on_end, environment));
  Device::attach();
}

Environment& Environment::of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

void Environment::on_end(void* environment) {
  static_cast<Environment*>(environment)->channel_->close();
  Device::detach();
}

void Environment::set_error_class(Napi::Function error_class) {
  error_class_ = Napi::Persistent(error_class);
}

uint64_t Environment::open(Napi::Env env, Napi::Value into) {
  if (pending_.empty()) napi_ref_threadsafe_function(env, wake_);
  Pending pending{Napi::Promise::Deferred::New(env), {}};
  if (!into.IsEmpty()) pending.into = Napi::Persistent(into.As<Napi::Object>());
  pending_.emplace(next_id_, std::move(pending));
  return next_id_++;
}

Napi::Promise Environment::promise_of(uint64_t id) { return pending_.at(id).deferred.Promise(); }

void Environment::resolve(Napi::Env env, uint64_t id) {
  pending_.at(id).deferred.Resolve(env.Undefined());
  close(env, id);
}

void Environment::reject(Napi::Env env, uint64_t id, const std::exception_ptr& error) {
  pending_.at(id).deferred.Reject(to_javascript(env, error));
  close(env, id);
}

void Environment::close(Napi::Env env, uint64_t id) {
  pending_.erase(id);
  if (pending_.empty()) napi_unref_threadsafe_function(env, wake_);
}

void Environment::on_wake(napi_env env, napi_value, void* context, void*) {
  // Without an environment the queue of wake-ups is being emptied at its end.
  if (env != nullptr) static_cast<Environment*>(context)->settle(Napi::Env(env));
}

void Environment::settle(Napi::Env env) {
  std::unique_ptr<Settlement> settlement = channel_->take();
  while (settlement) {
    const Napi::HandleScope scope(env);
    std::unique_ptr<Settlement> next = Channel::next_of(*settlement);
    const uint64_t id = settlement->id();
    bool settled = true;
    try {
      Pending& pending = pending_.at(id);
      try {
        if (settlement->error()) std::rethrow_exception(settlement->error());
        settled = settlement->resolve(env, pending);
      } catch (...) {
        pending.deferred.Reject(to_javascript(env, std::current_exception()));
      }
    } catch (const Napi::Error&) {
      // JavaScript is being stopped (a terminated worker): nobody is left to be told.
    }
    if (settled) {
      close(env, id);
    } else {
      channel_->post(std::move(settlement));
    }
    settlement = std::move(next);
  }
}

}  // namespace siglip
