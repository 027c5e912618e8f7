#include "binding/program.h"

#include <string>
#include <utility>
#include <vector>

#include "binding/buffer.h"
#include "binding/environment.h"
#include "binding/errors.h"
#include "binding/table.h"
#include "binding/values.h"
#include "runtime/device.h"
#include "runtime/error.h"

namespace siglip {
namespace {

// Far beyond any real program; they keep a nonsensical length from being walked.
constexpr size_t kMaxSteps = 1000000;
constexpr size_t kMaxBuffers = 1000000;
constexpr size_t kMaxArguments = 64;
constexpr size_t kMaxListItems = 1000000;

// What goes wrong below is told relative to where it stands; the callers know that.
ViewDescription parse_view(const Napi::Value& value) {
  const Napi::Object object = to_object(value, "it");
  ViewDescription view;
  view.storage = to_integer(object.Get("storage"), "storage");
  view.offset = to_integer(object.Get("offset"), "offset");
  view.dtype = to_integer(object.Get("dtype"), "dtype");
  const Napi::Array shape = to_array(object.Get("shape"), "shape", static_cast<size_t>(kMaxRank));
  const uint32_t rank = shape.Length();
  view.shape.reserve(rank);
  for (uint32_t axis = 0; axis < rank; ++axis) {
    view.shape.push_back(to_integer(shape.Get(axis), "an extent"));
  }
  return view;
}

ArgumentDescription parse_argument(const Napi::Value& value) {
  if (value.IsNull()) return std::monostate();
  if (value.IsNumber()) return value.As<Napi::Number>().DoubleValue();
  if (!value.IsArray()) return parse_view(value);
  const Napi::Array items = to_array(value, "the list", kMaxListItems);
  std::vector<ViewDescription> views;
  for (uint32_t i = 0; i < items.Length(); ++i) {
    const Napi::HandleScope scope(value.Env());
    views.push_back(parse_view(items.Get(i)));
  }
  return views;
}

std::vector<ArgumentDescription> parse_arguments(const Napi::Value& value) {
  const Napi::Array list = to_array(value, "args", kMaxArguments);
  std::vector<ArgumentDescription> arguments;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    arguments.push_back(located([&] { return "args[" + std::to_string(i) + "]: "; },
                                [&] { return parse_argument(list.Get(i)); }));
  }
  return arguments;
}

StepDescription parse_step(const Napi::Value& value) {
  const Napi::Object step = to_object(value, "it");
  return {to_integer(step.Get("kernel"), "kernel"), to_text(step.Get("label"), "label"),
          parse_arguments(step.Get("args"))};
}

ProgramDescription parse_program(const Napi::Value& value) {
  const Napi::Object object = to_object(value, "program: description");
  ProgramDescription description;
  description.name = to_text(object.Get("name"), "program: name");
  located(
      [&] { return description.name + ": "; },
      [&] {
        description.arena_bytes = to_size(object.Get("arenaBytes"), "arenaBytes");
        const Napi::Array buffers = to_array(object.Get("bufferBytes"), "bufferBytes", kMaxBuffers);
        for (uint32_t i = 0; i < buffers.Length(); ++i) {
          const Napi::HandleScope scope(value.Env());
          description.buffer_bytes.push_back(to_size(buffers.Get(i), "bufferBytes"));
        }
        const Napi::Array steps = to_array(object.Get("steps"), "steps", kMaxSteps);
        for (uint32_t i = 0; i < steps.Length(); ++i) {
          const Napi::HandleScope scope(value.Env());
          description.steps.push_back(located([&] { return "steps[" + std::to_string(i) + "]: "; },
                                              [&] { return parse_step(steps.Get(i)); }));
        }
      });
  return description;
}

class RunSettlement : public Settlement {
 public:
  RunSettlement(uint64_t id, size_t timed_steps) : Settlement(id), nanoseconds_(timed_steps) {}

  std::vector<double>& nanoseconds() { return nanoseconds_; }
  void set_profiled() { profiled_ = true; }
  bool profiled() const { return profiled_; }

  bool resolve(Napi::Env env, Pending& pending) override {
    if (!profiled_) {
      pending.deferred.Resolve(env.Undefined());
      return true;
    }
    Napi::Float64Array times = Napi::Float64Array::New(env, nanoseconds_.size());
    for (size_t i = 0; i < nanoseconds_.size(); ++i) times.Data()[i] = nanoseconds_[i];
    pending.deferred.Resolve(times);
    return true;
  }

 private:
  std::vector<double> nanoseconds_;
  bool profiled_ = false;
};

class RunJob : public Job {
 public:
  RunJob(std::shared_ptr<Program> program, std::vector<BufferUse> buffers,
         std::shared_ptr<Channel> channel, std::unique_ptr<RunSettlement> settlement)
      : program_(std::move(program)),
        buffers_(std::move(buffers)),
        channel_(std::move(channel)),
        settlement_(std::move(settlement)) {}

  std::string name() const override { return program_->name(); }
  void run(Stream& stream) override {
    under_way_ = program_->run(stream, buffers_, nanoseconds(), channel_->closed());
  }
  // Lets go of everything first: who awaits the promise finds the buffers idle.
  void done(std::exception_ptr error) noexcept override {
    try {
      if (!error && settlement_->profiled() && under_way_.launch) {
        under_way_.launch->read_times(nanoseconds());
      }
    } catch (...) {
      error = std::current_exception();
    }
    under_way_ = {};
    buffers_.clear();
    program_.reset();
    settlement_->fail(std::move(error));
    channel_->post(std::move(settlement_));
  }

