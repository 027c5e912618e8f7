// The exports of the addon; lib/native/addon.ts says what they mean.
#include <napi.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <utility>

#include "binding/buffer.h"
#include "binding/environment.h"
#include "binding/errors.h"
#include "binding/file.h"
#include "binding/image.h"
#include "binding/nccl.h"
#include "binding/program.h"
#include "binding/table.h"
#include "binding/values.h"
#include "runtime/cuda.h"
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/finite.h"

namespace siglip {
namespace {

Napi::Value initialize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!info[0].IsFunction()) {
      throw Error("ERR_ARGUMENT",
                  "initialize: errorClass must be a class, got " + text_of(info[0]));
    }
    Environment::of(env).set_error_class(info[0].As<Napi::Function>());
    // A mistake in the process' environment shows here and not at the first use.
    active_isa();
    Device::cpu().workers();
    return env.Undefined();
  });
}

Napi::Value cuda_free(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto* device = static_cast<const CudaDeviceDescription*>(info.Data());
    return Napi::Number::New(info.Env(), static_cast<double>(cuda_free_bytes(device->index)));
  });
}

Napi::Value describe_cuda(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const CudaDescription& found = cuda_description();
    Napi::Object cuda = Napi::Object::New(env);
    cuda.Set("built", found.built);
    if (!found.driver.empty()) cuda.Set("driver", found.driver);
    if (!found.runtime.empty()) cuda.Set("runtime", found.runtime);
    Napi::Array devices = Napi::Array::New(env);
    for (const CudaDeviceDescription& device : found.devices) {
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("index", device.index);
      entry.Set("name", device.name);
      entry.Set("architecture", device.architecture);
      entry.Set("memoryBytes", static_cast<double>(device.memory_bytes));
      // The description outlives everything; only a getter's data may not be const.
      auto* data = const_cast<CudaDeviceDescription*>(&device);
      entry.DefineProperty(
          Napi::PropertyDescriptor::Accessor<cuda_free>("freeBytes", napi_enumerable, data));
      entry.Set("multiprocessors", device.multiprocessors);
      entry.Set("uuid", device.uuid);
      devices.Set(devices.Length(), entry);
    }
    cuda.Set("devices", devices);
    Napi::Array missing = Napi::Array::New(env);
    for (const std::string& what : found.missing) missing.Set(missing.Length(), what);
    cuda.Set("missing", missing);
    cuda.DefineProperty(Napi::PropertyDescriptor::Accessor<describe_nccl>("nccl", napi_enumerable));
    return cuda;
  });
}

Napi::Value describe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    Napi::Array list = Napi::Array::New(env);
    uint32_t index = 0;
    for (const Kernel& kernel : kernels(DeviceKind::kCpu)) {
      Napi::Array arguments = Napi::Array::New(env);
      uint32_t position = 0;
      for (const Argument& argument : kernel.arguments()) {
        Napi::Object entry = Napi::Object::New(env);
        entry.Set("name", argument.name);
        entry.Set("kind", name_of(argument.kind));
        arguments.Set(position++, entry);
      }
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("name", kernel.name());
      entry.Set("arguments", arguments);
      entry.Set("cuda", kernels(DeviceKind::kCuda)[index].present());
      list.Set(index++, entry);
    }
    Napi::Object description = Napi::Object::New(env);
    description.Set("isa", name_of(active_isa()));
    Napi::Array features = Napi::Array::New(env);
    uint32_t count = 0;
    if (configured_features().vnni) features.Set(count++, "vnni");
    if (configured_features().bf16) features.Set(count++, "bf16");
    if (configured_features().amx) features.Set(count++, "amx");
    description.Set("features", features);
    description.Set("threads", Device::cpu().workers());
    description.Set("kernels", list);
    // Looked up when it is asked for: that takes long where there is a driver.
    description.DefineProperty(
        Napi::PropertyDescriptor::Accessor<describe_cuda>("cuda", napi_enumerable));
    return description;
  });
}

Napi::Value open_device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Napi::String::New(info.Env(), to_device(info[0], "openDevice: device").name());
  });
}

