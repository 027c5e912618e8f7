// The weights of a resize along one axis, as Pillow and torchvision make them.
#pragma once

#include <cstdint>

#include "cpu/resample.h"
#include "runtime/memory.h"

namespace siglip {

// Pillow's filters under Pillow's numbers, which preprocessor_config.json uses.
enum class Filter {
  kNearest = 0,
  kLanczos = 1,
  kBilinear = 2,
  kBicubic = 3,
  kBox = 4,
  kHamming = 5,
};
inline constexpr int kFilters = 6;

// Whose fixed point: 22 bits of fraction and 32-bit weights in Pillow; as many bits as the largest
// weight leaves in 16 in torchvision (its uint8 tensors on a CPU, with antialias), which has
// bilinear and bicubic alone.
enum class Rounding { kPillow = 0, kTorchvision = 1 };

// in -> out samples: s = in/out, f = max(s, 1). Output i gathers from the inputs
// [⌊c - S + ½⌋, ⌊c + S + ½⌋) clamped to the axis, with centre c = (i + ½) s and S = f · support, by
// weights filter((k - c + ½) / f) divided by their sum. Everything in float64, and no product fused
// with a sum, so that the integers come out the same on every machine.
class AxisPlan {
 public:
  // in, out in [1, kMaxSide]. Throws ERR_OUT_OF_MEMORY.
  AxisPlan(Filter filter, Rounding rounding, int64_t in, int64_t out);

  const Taps& taps() const { return taps_; }

 private:
  Block positions_;
  Block weights_;
  Taps taps_ = {};
};

// Bounds every product of sizes below 2^63.
inline constexpr int64_t kMaxSide = int64_t{1} << 28;

}  // namespace siglip
