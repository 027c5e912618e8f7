// The JavaScript class of device memory.
#pragma once

#include <napi.h>

#include <memory>
#include <string_view>
#include <utility>

#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/staging.h"

namespace siglip {

class BufferObject : public Napi::ObjectWrap<BufferObject> {
 public:
  static constexpr napi_type_tag kTag = {0x5349474c49503242, 0x7566666572000001};
  static constexpr const char* kName = "NativeBuffer";
  static Napi::Function define(Napi::Env env);

  explicit BufferObject(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override;

  // The memory. Throws ERR_DISPOSED, naming `what`, after dispose().
  const std::shared_ptr<Buffer>& buffer(std::string_view what) const;
  bool disposed() const { return buffer_ == nullptr; }
  Device& device() const { return *device_; }

 private:
  Napi::Value bytes(const Napi::CallbackInfo& info);
  Napi::Value device_name(const Napi::CallbackInfo& info);
  Napi::Value is_disposed(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);
  void release(napi_env env);

  Device* device_ = nullptr;
  std::shared_ptr<Buffer> buffer_;  // null after dispose()
  int64_t bytes_ = 0;
};

// Queues the copy of `staged` (`bytes` long) into the buffer, which is the device's.
void queue_write(Device& device, const std::shared_ptr<Buffer>& buffer, int64_t offset,
                 int64_t bytes, std::unique_ptr<Staging> staged);

// Puts `bytes` bytes at `offset` behind the work already queued for the buffer.
// `fill(std::byte* to)` makes them, at once and on the calling thread.
template <typename Fill>
void write_in_order(Device& device, const std::shared_ptr<Buffer>& buffer, int64_t offset,
                    int64_t bytes, const Fill& fill) {
  if (device.kind() == DeviceKind::kCpu && buffer->idle()) {
    fill(buffer->data() + offset);
    return;
  }
  if (bytes == 0) return;
  std::unique_ptr<Staging> staged = device.stage(static_cast<size_t>(bytes), false);
  fill(staged->data());
  queue_write(device, buffer, offset, bytes, std::move(staged));
}

// Throws ERR_ARGUMENT unless [offset, offset + bytes) lies inside `available` bytes.
void check_range(std::string_view who, int64_t offset, int64_t bytes, int64_t available);

}  // namespace siglip
