// The JavaScript class of programs.
#pragma once

#include <napi.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "binding/buffer.h"
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
  // A buffer of all runs, and what keeps it.
  struct Bound {
    Napi::ObjectReference object;
    const BufferObject* buffer;
  };
  Napi::Value bind(const Napi::CallbackInfo& info);
  Napi::Value run(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);

  std::vector<BufferUse> parse_buffers(const Napi::Value& value, const Program& program) const;

  std::shared_ptr<Program> program_;  // null after dispose()
  size_t first_bound_ = 0;
  std::vector<Bound> bound_;
};

}  // namespace siglip
