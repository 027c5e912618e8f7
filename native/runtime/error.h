// The one exception type of the native side. The binding turns it into the SiglipError class that
// TypeScript handed over at start-up; nothing else ever crosses the boundary.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace siglip {

class Error : public std::runtime_error {
 public:
  // `code` is one of lib/errors.ts, e.g. "ERR_SHAPE". `message` reads
  // "<who>: <what> must be <expected>, got <actual>".
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;  // always a string literal
};

// Runs `body`; to the message of an Error it puts `where()` in front, which is only made then.
template <typename Where, typename Body>
auto located(const Where& where, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw Error(error.code(), where() + error.what());
  }
}

}  // namespace siglip
