// The exports of siglip2_mpi.node; lib/native/mpi.ts says what they mean. An addon of its own, so that
// the package needs MPI neither to be built nor to run.
#include <napi.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/world.h"
#include "runtime/error.h"
#include "runtime/thread_name.h"

namespace siglip {
namespace {

// MPI is the process', so there is one state, and it is that of the environment that opened it.
struct State {
  std::unique_ptr<World> world;
  Napi::FunctionReference error_class;
  Napi::ThreadSafeFunction settle;
  int pending = 0;
};

State* state = nullptr;

// A promise under way and the arrays its operation uses.
struct Pending {
  Napi::Promise::Deferred deferred;
  Napi::Reference<Napi::Array> arrays;
  std::exception_ptr error;
};

Napi::Value to_javascript(Napi::Env env, const std::exception_ptr& error) {
  const auto make = [&](const char* code, const char* message) -> Napi::Value {
    return state->error_class.New({Napi::String::New(env, code), Napi::String::New(env, message)});
  };
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    return make(known.code(), known.what());
  } catch (const std::exception& unknown) {
    return make("ERR_COMM", unknown.what());
  }
}

template <typename Body>
Napi::Value guarded(Napi::Env env, const Body& body) {
  try {
    if (state == nullptr || state->error_class.IsEmpty()) {
      throw Napi::Error::New(env, "comm: initialize must be called first, in one thread");
    }
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw Napi::Error(env, to_javascript(env, std::current_exception()));
  }
}

World& opened() {
  if (!state->world) throw Error("ERR_DISPOSED", "comm: MPI must be open, got a closed one");
  return *state->world;
}

// The elements of a typed array as bytes.
Message to_message(const Napi::Value& value, int rank) {
  if (!value.IsTypedArray()) {
    throw Error("ERR_ARGUMENT", "comm: data must be a typed array, got another value");
  }
  const auto array = value.As<Napi::TypedArray>();
  auto* data = static_cast<std::byte*>(array.ArrayBuffer().Data());
  return {rank, data == nullptr ? nullptr : data + array.ByteOffset(),
          static_cast<int64_t>(array.ByteLength())};
}

Message to_floats(const Napi::Value& value) {
  const Message data = to_message(value, 0);
  if (value.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array) {
    throw Error("ERR_DTYPE", "comm: data of a sum must be a Float32Array, got another array");
  }
  return data;
}

int to_rank(const Napi::Value& value) {
  const double rank = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(rank >= 0 && rank < opened().size())) {
    throw Error("ERR_ARGUMENT", "comm: rank must be below " + std::to_string(opened().size()) +
                                    ", got " + value.ToString().Utf8Value());
  }
  return static_cast<int>(rank);
}

std::vector<int64_t> to_counts(const Napi::Value& value) {
  const auto given = value.IsArray() ? value.As<Napi::Array>() : Napi::Array::New(value.Env());
  if (static_cast<int>(given.Length()) != opened().size()) {
    throw Error("ERR_ARGUMENT", "comm: counts must be those of " + std::to_string(opened().size()) +
                                    " ranks, got " + std::to_string(given.Length()));
  }
  std::vector<int64_t> counts;
  for (uint32_t r = 0; r < given.Length(); ++r) {
    const Napi::Value count = given[r];
    counts.push_back(count.IsNumber() ? count.As<Napi::Number>().Int64Value() : -1);
    if (counts.back() < 0) throw Error("ERR_ARGUMENT", "comm: counts must not be negative");
  }
  return counts;
}

void expect_bytes(const char* what, const Message& data, int64_t bytes) {
  if (data.bytes == bytes) return;
  throw Error("ERR_SHAPE", std::string("comm: ") + what + " must have " + std::to_string(bytes) +
                               " bytes, got " + std::to_string(data.bytes));
}

int64_t bytes_of(const std::vector<int64_t>& counts, size_t size) {
  int64_t elements = 0;
  for (const int64_t count : counts) elements += count;
  return elements * static_cast<int64_t>(size);
}

// Submits an operation; `result` makes what its promise gives.
template <typename Result>
Napi::Value submit(const Napi::CallbackInfo& info, const char* name,
                   std::function<void(World&)> run, Result result) {
  const Napi::Env env = info.Env();
  Napi::Array arrays = Napi::Array::New(env);
  for (size_t i = 0; i < info.Length(); ++i) arrays.Set(static_cast<uint32_t>(i), info[i]);
  auto* pending = new Pending{Napi::Promise::Deferred::New(env), Napi::Persistent(arrays), nullptr};
  const Napi::Promise promise = pending->deferred.Promise();
  if (state->pending++ == 0) state->settle.Ref(env);
  const Napi::ThreadSafeFunction settle = state->settle;
  const auto done = [settle, pending, result](std::exception_ptr error) {
    pending->error = std::move(error);
    settle.NonBlockingCall(pending, [result](Napi::Env at, Napi::Function, Pending* settled) {
      const std::unique_ptr<Pending> owned(settled);
      if (--state->pending == 0) state->settle.Unref(at);
      if (owned->error) {
        owned->deferred.Reject(to_javascript(at, owned->error));
      } else {
        owned->deferred.Resolve(result(at));
      }
    });
  };
  opened().submit({name, std::move(run), done});
  return promise;
}

