#include "runtime/kernel.h"

namespace siglip {

const char* name_of(ArgumentKind kind) {
  switch (kind) {
    case ArgumentKind::kIn:
      return "in";
    case ArgumentKind::kMaybeIn:
      return "maybe_in";
    case ArgumentKind::kOut:
      return "out";
    case ArgumentKind::kMaybeOut:
      return "maybe_out";
    case ArgumentKind::kInOut:
      return "inout";
    case ArgumentKind::kInList:
      return "in_list";
    case ArgumentKind::kInt:
      return "int";
    case ArgumentKind::kFloat:
      return "float";
    default:
      return "scratch";
  }
}

}  // namespace siglip
