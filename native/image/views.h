// Augmented views of images, as self-distillation wants them (torchvision's RandomResizedCrop,
// RandomHorizontalFlip, ColorJitter, RandomGrayscale and Pillow's GaussianBlur, in this order; DINO's
// main_dino.py). Nothing is drawn here: every number of a view is given.
//
// The crop is resized with 8 bits between the passes and after them, as prepare.h does. All that
// follows is in float32 on values from 0 to 255, rounded once in the end:
//   L = 0.2989 R + 0.587 G + 0.114 B
//   brightness f   f x                      contrast f   f x + (1 − f) mean(L)
//   saturation f   f x + (1 − f) L          hue f        f of a turn of H in HSV
// each clamped to [0, 255]. The blur is three box blurs in each direction, whose fractional radius gives
// them the variance of the Gaussian (Gwosdek et al. 2011); beyond the border lies the border's colour.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "image/prepare.h"

namespace siglip {

enum class Jitter { kBrightness = 0, kContrast = 1, kSaturation = 2, kHue = 3 };
inline constexpr int kJitters = 4;

struct ImageView {
  size_t source;                     // index of its image
  int64_t left, top, width, height;  // the crop, inside of the image
  bool flip;                         // left to right
  std::vector<Jitter> order;         // what is changed of the colours, and in which order
  float factors[kJitters];           // by Jitter
  bool grey;
  float sigma;  // of the blur; 0 for none
  uint8_t* to;  // (size, size, 3)
};

// One view after the other is rendered by one worker, so threads cannot show in the result. Stops
// early, leaving anything behind, once `abandoned` is set. Throws ERR_OUT_OF_MEMORY.
void render_views(Stream& stream, Arena& arena, const ResampleKernels& kernels, Filter filter,
                  int64_t size, const std::vector<Source>& sources,
                  const std::vector<ImageView>& views, const std::atomic<bool>& abandoned);

}  // namespace siglip
