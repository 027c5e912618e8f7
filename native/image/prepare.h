// Images to the input of a vision tower: any pixel format to RGB, resized, and then as bytes, as
// normalised planes or as normalised patches, in one go.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/resample.h"
#include "image/taps.h"
#include "runtime/memory.h"
#include "runtime/stream.h"

namespace siglip {

enum class Layout {
  kBytes = 0,   // (height, width, 3) uint8
  kPlanes = 1,  // (3, height, width) float
  // (rows · columns, P · P · 3) float: patches row by row, inside a patch y, x, colour.
  kPatches = 2,
};

struct Source {
  const uint8_t* pixels;  // rows from the top, channels interleaved
  int64_t width, height;
  PixelFormat format;
  Background background;
};

struct Picture : Source {
  int64_t to_width, to_height;
  std::byte* to;  // aligned for what the layout holds
};

struct Recipe {
  Filter filter;
  Rounding rounding;
  Layout layout;
  int64_t patch;       // with kPatches: its side, which divides to_width and to_height
  const float* table;  // with floats: (3, 256), the value of each byte of each colour
};

// Bytes of one prepared picture; at most 2^62 for sides up to kMaxSide.
int64_t prepared_bytes(Layout layout, int64_t width, int64_t height);

// Resizes rows first, then columns, with 8 bits between; an axis that keeps its size is skipped. As
// Pillow does, a picture of Rounding::kPillow that is more than 100 times as high as wide and
// shrinks in height has its columns resized first. Sides lie in [1, kMaxSide]. Every sample is
// computed alone, so threads cannot show in the result.
//
// Intermediates lie in the arena of the device, on whose scheduler thread this runs. Stops early,
// leaving anything behind, once `abandoned` is set. Throws ERR_OUT_OF_MEMORY.
void prepare_pictures(Stream& stream, Arena& arena, const ResampleKernels& kernels,
                      const Recipe& recipe, const std::vector<Picture>& pictures,
                      const std::atomic<bool>& abandoned);

}  // namespace siglip
