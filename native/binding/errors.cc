#include "binding/errors.h"

#include <new>
#include <string>

#include "binding/environment.h"
#include "runtime/error.h"

namespace siglip {
namespace {

Napi::Value make_error(Napi::Env env, const char* code, const std::string& message) {
  const Napi::FunctionReference& error_class = Environment::of(env).error_class();
  const Napi::String text = Napi::String::New(env, message);
  if (!error_class.IsEmpty()) return error_class.New({Napi::String::New(env, code), text});
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error.Value();
}

}  // namespace

Napi::Value to_javascript(Napi::Env env, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Napi::Error& javascript) {
    return javascript.Value();
  } catch (const Error& ours) {
    return make_error(env, ours.code(), ours.what());
  } catch (const std::bad_alloc&) {
    return make_error(env, "ERR_OUT_OF_MEMORY",
                      "memory: an allocation of the host must fit, got a refusal by the system");
  } catch (const std::exception& other) {
    return make_error(env, "ERR_BINDING",
                      std::string("addon: it must not fail, got ") + other.what());
  }
}

}  // namespace siglip
