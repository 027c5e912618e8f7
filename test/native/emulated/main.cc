// Runs products as the AVX-512 kernels compute them, emulated, beside the generic kernels on the same
// operands. A line per comparison: name, largest difference relative to the largest result, and how
// many results are NaN on one side only. Started by test/native/emulated_avx512.test.ts.
#include <cmath>
#include <cstdio>
#include <vector>

#include "ops/attention/attention.h"
#include "ops/linear/linear.h"
#include "ops/linear_bfloat16/linear_bfloat16.h"
#include "ops/linear_int8/linear_int8.h"
#include "ops/matmul/matmul.h"
#include "runtime/dispatch.h"

namespace siglip {

// In place of runtime/dispatch.cc: the machine under emulation has what the comparison says.
Features emulated;
const Features& configured_features() { return emulated; }

namespace {

using Shape = std::vector<int64_t>;

uint32_t state = 1;
float draw() {
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    state = state * 1664525U + 1013904223U;
    sum += static_cast<float>(state >> 8) / static_cast<float>(1 << 23) - 1.0F;
  }
  return sum;
}

// Exactly as large as its shape, so that the address sanitizer sees any access beyond.
template <typename T>
struct Array {
  explicit Array(Shape extents) : shape(std::move(extents)) {
    int64_t n = 1;
    for (const int64_t extent : shape) n *= extent;
    values.resize(static_cast<size_t>(n));
  }
  template <typename V>
  V view() {
    return V(values.data(), DTypeOf<T>::value, static_cast<int>(shape.size()), shape.data());
  }
  In in() { return view<In>(); }
  MaybeIn maybe_in() { return view<MaybeIn>(); }
  Out out() { return view<Out>(); }
  MaybeOut maybe_out() { return view<MaybeOut>(); }

