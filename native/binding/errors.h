// The one place where a C++ exception becomes a JavaScript error.
#pragma once

#include <napi.h>

#include <exception>
#include <utility>

namespace siglip {

// A SiglipError; errors that came from JavaScript (a getter that throws) are given as they are.
Napi::Value to_javascript(Napi::Env env, const std::exception_ptr& error);

// Runs the body of a native function, so that whatever it throws arrives in JavaScript.
template <typename Body>
auto guarded(Napi::Env env, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw Napi::Error(env, to_javascript(env, std::current_exception()));
  }
}

}  // namespace siglip
