#include "binding/values.h"

#include <cmath>

namespace siglip {
namespace {

constexpr double kMaxSafeInteger = 9007199254740991.0;

[[noreturn]] void refuse(const Napi::Value& value, std::string_view what, const char* expected) {
  throw Error("ERR_ARGUMENT",
              std::string(what) + " must be " + expected + ", got " + text_of(value));
}

}  // namespace

std::string text_of(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return value.As<Napi::Boolean>().Value() ? "true" : "false";
    case napi_number: {
      std::string text = value.ToString().Utf8Value();
      return text;
    }
    case napi_string:
      return "'" + value.As<Napi::String>().Utf8Value().substr(0, 100) + "'";
    case napi_symbol:
      return "a symbol";
    case napi_function:
      return "a function";
    case napi_bigint:
      return "a bigint";
    default:
      return value.IsArray() ? "an array" : value.IsTypedArray() ? "a typed array" : "an object";
  }
}

int64_t to_integer(const Napi::Value& value, std::string_view what) {
  if (!value.IsNumber()) refuse(value, what, "an integer");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(std::abs(number) <= kMaxSafeInteger) || std::trunc(number) != number) {
    refuse(value, what, "an integer");
  }
  return static_cast<int64_t>(number);
}

int64_t to_size(const Napi::Value& value, std::string_view what) {
  const bool natural = value.IsNumber() && value.As<Napi::Number>().DoubleValue() >= 0;
  if (!natural) refuse(value, what, "an integer of at least 0");
  return to_integer(value, what);
}

double to_number(const Napi::Value& value, std::string_view what) {
  if (!value.IsNumber()) refuse(value, what, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

bool to_flag(const Napi::Value& value, std::string_view what) {
  if (!value.IsBoolean()) refuse(value, what, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

std::string to_text(const Napi::Value& value, std::string_view what) {
  if (!value.IsString()) refuse(value, what, "a string");
  return value.As<Napi::String>().Utf8Value();
}

Napi::Object to_object(const Napi::Value& value, std::string_view what) {
  if (!value.IsObject()) refuse(value, what, "an object");
  return value.As<Napi::Object>();
}

Napi::Array to_array(const Napi::Value& value, std::string_view what, size_t limit) {
  if (!value.IsArray()) refuse(value, what, "an array");
  const auto array = value.As<Napi::Array>();
  if (array.Length() > limit) {
    throw Error("ERR_ARGUMENT", std::string(what) + " must have at most " + std::to_string(limit) +
                                    " entries, got " + std::to_string(array.Length()));
  }
  return array;
}

Bytes to_bytes(const Napi::Value& value, std::string_view what) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    refuse(value, what, "a Uint8Array");
  }
  auto array = value.As<Napi::Uint8Array>();
  return {reinterpret_cast<std::byte*>(array.Data()), static_cast<int64_t>(array.ByteLength())};
}

Floats to_floats(const Napi::Value& value, std::string_view what) {
  if (!value.IsTypedArray() ||
      value.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array) {
    refuse(value, what, "a Float32Array");
  }
  auto array = value.As<Napi::Float32Array>();
  return {array.Data(), static_cast<int64_t>(array.ElementLength())};
}

Device& to_device(const Napi::Value& value, std::string_view what) {
  return value.IsUndefined() ? Device::cpu() : Device::named(to_text(value, what));
}

}  // namespace siglip