Napi::Value nothing(Napi::Env env) { return env.Undefined(); }

Napi::Value initialize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (state != nullptr && state->world) {
    throw Napi::Error::New(env, "comm: MPI is open in another thread");
  }
  delete state;
  state = new State{};
  state->error_class = Napi::Persistent(info[0].As<Napi::Function>());
  state->error_class.SuppressDestruct();
  // Never called: what it is called with carries its own callback.
  const Napi::Function unused = Napi::Function::New(env, [](const Napi::CallbackInfo&) {});
  state->settle = Napi::ThreadSafeFunction::New(env, unused, "siglip2_mpi", 0, 1);
  state->settle.Unref(env);
  // Runs before the end of the thread-safe function, and ends the thread that calls it.
  info.Env().AddCleanupHook([] { state->world.reset(); });
  return env.Undefined();
}

Napi::Value open(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (state->world) throw Error("ERR_COMM", "comm: MPI must be opened once, got a second time");
    const double limit = info[0].As<Napi::Number>().DoubleValue();
    {
      const SignalsBlocked blocked;
      state->world = std::make_unique<World>(limit);
    }
    return submit(
        info, "open", [](World& world) { world.initialize(); },
        [](Napi::Env at) -> Napi::Value {
          Napi::Object description = Napi::Object::New(at);
          description.Set("rank", opened().rank());
          description.Set("size", opened().size());
          description.Set("localRank", opened().local_rank());
          description.Set("library", opened().library());
          return description;
        });
  });
}

Napi::Value barrier(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return submit(
        info, "barrier", [](World& world) { world.barrier(); }, nothing);
  });
}

Napi::Value all_gather(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Message part = to_message(info[0], 0);
    const std::vector<int64_t> counts = to_counts(info[1]);
    const Message into = to_message(info[2], 0);
    expect_bytes("part", part, counts[static_cast<size_t>(opened().rank())]);
    expect_bytes("into", into, bytes_of(counts, 1));
    return submit(
        info, "allGather", [=](World& world) { world.all_gather(part.data, counts, into.data); },
        nothing);
  });
}

Napi::Value all_reduce(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Message data = to_floats(info[0]);
    const auto length = data.bytes / static_cast<int64_t>(sizeof(float));
    return submit(
        info, "allReduce",
        [=](World& world) { world.all_reduce(reinterpret_cast<float*>(data.data), length); },
        nothing);
  });
}

Napi::Value reduce_scatter(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Message data = to_floats(info[0]);
    const std::vector<int64_t> counts = to_counts(info[1]);
    const Message into = to_floats(info[2]);
    expect_bytes("data", data, bytes_of(counts, sizeof(float)));
    expect_bytes("into", into, bytes_of({counts[static_cast<size_t>(opened().rank())]}, 4));
    return submit(
        info, "reduceScatter",
        [=](World& world) {
          world.reduce_scatter(reinterpret_cast<const float*>(data.data), counts,
                               reinterpret_cast<float*>(into.data));
        },
        nothing);
  });
}

Napi::Value broadcast(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Message data = to_message(info[0], to_rank(info[1]));
    return submit(
        info, "broadcast", [=](World& world) { world.broadcast(data.data, data.bytes, data.rank); },
        nothing);
  });
}

// [data, rank, data, rank, …]
std::vector<Message> to_messages(const Napi::Value& value) {
  std::vector<Message> messages;
  const auto given = value.IsArray() ? value.As<Napi::Array>() : Napi::Array::New(value.Env());
  for (uint32_t i = 0; i + 1 < given.Length(); i += 2) {
    messages.push_back(to_message(given[i], to_rank(given[i + 1])));
  }
  return messages;
}

Napi::Value exchange(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::vector<Message> sends = to_messages(info[0]);
    const std::vector<Message> receives = to_messages(info[1]);
    return submit(
        info, "exchange", [=](World& world) { world.exchange(sends, receives); }, nothing);
  });
}

Napi::Value abort(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&]() -> Napi::Value { opened().abort(info[0].ToString().Utf8Value()); });
}

Napi::Value close(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return submit(
        info, "close", [](World& world) { world.finalize(); },
        [](Napi::Env at) -> Napi::Value {
          state->world.reset();
          return at.Undefined();
        });
  });
}

Napi::Object define(Napi::Env env, Napi::Object exports) {
  exports.Set("initialize", Napi::Function::New(env, initialize));
  exports.Set("open", Napi::Function::New(env, open));
  exports.Set("barrier", Napi::Function::New(env, barrier));
  exports.Set("allGather", Napi::Function::New(env, all_gather));
  exports.Set("allReduce", Napi::Function::New(env, all_reduce));
  exports.Set("reduceScatter", Napi::Function::New(env, reduce_scatter));
  exports.Set("broadcast", Napi::Function::New(env, broadcast));
  exports.Set("exchange", Napi::Function::New(env, exchange));
  exports.Set("abort", Napi::Function::New(env, abort));
  exports.Set("close", Napi::Function::New(env, close));
  return exports;
}

}  // namespace
}  // namespace siglip

static Napi::Object define_mpi(Napi::Env env, Napi::Object exports) {
  return siglip::define(env, exports);
}

NODE_API_MODULE(siglip2_mpi, define_mpi)
