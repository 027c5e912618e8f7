// The JavaScript class of files that weights are read from.
#pragma once

#include <napi.h>

#include <memory>

#include "runtime/file.h"

namespace siglip {

class FileObject : public Napi::ObjectWrap<FileObject> {
 public:
  static constexpr const char* kName = "NativeMappedFile";
  static Napi::Function define(Napi::Env env);

  explicit FileObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value bytes(const Napi::CallbackInfo& info);
  Napi::Value disposed(const Napi::CallbackInfo& info);
  Napi::Value slice(const Napi::CallbackInfo& info);
  Napi::Value load(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);
  const File& file() const;

  std::unique_ptr<File> file_;  // null after dispose()
  int64_t bytes_ = 0;
};

}  // namespace siglip
