// What is kept of a program's runs by the addresses they work on: the few used last, and whether
// addresses come back at all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <list>
#include <utility>
#include <vector>

namespace siglip {

using Addresses = std::vector<std::byte*>;

template <typename Value>
class AddressCache {
 public:
  AddressCache(size_t values, size_t remembered) : values_(values), remembered_(remembered) {}

  // Null when nothing is kept for them.
  Value* find(const Addresses& addresses) {
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& entry) {
      return entry.addresses == addresses;
    });
    if (found == kept_.end()) return nullptr;
    kept_.splice(kept_.begin(), kept_, found);
    return &found->value;
  }

  // Whether they were asked for here before, as far as is remembered.
  bool returning(const Addresses& addresses) {
    const auto found = std::find(seen_.begin(), seen_.end(), addresses);
    if (found != seen_.end()) {
      seen_.splice(seen_.begin(), seen_, found);
      return true;
    }
    seen_.push_front(addresses);
    if (seen_.size() > remembered_) seen_.pop_back();
    return false;
  }

  // Drops what was used longest ago when there is no room.
  Value& insert(const Addresses& addresses, Value value) {
    kept_.push_front({addresses, std::move(value)});
    if (kept_.size() > values_) kept_.pop_back();
    return kept_.front().value;
  }

  size_t size() const { return kept_.size(); }

 private:
  struct Kept {
    Addresses addresses;
    Value value;
  };
  size_t values_;
  size_t remembered_;
  std::list<Kept> kept_;  // the last used first
  std::list<Addresses> seen_;
};

}  // namespace siglip