Napi::Value scratch(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Device& device = to_device(info[2], "scratchBytes: device");
    const size_t bytes =
        scratch_bytes(kernels(device.kind()), device.workers(), parse_call(info[0], info[1]));
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

Napi::Object memory_of(Napi::Env env, DeviceKind kind) {
  const MemoryInUse use = memory_in_use(kind);
  Napi::Object result = Napi::Object::New(env);
  result.Set("buffers", static_cast<double>(use.buffers));
  result.Set("bufferBytes", static_cast<double>(use.buffer_bytes));
  result.Set("arenaBytes", static_cast<double>(use.arena_bytes));
  return result;
}

Napi::Value memory(const Napi::CallbackInfo& info) {
  Napi::Object result = memory_of(info.Env(), DeviceKind::kCpu);
  result.Set("cuda", memory_of(info.Env(), DeviceKind::kCuda));
  return result;
}

// The best of many short stretches, since anything else that runs can only make one slower.
class PeakJob : public Job {
 public:
  PeakJob(double seconds, Precision precision, std::promise<double> best)
      : seconds_(seconds), precision_(precision), best_(std::move(best)) {}

  std::string name() const override { return "peak"; }
  void run(Stream& stream) override {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point start) {
      return std::chrono::duration<double>(Clock::now() - start).count();
    };
    constexpr int64_t kRounds = int64_t{1} << 20;
    const Clock::time_point start = Clock::now();
    do {
      const Clock::time_point begin = Clock::now();
      const double flops = multiply_add(stream, precision_, kRounds);
      rate_ = std::max(rate_, flops / since(begin));
    } while (since(start) < seconds_ && !stream.cancelled());
  }
  void done(std::exception_ptr error) noexcept override {
    if (error) {
      best_.set_exception(std::move(error));
    } else {
      best_.set_value(rate_);
    }
  }

 private:
  double seconds_;
  Precision precision_;
  double rate_ = 0;
  std::promise<double> best_;
};

Precision to_precision(const Napi::Value& value) {
  const std::string name = value.IsUndefined() ? "float32"
                           : value.IsString()  ? value.As<Napi::String>().Utf8Value()
                                               : text_of(value);
  if (name == "float32") return Precision::kFloat32;
  if (name == "int8") return Precision::kInt8;
  if (name == "bfloat16") return Precision::kBfloat16;
  throw Error("ERR_ARGUMENT",
              "peak: precision must be float32, int8 or bfloat16, got " + text_of(value));
}

Napi::Value peak(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    constexpr double kMaxSeconds = 60;
    const double seconds = to_number(info[0], "peak: seconds");
    if (!(seconds > 0 && seconds <= kMaxSeconds)) {
      throw Error("ERR_ARGUMENT", "peak: seconds must be in (0, 60], got " + text_of(info[0]));
    }
    const Precision precision = to_precision(info[1]);
    std::promise<double> promise;
    std::future<double> best = promise.get_future();
    Device::cpu().submit(std::make_unique<PeakJob>(seconds, precision, std::move(promise)));
    return Napi::Number::New(info.Env(), best.get());
  });
}

Napi::Value find_not_finite(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Floats values = to_floats(info[0], "firstNotFinite: values");
    const int64_t found = first_not_finite(values.data, values.count);
    return Napi::Number::New(info.Env(), static_cast<double>(found));
  });
}

Napi::Value expect_job(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    to_device(info[0], "expectJob: device").expect();
    return info.Env().Undefined();
  });
}

Napi::Object export_all(Napi::Env env, Napi::Object exports) {
  Environment::create(env);
  exports.Set("initialize", Napi::Function::New<initialize>(env, "initialize"));
  exports.Set("describe", Napi::Function::New<describe>(env, "describe"));
  exports.Set("openDevice", Napi::Function::New<open_device>(env, "openDevice"));
  exports.Set("scratchBytes", Napi::Function::New<scratch>(env, "scratchBytes"));
  exports.Set("memory", Napi::Function::New<memory>(env, "memory"));
  exports.Set("peak", Napi::Function::New<peak>(env, "peak"));
  exports.Set("firstNotFinite", Napi::Function::New<find_not_finite>(env, "firstNotFinite"));
  exports.Set("expectJob", Napi::Function::New<expect_job>(env, "expectJob"));
  exports.Set("prepareImages", Napi::Function::New<prepare_images>(env, "prepareImages"));
  exports.Set("renderViews", Napi::Function::New<render_views>(env, "renderViews"));
  exports.Set("ncclId", Napi::Function::New<nccl_id>(env, "ncclId"));
  exports.Set("Buffer", BufferObject::define(env));
  exports.Set("Program", ProgramObject::define(env));
  exports.Set("MappedFile", FileObject::define(env));
  exports.Set("Nccl", NcclObject::define(env));
  return exports;
}

}  // namespace
}  // namespace siglip

// The macro makes the registration by which the addon can be loaded in any number of contexts.
static Napi::Object initialize_addon(Napi::Env env, Napi::Object exports) {
  return siglip::export_all(env, exports);
}
NODE_API_MODULE(NODE_GYP_MODULE_NAME, initialize_addon)
