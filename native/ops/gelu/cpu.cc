#include "ops/gelu/gelu.h"

#include "cpu/activation.h"
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

// Φ(x). erfc as a rational approximation of relative error 1.2e-7 (Numerical Recipes §6.2):
// erfc(z) = t e^(−z² + p(t)), t = 1 / (1 + z/2), for z >= 0.
Vec normal_distribution(Vec x) {
  const Vec z = abs(x) * splat(0.70710678F);
  const Vec t = splat(1.0F) / multiply_add(z, splat(0.5F), splat(1.0F));
  Vec p = splat(0.17087277F);
  p = multiply_add(p, t, splat(-0.82215223F));
  p = multiply_add(p, t, splat(1.48851587F));
  p = multiply_add(p, t, splat(-1.13520398F));
  p = multiply_add(p, t, splat(0.27886807F));
  p = multiply_add(p, t, splat(-0.18628806F));
  p = multiply_add(p, t, splat(0.09678418F));
  p = multiply_add(p, t, splat(0.37409196F));
  p = multiply_add(p, t, splat(1.00002368F));
  p = multiply_add(p, t, splat(-1.26551223F));
  const Vec upper = splat(0.5F) * t * exp(multiply_add(-z, z, p));
  return select(x > splat(0.0F), splat(1.0F) - upper, upper);
}

struct GeluTanh {
  Vec value(Vec x) const { return gelu(x); }
  Vec gradient(Vec x) const { return gelu_gradient(x); }
};

struct GeluErf {
  Vec value(Vec x) const { return x * normal_distribution(x); }
  Vec gradient(Vec x) const {
    const Vec density = splat(0.39894228F) * exp(splat(-0.5F) * x * x);
    return multiply_add(x, density, normal_distribution(x));
  }
};

template <typename Body>
void with_form(int64_t form, const Body& body) {
  form == kActivationGeluErf ? body(GeluErf{}) : body(GeluTanh{});
}

}  // namespace

void gelu_forward(Stream& stream, In x, int64_t form, Out y) {
  const int64_t elements = x.elements();
  check_elements("gelu_forward", "y", y, elements);
  const float* from = x.data();
  float* to = y.data();
  with_form(form, [&](auto activation) {
    for_each_vector(stream, elements, [&](int64_t i, int64_t left) {
      put(to + i, activation.value(get(from + i, left)), left);
    });
  });
}

void gelu_backward(Stream& stream, In dy, In x, int64_t form, Out dx) {
  const int64_t elements = x.elements();
  check_elements("gelu_backward", "dy", dy, elements);
  check_elements("gelu_backward", "dx", dx, elements);
  const float* upstream = dy.data();
  const float* from = x.data();
  float* to = dx.data();
  with_form(form, [&](auto activation) {
    for_each_vector(stream, elements, [&](int64_t i, int64_t left) {
      put(to + i, get(upstream + i, left) * activation.gradient(get(from + i, left)), left);
    });
  });
}

}  // namespace siglip::SIGLIP_CPU