  Shape shape;
  std::vector<T> values;
};

Array<float> drawn(const Shape& shape) {
  Array<float> array(shape);
  for (float& value : array.values) value = draw();
  return array;
}

struct ScratchMemory {
  explicit ScratchMemory(size_t bytes)
      : values(bytes / 64 + 1), scratch{&values[0].bytes[0], bytes} {}
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> values;
  Scratch scratch;
};

// `coarse` is by how much more than float32 the two may differ.
void report(const char* name, const Shape& sizes, const Array<float>& actual,
            const Array<float>& expected, double coarse = 1) {
  double worst = 0;
  double largest = 1e-30;
  int64_t lone = 0;
  for (size_t i = 0; i < actual.values.size(); ++i) {
    const double a = actual.values[i];
    const double b = expected.values[i];
    if (std::isnan(a) != std::isnan(b)) ++lone;
    if (std::isnan(a) || std::isnan(b)) continue;
    worst = std::fmax(worst, std::fabs(a - b));
    largest = std::fmax(largest, std::fabs(b));
  }
  std::printf("%s", name);
  for (const int64_t size : sizes) std::printf(" %lld", static_cast<long long>(size));
  std::printf(" %.3g %lld\n", worst / largest / coarse, static_cast<long long>(lone));
}

// Rows of 127 levels.
struct Quantised {
  std::vector<int64_t> integers;
  std::vector<double> scales;
};

Quantised quantise(const Array<float>& x) {
  Quantised result;
  const int64_t k = x.shape[1];
  for (int64_t row = 0; row < x.shape[0]; ++row) {
    const float* from = &x.values[row * k];
    float largest = 0;
    bool finite = true;
    for (int64_t i = 0; i < k; ++i) {
      largest = std::fmax(largest, std::fabs(from[i]));
      finite = finite && std::isfinite(from[i]);
    }
    result.scales.push_back(finite ? largest / 127.0F : NAN);
    const float factor = finite && largest > 0 ? 127.0F / largest : 0.0F;
    for (int64_t i = 0; i < k; ++i) {
      result.integers.push_back(finite ? std::lrintf(from[i] * factor) : 0);
    }
  }
  return result;
}

// Calls forward(y, pre) of both instruction sets.
template <typename Generic, typename Wide>
void compare(const char* name, const Shape& sizes, const Generic& generic, const Wide& wide) {
  const Shape shape = {sizes[0], sizes[2]};
  Array<float> pre[2] = {Array<float>(shape), Array<float>(shape)};
  Array<float> y[2] = {Array<float>(shape), Array<float>(shape)};
  generic(y[0], pre[0]);
  wide(y[1], pre[1]);
  report(name, sizes, y[1], y[0]);
  report(name, sizes, pre[1], pre[0]);
}

void compare_sizes(Stream& stream, int64_t m, int64_t k, int64_t n) {
  const Shape sizes = {m, k, n};
  Array<float> x = drawn({m, k});
  Array<float> weight = drawn({n, k});
  Array<float> bias = drawn({n});
  Array<float> residual = drawn({m, n});
  if (m > 4) x.values[3 * k] = NAN;
  if (m > 6) {
    for (int64_t i = 0; i < k; ++i) x.values[5 * k + i] = 0;
  }
  const int threads = stream.threads();

#define LINEAR(target)                                                                           \
  [&](Array<float>& y, Array<float>& pre) {                                                      \
    ScratchMemory memory(target::linear_forward_scratch(threads, x.in(), weight.in()));          \
    target::linear_forward(stream, x.in(), weight.in(), bias.maybe_in(), residual.maybe_in(), 1, \
                           pre.maybe_out(), y.out(), memory.scratch);                            \
  }
  compare("linear", sizes, LINEAR(cpu_generic), LINEAR(cpu_avx512));

#define MATMUL(target)                                                                     \
  [&](Array<float>& y, Array<float>& pre) {                                                \
    ScratchMemory memory(target::matmul_forward_scratch(threads, a.in(), b.in(), ta, tb)); \
    target::matmul_forward(stream, a.in(), b.in(), ta, tb, y.out(), memory.scratch);       \
    pre = y;                                                                               \
  }
  for (int64_t ta = 0; ta < 2; ++ta) {
    for (int64_t tb = 0; tb < 2; ++tb) {
      Array<float> a = drawn(ta != 0 ? Shape{k, m} : Shape{m, k});
      Array<float> b = drawn(tb != 0 ? Shape{n, k} : Shape{k, n});
      compare("matmul", sizes, MATMUL(cpu_generic), MATMUL(cpu_avx512));
    }
  }

#define PACKED(target, op)                                                                     \
  [&](Array<float>& y, Array<float>& pre) {                                                    \
    Array<uint8_t> packed({op##_packed_bytes(n, k)});                                          \
    target::op##_pack(stream, weight.in(), packed.out());                                      \
    ScratchMemory memory(target::op##_forward_scratch(threads, x.in(), y.out()));              \
    target::op##_forward(stream, x.in(), packed.in(), bias.maybe_in(), residual.maybe_in(), 1, \
                         pre.maybe_out(), y.out(), memory.scratch);                            \
  }
  emulated = {};
  compare("int8", sizes, PACKED(cpu_generic, linear_int8), PACKED(cpu_avx512, linear_int8));
  compare("bf16", sizes, PACKED(cpu_generic, linear_bfloat16), PACKED(cpu_avx512, linear_bfloat16));
  for (const bool tiles : {false, true}) {
    emulated = {true, true, tiles};
    // The generic kernel has finer activations; so beside the formula itself, in float64.
    compare(
        tiles ? "int8_tiles" : "int8_vnni", sizes,
        [&](Array<float>& y, Array<float>& pre) {
          const Quantised a = quantise(x);
          const Quantised b = quantise(weight);
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
              int64_t sum = 0;
              for (int64_t l = 0; l < k; ++l) sum += a.integers[i * k + l] * b.integers[j * k + l];
              const double before =
                  static_cast<double>(sum) * a.scales[i] * b.scales[j] + bias.values[j];
              const double u = 0.7978845608028654 * (before + 0.044715 * before * before * before);
              pre.values[i * n + j] = static_cast<float>(before);
              y.values[i * n + j] = static_cast<float>(0.5 * before * (1 + std::tanh(u)) +
                                                       residual.values[i * n + j]);
            }
          }
        },
        PACKED(cpu_avx512, linear_int8));
    compare(tiles ? "bf16_tiles" : "bf16_dot", sizes, PACKED(cpu_generic, linear_bfloat16),
            PACKED(cpu_avx512, linear_bfloat16));
  }
}

// Attention by tiles of bfloat16 beside that of float32.
void compare_attention(Stream& stream, int64_t tokens, int64_t heads, int64_t width) {
  const Shape shape = {1, tokens, heads, width};
  Array<float> q = drawn(shape);
  Array<float> k = drawn(shape);
  Array<float> v = drawn(shape);
  Array<float> o[2] = {Array<float>(shape), Array<float>(shape)};
  Array<float> lse[2] = {Array<float>({1, heads, tokens}), Array<float>({1, heads, tokens})};
  emulated = {true, true, true};
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  const MaybeIn none;
#define ATTENTION(target, i)                                                                    \
  {                                                                                             \
    ScratchMemory memory(                                                                       \
        target::attention_forward_scratch(stream.threads(), q.in(), k.in(), none, none, 1));    \
    target::attention_forward(stream, q.in(), k.in(), v.in(), none, none, none, none, scale, 1, \
                              o[i].out(), lse[i].out(), memory.scratch);                        \
  }
  ATTENTION(cpu_generic, 0)
  ATTENTION(cpu_avx512, 1)
  report("attention", shape, o[1], o[0], 1e4);
  report("attention", shape, lse[1], lse[0], 1e4);
}

}  // namespace
}  // namespace siglip

int main() {
  for (const int threads : {1, 3}) {
    siglip::ThreadPool pool(threads);
    siglip::Stream stream(pool);
    for (const auto& [m, k, n] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1},
                                  {7, 5, 70},
                                  {1, 515, 67},
                                  {13, 33, 64},
                                  {40, 130, 200},
                                  {75, 1300, 129},
                                  {9, 3200, 65}}) {
      siglip::compare_sizes(stream, m, k, n);
    }
    siglip::compare_attention(stream, 70, 2, 72);
    siglip::compare_attention(stream, 33, 1, 16);
  }
}
