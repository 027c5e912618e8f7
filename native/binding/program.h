// The JavaScript class of programs.
#pragma once

#include <napi.h>

#include <memory>

#include "runtime/program.h"

namespace siglip {

// `args` as a step has them, for scratchBytes.
StepDescription parse_call(const Napi::Value& kernel, const Napi::Value& args);

class ProgramObject : public Napi::ObjectWrap<ProgramObject> {
 public:
  static constexpr const char* kName = "NativeProgram";
  static Napi::Function define(Napi::Env env);

  explicit ProgramObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value run(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);

  std::shared_ptr<Program> program_;  // null after dispose()
};

}  // namespace siglip
