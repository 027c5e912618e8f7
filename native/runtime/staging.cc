#include "runtime/staging.h"

#include <iterator>
#include <vector>

namespace siglip {
namespace {

constexpr size_t kSmallest = size_t{1} << 16;
// How many times too large a block may be.
constexpr size_t kSlack = 4;

}  // namespace

class StagingPool::Pooled final : public Staging {
 public:
  Pooled(StagingPool& pool, Blocks::node_type block)
      : Staging(block.mapped()), pool_(pool), block_(std::move(block)) {}
  ~Pooled() override { pool_.give_back(std::move(block_)); }

  bool pooled() const override { return true; }

 private:
  StagingPool& pool_;
  Blocks::node_type block_;
};

// Up to a quarter of a power of two, so that sizes a little apart share blocks.
size_t StagingPool::rounded(size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  size_t step = kSmallest;
  while (step * 8 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

std::unique_ptr<Staging> StagingPool::take(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t wanted = rounded(bytes);
  const auto found = free_blocks_.lower_bound(wanted);
  if (found == free_blocks_.end() || found->first > kSlack * wanted) return nullptr;
  return std::make_unique<Pooled>(*this, free_blocks_.extract(found));
}

void StagingPool::grow(size_t bytes) {
  const size_t wanted = rounded(bytes);
  std::vector<std::byte*> evicted;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t in_use = bytes_;
    for (const auto& block : free_blocks_) in_use -= block.first;
    if (wanted > limit_ || in_use > limit_ - wanted) return;
    while (bytes_ > limit_ - wanted) evicted.push_back(evict());
    bytes_ += wanted;
  }
  for (std::byte* block : evicted) free_(block);
  std::byte* made = make_(wanted);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (made == nullptr) {
    bytes_ -= wanted;
  } else {
    free_blocks_.emplace(wanted, made);
  }
}

void StagingPool::shrink() {
  std::vector<std::byte*> evicted;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (std::byte* block = evict()) evicted.push_back(block);
  }
  for (std::byte* block : evicted) free_(block);
}

size_t StagingPool::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

void StagingPool::give_back(Blocks::node_type block) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_blocks_.insert(std::move(block));
}

std::byte* StagingPool::evict() {
  if (free_blocks_.empty()) return nullptr;
  const auto largest = std::prev(free_blocks_.end());
  std::byte* block = largest->second;
  bytes_ -= largest->first;
  free_blocks_.erase(largest);
  return block;
}

}  // namespace siglip
