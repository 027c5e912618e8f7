#include "ops/gelu/gelu.h"

#include "cpu/check.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// body(offset, left) for every vector of elements; left < kLanes only for the very last one.
template <typename Body>
void for_each_vector(Stream& stream, int64_t elements, const Body& body) {
  const Partition parts = partition(elements, 1, kLanes);
  stream.parallel(parts.tasks(), [&](int64_t task, int) {
    const int64_t end = parts.end(task);
    for (int64_t i = parts.begin(task); i < end; i += kLanes) body(i, end - i);
  });
}

Vec get(const float* p, int64_t left) { return left >= kLanes ? load(p) : load_partial(p, left); }

void put(float* p, Vec v, int64_t left) {
  left >= kLanes ? store(p, v) : store_partial(p, v, left);
}

}  // namespace

void gelu_forward(Stream& stream, In x, Out y) {
  const int64_t elements = x.elements();
  check_elements("gelu_forward", "y", y, elements);
  const float* from = x.data();
  float* to = y.data();
  for_each_vector(stream, elements,
                  [&](int64_t i, int64_t left) { put(to + i, gelu(get(from + i, left)), left); });
}

void gelu_backward(Stream& stream, In dy, In x, Out dx) {
  const int64_t elements = x.elements();
  check_elements("gelu_backward", "dy", dy, elements);
  check_elements("gelu_backward", "dx", dx, elements);
  const float* upstream = dy.data();
  const float* from = x.data();
  float* to = dx.data();
  for_each_vector(stream, elements, [&](int64_t i, int64_t left) {
    put(to + i, get(upstream + i, left) * gelu_gradient(get(from + i, left)), left);
  });
}

}  // namespace siglip::SIGLIP_CPU
