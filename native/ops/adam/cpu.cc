#include "ops/adam/adam.h"

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

constexpr int64_t kLineElements = 64;

inline Vec square_root(Vec x) {
  Vec y = {};
  for (int i = 0; i < kLanes; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
}

// A moment without gradients decays into the denormals and never leaves them, which many processors
// compute a hundred times slower: most rows of an embedding table would end there. NaN stays.
inline Vec flush_denormals(Vec x) {
  constexpr float kLeastNormal = 1.17549435e-38F;
  return select(abs(x) < splat(kLeastNormal), Vec{}, x);
}

// The scalars of one update, combined in float64 and rounded once.
struct Step {
  Vec clip;
  Vec beta1, one_minus_beta1;
  Vec beta2, one_minus_beta2;
  Vec correct1, correct2;  // 1 / c1, 1 / c2
  Vec eps;
  Vec rate;   // schedule · learning rate
  Vec decay;  // schedule · weight decay

  // Updates the four operands in place; `g` becomes the update.
  void apply(Vec* param, Vec* m, Vec* v, Vec* g) const {
    const Vec gradient = *g * clip;
    *m = flush_denormals(beta1 * *m + one_minus_beta1 * gradient);
    *v = flush_denormals(beta2 * *v + one_minus_beta2 * (gradient * gradient));
    const Vec direction = (*m * correct1) / (square_root(*v * correct2) + eps);
    *g = rate * direction + decay * *param;
    *param -= *g;
  }
};

struct Sums {
  double update_squares;
  double param_squares;
};

// A step that is not taken.
Sums measure_range(int64_t size, const float* param) {
  Float64Vec param_squares = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) add_square(&param_squares, load(param + i));
  if (i < size) add_square(&param_squares, load_partial(param + i, size - i));
  return {0.0, reduce_add(param_squares)};
}

Partition ranges(int64_t size) { return partition(size, 1, kLineElements); }

Sums update_range(const Step& step, const float* grad, int64_t size, float* param, float* m,
                  float* v) {
  Float64Vec update_squares = {};
  Float64Vec param_squares = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    Vec p = load(param + i);
    Vec m1 = load(m + i);
    Vec v1 = load(v + i);
    Vec g = load(grad + i);
    step.apply(&p, &m1, &v1, &g);
    store(param + i, p);
    store(m + i, m1);
    store(v + i, v1);
    add_square(&update_squares, g);
    add_square(&param_squares, p);
  }
  if (i < size) {
    const int64_t n = size - i;
    Vec p = load_partial(param + i, n);
    Vec m1 = load_partial(m + i, n);
    Vec v1 = load_partial(v + i, n);
    Vec g = load_partial(grad + i, n);
    step.apply(&p, &m1, &v1, &g);
    store_partial(param + i, p, n);
    store_partial(m + i, m1, n);
    store_partial(v + i, v1, n);
    // With eps = 0 the lanes beyond the end are 0 / 0: out of the sums.
    float update[kLanes] = {};
    store_partial(update, g, n);
    add_square(&update_squares, load(update));
    add_square(&param_squares, load_partial(param + i, n));
  }
  return {reduce_add(update_squares), reduce_add(param_squares)};
}

}  // namespace

void adam_update(Stream& stream, InOut param, InOut m, InOut v, In grad, In grad_norm, In schedule,
                 double learning_rate, double beta1, double beta2, double eps, double weight_decay,
                 double clip_norm, Out update_squares, Out param_squares, Scratch scratch) {
  constexpr char kName[] = "adam_update";
  const int64_t size = param.elements();
  check_elements(kName, "m", m, size);
  check_elements(kName, "v", v, size);
  check_elements(kName, "grad", grad, size);
  check_elements(kName, "grad_norm", grad_norm, 1);
  check_elements(kName, "schedule", schedule, 3);
  check_elements(kName, "update_squares", update_squares, 1);
  check_elements(kName, "param_squares", param_squares, 1);
  const Partition part = ranges(size);
  check_scratch(kName, scratch, static_cast<size_t>(part.tasks()) * sizeof(Sums));
  float* param_data = param.data();
  float* m_data = m.data();
  float* v_data = v.data();
  const float* grad_data = grad.data();

  const double norm = grad_norm.data()[0];
  const bool taken = __builtin_isfinite(norm);
  const double ratio = clip_norm / norm;
  const double clip = clip_norm <= 0.0 || ratio >= 1.0 ? 1.0 : ratio;
  const double multiplier = schedule.data()[0];
  const auto constant = [](double value) { return splat(static_cast<float>(value)); };
  const Step step = {constant(clip),
                     constant(beta1),
                     constant(1.0 - beta1),
                     constant(beta2),
                     constant(1.0 - beta2),
                     constant(1.0 / static_cast<double>(schedule.data()[1])),
                     constant(1.0 / static_cast<double>(schedule.data()[2])),
                     constant(eps),
                     constant(multiplier * learning_rate),
                     constant(multiplier * weight_decay)};

  Sums* partial = reinterpret_cast<Sums*>(scratch.data);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t begin = part.begin(task);
    const int64_t count = part.end(task) - begin;
    partial[task] = taken ? update_range(step, grad_data + begin, count, param_data + begin,
                                         m_data + begin, v_data + begin)
                          : measure_range(count, param_data + begin);
  });
  Sums total = {};
  for (int64_t task = 0; task < part.tasks(); ++task) {
    total.update_squares += partial[task].update_squares;
    total.param_squares += partial[task].param_squares;
  }
  update_squares.data()[0] = static_cast<float>(total.update_squares);
  param_squares.data()[0] = static_cast<float>(total.param_squares);
}

size_t adam_update_scratch(int, In param) {
  return static_cast<size_t>(ranges(param.elements()).tasks()) * sizeof(Sums);
}

}  // namespace siglip::SIGLIP_CPU