 private:
  double* nanoseconds() {
    return settlement_->profiled() ? settlement_->nanoseconds().data() : nullptr;
  }

  std::shared_ptr<Program> program_;
  std::vector<BufferUse> buffers_;
  UnderWay under_way_;
  std::shared_ptr<Channel> channel_;
  std::unique_ptr<RunSettlement> settlement_;
};

// A buffer that may be the program's of that index.
const BufferObject& to_buffer(const Napi::Value& value, const Program& program, size_t index) {
  const BufferObject* object = nullptr;
  located([&] { return program.name() + ": buffer " + std::to_string(index); },
          [&] {
            object = &unwrap<BufferObject>(value, "");
            const std::shared_ptr<Buffer>& buffer = object->buffer("");
            if (&object->device() != &program.device()) {
              throw Error("ERR_DEVICE", " must be on " + program.device().name() + ", got one on " +
                                            object->device().name());
            }
            const size_t needed = program.buffer_bytes()[index];
            if (buffer->bytes() < needed) {
              throw Error("ERR_ARGUMENT", " must have " + std::to_string(needed) + " bytes, got " +
                                              std::to_string(buffer->bytes()));
            }
          });
  return *object;
}

}  // namespace

StepDescription parse_call(const Napi::Value& kernel, const Napi::Value& args) {
  return located([] { return std::string("scratchBytes: "); },
                 [&] {
                   return StepDescription{to_integer(kernel, "kernel"), "", parse_arguments(args)};
                 });
}

Napi::Function ProgramObject::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceMethod<&ProgramObject::bind>("bind"), InstanceMethod<&ProgramObject::run>("run"),
       InstanceMethod<&ProgramObject::dispose>("dispose")});
}

ProgramObject::ProgramObject(const Napi::CallbackInfo& info) : ObjectWrap<ProgramObject>(info) {
  guarded(info.Env(), [&] {
    Device& device = to_device(info[1], "program: device");
    program_ = std::make_shared<Program>(kernels(device.kind()), device, parse_program(info[0]));
  });
}

Napi::Value ProgramObject::bind(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!program_)
      throw Error("ERR_DISPOSED", "bind: the program must be alive, got a disposed one");
    // Reading the list may run JavaScript, which may dispose this very program.
    const std::shared_ptr<Program> program = program_;
    const auto first = static_cast<size_t>(to_size(info[0], program->name() + ": first"));
    const size_t buffers = program->buffer_bytes().size();
    const Napi::Array list = to_array(info[1], program->name() + ": buffers", buffers);
    const size_t count = list.Length();
    if (first > buffers - count) {
      throw Error("ERR_ARGUMENT", program->name() + ": first must be at most " +
                                      std::to_string(buffers - count) + ", got " +
                                      std::to_string(first));
    }
    std::vector<Bound> bound;
    for (uint32_t i = 0; i < count; ++i) {
      const Napi::HandleScope scope(info.Env());
      const Napi::Value value = list.Get(i);
      const BufferObject& buffer = to_buffer(value, *program, first + i);
      bound.push_back({Napi::Persistent(value.As<Napi::Object>()), &buffer});
    }
    first_bound_ = first;
    bound_ = std::move(bound);
    return info.Env().Undefined();
  });
}

std::vector<BufferUse> ProgramObject::parse_buffers(const Napi::Value& value,
                                                    const Program& program) const {
  const Napi::Array list = to_array(value, program.name() + ": buffers", kMaxBuffers);
  const size_t count = program.buffer_bytes().size();
  const size_t end_of_bound = first_bound_ + bound_.size();
  if (list.Length() != count - bound_.size()) {
    throw Error("ERR_ARGUMENT", program.name() + ": buffers must be " +
                                    std::to_string(count - bound_.size()) + ", got " +
                                    std::to_string(list.Length()));
  }
  std::vector<BufferUse> buffers;
  buffers.reserve(count);
  uint32_t next = 0;
  for (size_t i = 0; i < count; ++i) {
    if (i >= first_bound_ && i < end_of_bound) {
      const BufferObject& object = *bound_[i - first_bound_].buffer;
      if (object.disposed()) to_buffer(bound_[i - first_bound_].object.Value(), program, i);
      buffers.emplace_back(object.buffer(program.name()));
      continue;
    }
    const Napi::HandleScope scope(value.Env());
    const Napi::Value entry = list.Get(next++);
    buffers.emplace_back(to_buffer(entry, program, i).buffer(program.name()));
  }
  return buffers;
}

Napi::Value ProgramObject::run(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Environment& environment = Environment::of(env);
  const uint64_t id = environment.open(env, Napi::Value());
  const Napi::Promise promise = environment.promise_of(id);
  try {
    if (!program_)
      throw Error("ERR_DISPOSED", "run: the program must be alive, got a disposed one");
    // Reading the list may run JavaScript, which may dispose this very program.
    const std::shared_ptr<Program> program = program_;
    std::vector<BufferUse> buffers = parse_buffers(info[0], *program);
    const bool profile = !info[1].IsUndefined() && to_flag(info[1], program->name() + ": profile");
    auto settlement = std::make_unique<RunSettlement>(id, profile ? program->step_count() : 0);
    if (profile) settlement->set_profiled();
    program->device().submit(std::make_unique<RunJob>(
        program, std::move(buffers), environment.channel(), std::move(settlement)));
  } catch (...) {
    environment.reject(env, id, std::current_exception());
  }
  return promise;
}

Napi::Value ProgramObject::dispose(const Napi::CallbackInfo& info) {
  program_.reset();
  bound_.clear();
  return info.Env().Undefined();
}

}  // namespace siglip
