// The JavaScript class of device memory.
#pragma once

#include <napi.h>

#include <memory>
#include <string_view>
#include <utility>

#include "runtime/memory.h"

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

 private:
  Napi::Value bytes(const Napi::CallbackInfo& info);
  Napi::Value disposed(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);
  void release(napi_env env);

  std::shared_ptr<Buffer> buffer_;  // null after dispose()
  int64_t bytes_ = 0;
};

// Puts `bytes` bytes at `offset` behind the work already queued for the buffer.
// `fill(std::byte* to)` makes them, at once and on the calling thread.
template <typename Fill>
void write_in_order(const std::shared_ptr<Buffer>& buffer, int64_t offset, int64_t bytes,
                    const Fill& fill);

// Queues the copy of `staged` (`bytes` long) into the buffer.
void queue_write(const std::shared_ptr<Buffer>& buffer, int64_t offset, int64_t bytes,
                 std::unique_ptr<std::byte[]> staged);

template <typename Fill>
void write_in_order(const std::shared_ptr<Buffer>& buffer, int64_t offset, int64_t bytes,
                    const Fill& fill) {
  if (buffer->idle()) {
    fill(buffer->data() + offset);
    return;
  }
  std::unique_ptr<std::byte[]> staged(new std::byte[static_cast<size_t>(bytes)]);
  fill(staged.get());
  queue_write(buffer, offset, bytes, std::move(staged));
}

// Throws ERR_ARGUMENT unless [offset, offset + bytes) lies inside `available` bytes.
void check_range(std::string_view who, int64_t offset, int64_t bytes, int64_t available);

}  // namespace siglip
