// From the dtype of a view to the type a CUDA kernel is compiled for.
#pragma once

#include <cuda_bf16.h>

#include <string>

#include "runtime/view.h"

namespace siglip {

// Calls body(T{}) with T = float or __nv_bfloat16.
template <typename Body>
void with_type(const char* who, const char* what, const View& view, const Body& body) {
  switch (view.dtype()) {
    case DType::kFloat32:
      return body(float{});
    case DType::kBfloat16:
      return body(__nv_bfloat16{});
    default:
      throw Error("ERR_DTYPE", std::string(who) + ": dtype of " + what +
                                   " must be float32 or bfloat16, got number " +
                                   std::to_string(static_cast<int>(view.dtype())));
  }
}

// The elements of a view whose dtype with_type() or a check has found to be T.
template <typename T>
const T* elements_of(const In& view) {
  return reinterpret_cast<const T*>(view.bytes());
}
template <typename T>
T* elements_of(const Out& view) {
  return reinterpret_cast<T*>(view.bytes());
}

}  // namespace siglip
