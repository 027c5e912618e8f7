// From JavaScript values to ours, each refusing what it cannot be.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/device.h"
#include "runtime/error.h"

namespace siglip {

// `what` reads "<who>: <what>" in all of these.
int64_t to_integer(const Napi::Value& value, std::string_view what);
// An integer that is not negative.
int64_t to_size(const Napi::Value& value, std::string_view what);
double to_number(const Napi::Value& value, std::string_view what);
bool to_flag(const Napi::Value& value, std::string_view what);
std::string to_text(const Napi::Value& value, std::string_view what);
Napi::Object to_object(const Napi::Value& value, std::string_view what);
// At most `limit` long.
Napi::Array to_array(const Napi::Value& value, std::string_view what, size_t limit);

// The bytes of a Uint8Array, valid until JavaScript runs again.
struct Bytes {
  std::byte* data;
  int64_t length;
};
Bytes to_bytes(const Napi::Value& value, std::string_view what);

// The numbers of a Float32Array, valid until JavaScript runs again.
struct Floats {
  const float* data;
  int64_t count;
};
Floats to_floats(const Napi::Value& value, std::string_view what);

// The device of that name; the CPU for undefined.
Device& to_device(const Napi::Value& value, std::string_view what);

// How a value is named in an error message.
std::string text_of(const Napi::Value& value);

// The native object behind a JavaScript object of class T, which has a static kTag.
template <typename T>
T& unwrap(const Napi::Value& value, std::string_view what) {
  bool tagged = false;
  if (!value.IsObject() ||
      napi_check_object_type_tag(value.Env(), value, &T::kTag, &tagged) != napi_ok || !tagged) {
    throw Error("ERR_ARGUMENT",
                std::string(what) + " must be a " + T::kName + ", got " + text_of(value));
  }
  return *T::Unwrap(value.As<Napi::Object>());
}

}  // namespace siglip
