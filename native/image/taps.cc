#include "image/taps.h"

#include <algorithm>
#include <cmath>

namespace siglip {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kPillowBits = 22;  // 32 less 8 of the sample and 2 of overshoot
constexpr int kNarrowBits = 15;  // of a 16-bit number without its sign

// A product rounded by itself, which no compiler may fuse with the sum it goes into.
double product(double a, double b) {
  const volatile double rounded = a * b;
  return rounded;
}

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double triangle(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double hamming(double x) {
  x = std::abs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  x = product(x, kPi);
  return product(std::sin(x) / x, 0.54 + product(0.46, std::cos(x)));
}

// Keys' cubic with a = -½.
double cubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1.0) return product(product(product(kA + 2.0, x) - (kA + 3.0), x), x) + 1.0;
  if (x < 2.0) return product(product(product(x - 5.0, x) + 8.0, x) - 4.0, kA);
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x = product(x, kPi);
  return std::sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? product(sinc(x), sinc(x / 3.0)) : 0.0; }

struct Kernel {
  double (*weight)(double x);
  double support;
};

Kernel kernel_of(Filter filter) {
  switch (filter) {
    case Filter::kLanczos:
      return {lanczos, 3.0};
    case Filter::kBilinear:
      return {triangle, 1.0};
    case Filter::kBicubic:
      return {cubic, 2.0};
    case Filter::kHamming:
      return {hamming, 1.0};
    default:
      return {box, 0.5};
  }
}

struct Span {
  int64_t first;
  int64_t count;
};

// The geometry of an axis.
class Axis {
 public:
  Axis(Filter filter, int64_t in, int64_t out)
      : kernel_(kernel_of(filter)),
        in_(in),
        scale_(static_cast<double>(in) / static_cast<double>(out)),
        factor_(std::max(scale_, 1.0)),
        inverse_(1.0 / factor_),
        support_(product(kernel_.support, factor_)) {}

  Span span(int64_t i) const {
    const double c = centre(i);
    const auto low = std::max(static_cast<int64_t>(c - support_ + 0.5), int64_t{0});
    const auto high = std::min(static_cast<int64_t>(c + support_ + 0.5), in_);
    return {low, high - low};
  }

  // The weights of output i, divided by their sum.
  void weigh(int64_t i, const Span& span, double* weights) const {
    const double c = centre(i);
    double sum = 0.0;
    for (int64_t k = 0; k < span.count; ++k) {
      const double distance = static_cast<double>(span.first + k) - c + 0.5;
      weights[k] = kernel_.weight(product(distance, inverse_));
      sum += weights[k];
    }
    if (sum == 0.0) return;
    for (int64_t k = 0; k < span.count; ++k) weights[k] /= sum;
  }

  // The most inputs an output can have.
  int64_t longest() const { return std::min(static_cast<int64_t>(2.0 * support_) + 2, in_); }

 private:
  double centre(int64_t i) const { return product(static_cast<double>(i) + 0.5, scale_); }

  Kernel kernel_;
  int64_t in_;
  double scale_;
  double factor_;
  double inverse_;
  double support_;
};

int32_t quantized(double weight, int bits) {
  const double scaled = weight * static_cast<double>(int64_t{1} << bits);
  return static_cast<int32_t>(scaled < 0.0 ? scaled - 0.5 : scaled + 0.5);
}

// The most bits with which the largest weight stays below 2^15.
int narrow_bits(double largest) {
  int bits = 0;
  while (bits < kPillowBits) {
    const double next = 0.5 + largest * static_cast<double>(int64_t{1} << (bits + 1));
    if (static_cast<int64_t>(next) >= int64_t{1} << kNarrowBits) break;
    ++bits;
  }
  return bits;
}

// Makes `pairs` of the weights of one output; see Taps.
void pair_up(const int32_t* weights, int64_t count, bool narrow, int32_t* pairs) {
  const auto word = [](int32_t first, int32_t second) {
    return static_cast<int32_t>((static_cast<uint32_t>(second) << 16) |
                                (static_cast<uint32_t>(first) & 0xffff));
  };
  constexpr int32_t kLowMask = (1 << kLowBits) - 1;
  for (int64_t k = 0; k < count; k += 2) {
    const int32_t a = weights[k];
    const int32_t b = weights[k + 1];
    pairs[k] = narrow ? word(a, b) : word(a & kLowMask, b & kLowMask);
    pairs[k + 1] = narrow ? 0 : word(a >> kLowBits, b >> kLowBits);
  }
}

constexpr size_t kPositionBytes = 2 * sizeof(int32_t) + sizeof(int64_t);

// Upper bound of the weights of all outputs together, with their filling.
int64_t most_weights(Filter filter, int64_t in, int64_t out) {
  if (filter == Filter::kNearest) return kTapGroup * out;
  const Axis axis(filter, in, out);
  int64_t weights = 0;
  for (int64_t i = 0; i < out; ++i) weights += axis.span(i).count + kTapGroup - 1;
  return weights;
}

}  // namespace

AxisPlan::AxisPlan(Filter filter, Rounding rounding, int64_t in, int64_t out)
    : positions_(static_cast<size_t>(out) * kPositionBytes),
      weights_(static_cast<size_t>(2 * most_weights(filter, in, out)) * sizeof(int32_t)) {
  auto* offset = reinterpret_cast<int64_t*>(positions_.data());
  auto* first = reinterpret_cast<int32_t*>(offset + out);
  auto* count = first + out;
  auto* weights = reinterpret_cast<int32_t*>(weights_.data());
  auto* pairs = weights + weights_.bytes() / sizeof(int32_t) / 2;
  const bool narrow = rounding == Rounding::kTorchvision;
  taps_ = {out, first, count, offset, weights, pairs, kPillowBits, narrow};

  if (filter == Filter::kNearest) {
    // Pillow adds up the positions, and the error with them.
    const double scale = static_cast<double>(in) / static_cast<double>(out);
    double position = product(scale, 0.5);
    for (int64_t i = 0; i < out; ++i, position += scale) {
      first[i] = static_cast<int32_t>(std::min(static_cast<int64_t>(position), in - 1));
      count[i] = 1;
      offset[i] = kTapGroup * i;
      weights[offset[i]] = 1 << kPillowBits;
      pair_up(weights + offset[i], 1, false, pairs + offset[i]);
    }
    return;
  }

  const Axis axis(filter, in, out);
  const Block scratch(static_cast<size_t>(axis.longest()) * sizeof(double));
  auto* exact = reinterpret_cast<double*>(scratch.data());
  if (narrow) {
    double largest = 0.0;
    for (int64_t i = 0; i < out; ++i) {
      const Span span = axis.span(i);
      axis.weigh(i, span, exact);
      for (int64_t k = 0; k < span.count; ++k) largest = std::max(largest, exact[k]);
    }
    taps_.shift = narrow_bits(largest);
  }
  int64_t end = 0;
  for (int64_t i = 0; i < out; ++i) {
    const Span span = axis.span(i);
    axis.weigh(i, span, exact);
    first[i] = static_cast<int32_t>(span.first);
    count[i] = static_cast<int32_t>(span.count);
    offset[i] = end;
    for (int64_t k = 0; k < span.count; ++k) weights[end + k] = quantized(exact[k], taps_.shift);
    pair_up(weights + end, span.count, narrow, pairs + end);
    end += (span.count + kTapGroup - 1) / kTapGroup * kTapGroup;
  }
}

}  // namespace siglip
