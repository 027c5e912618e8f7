#include "binding/file.h"

#include <string>

#include "binding/buffer.h"
#include "binding/errors.h"
#include "binding/values.h"
#include "runtime/error.h"

namespace siglip {
namespace {

// V8 ends the process when it cannot allocate an array buffer, so larger pieces are not offered.
constexpr int64_t kMaxSlice = int64_t{1} << 30;

}  // namespace

Napi::Function FileObject::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceAccessor<&FileObject::bytes>("bytes"),
       InstanceAccessor<&FileObject::disposed>("disposed"),
       InstanceMethod<&FileObject::slice>("slice"), InstanceMethod<&FileObject::load>("load"),
       InstanceMethod<&FileObject::dispose>("dispose")});
}

FileObject::FileObject(const Napi::CallbackInfo& info) : ObjectWrap<FileObject>(info) {
  guarded(info.Env(), [&] {
    const std::string path = to_text(info[0], "file: path");
    if (path.find('\0') != std::string::npos) {
      throw Error("ERR_ARGUMENT", "file: path must be without a zero byte, got one");
    }
    file_ = std::make_unique<File>(path);
    bytes_ = file_->bytes();
  });
}

const File& FileObject::file() const {
  if (!file_) throw Error("ERR_DISPOSED", "file: it must be open, got a disposed one");
  return *file_;
}

Napi::Value FileObject::bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(bytes_));
}

Napi::Value FileObject::disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !file_);
}

Napi::Value FileObject::slice(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const File& source = file();
    const int64_t offset = to_size(info[0], "slice: offset");
    const int64_t length = to_size(info[1], "slice: length");
    check_range("slice", offset, length, bytes_);
    if (length > kMaxSlice) {
      throw Error("ERR_ARGUMENT", "slice: length must be at most " + std::to_string(kMaxSlice) +
                                      ", got " + std::to_string(length));
    }
    Napi::Uint8Array piece = Napi::Uint8Array::New(info.Env(), static_cast<size_t>(length));
    source.read(offset, reinterpret_cast<std::byte*>(piece.Data()), length);
    return piece;
  });
}

Napi::Value FileObject::load(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const File& source = file();
    const int64_t offset = to_size(info[0], "load: offset");
    const FileFormat& format = file_format(to_text(info[1], "load: format"));
    const BufferObject& object = unwrap<BufferObject>(info[2], "load: into");
    const std::shared_ptr<Buffer> into = object.buffer("load: into");
    Device& device = object.device();
    const int64_t into_offset = to_size(info[3], "load: intoOffset");
    const int64_t elements = to_size(info[4], "load: elements");
    const auto size = static_cast<int64_t>(size_of(format.dtype));
    const auto available = static_cast<int64_t>(into->bytes());
    // Bounds the products below.
    if (elements > available) {
      throw Error("ERR_ARGUMENT", "load: elements must fit into " + std::to_string(available) +
                                      " bytes, got " + std::to_string(elements));
    }
    check_range("load: into", into_offset, elements * size, available);
    if (into_offset % size != 0) {
      throw Error("ERR_ARGUMENT", "load: intoOffset must be a multiple of " + std::to_string(size) +
                                      ", got " + std::to_string(into_offset));
    }
    check_range("load", offset, elements * format.bytes, bytes_);
    write_in_order(device, into, into_offset, elements * size,
                   [&](std::byte* to) { siglip::load(source, offset, format, elements, to); });
    return info.Env().Undefined();
  });
}

Napi::Value FileObject::dispose(const Napi::CallbackInfo& info) {
  file_.reset();
  return info.Env().Undefined();
}

}  // namespace siglip
