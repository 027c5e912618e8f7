// The JavaScript class of a communicator of NCCL.
#pragma once

#include <napi.h>

#include <memory>
#include <string_view>
#include <vector>

#include "comm/nccl.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace siglip {

class NcclObject : public Napi::ObjectWrap<NcclObject> {
 public:
  static constexpr const char* kName = "NativeNccl";
  static Napi::Function define(Napi::Env env);

  explicit NcclObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value open(const Napi::CallbackInfo& info);
  Napi::Value run(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);
  Napi::Value abort(const Napi::CallbackInfo& info);
  std::byte* place(const Napi::Value& value, std::string_view what, int64_t bytes,
                   std::vector<BufferUse>* uses) const;
  Transfer transfer(const Napi::Value& value, std::vector<BufferUse>* uses) const;

  Device* device_ = nullptr;
  std::shared_ptr<NcclCommunicator> communicator_;
  int size_ = 0;  // 0 before open()
};

// ncclId() of lib/native/addon.ts.
Napi::Value nccl_id(const Napi::CallbackInfo& info);

// What describe() says of NCCL.
Napi::Value describe_nccl(const Napi::CallbackInfo& info);

}  // namespace siglip
