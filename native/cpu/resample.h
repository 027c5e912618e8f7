// The inner loops of image preparation: 8-bit samples weighted in fixed point, and bytes to floats by
// table. The weights are made in image/taps.h, the loops are put together in image/prepare.h.
//
// One sample of a result is clamp((2^(shift - 1) + Σ weight · sample) >> shift) in 32 bits. Being
// integers, the sums are the same in any order and for any instruction set.
#pragma once

#include "cpu/isa.h"

namespace siglip {

// What the samples along one axis are gathered from.
struct Taps {
  int64_t outputs;
  const int32_t* first;    // (outputs): the first input of each output
  const int32_t* count;    // (outputs): its inputs, at least 1
  const int64_t* offset;   // (outputs): where its weights begin, a multiple of kTapGroup
  const int32_t* weights;  // filled up to whole groups with zeros
  // The same for processors that multiply pairs of 16-bit numbers: of every two weights the low
  // parts in one word, the first of them lower, and behind it the high parts likewise.
  const int32_t* pairs;
  int shift;
  bool narrow;  // every weight fits 16 bits; else each is below 2^24
};
inline constexpr int64_t kTapGroup = 4;
// A weight is high · 2^kLowBits + low with 0 <= low < 2^kLowBits; a narrow one is its own low part.
inline constexpr int kLowBits = 11;

// Rows that resample_rows takes at a time.
inline constexpr int64_t kRowBlock = 4;
// Bytes behind a row that resample_rows may read, whatever they are, and may write, respectively.
inline constexpr int64_t kReadMargin = 16;
inline constexpr int64_t kWriteMargin = 4;

enum class PixelFormat { kGrey = 0, kGreyAlpha = 1, kRgb = 2, kRgba = 3, kCmyk = 4 };
inline constexpr int kPixelFormats = 5;

// Bytes of one pixel.
static constexpr int64_t channels_of(PixelFormat format) {
  constexpr int64_t kChannels[kPixelFormats] = {1, 2, 3, 4, 4};
  return kChannels[static_cast<int>(format)];
}

// What is seen through transparent parts; without one, alpha is dropped.
struct Background {
  bool present = false;
  uint8_t color[3] = {};
};

SIGLIP_FOR_EACH_TARGET(
    // Pixels of any format to red, green, blue. Alpha is straight; over a background c it gives
    // ⌊(value · alpha + c · (255 - alpha) + 127) / 255⌋. CMYK, 255 being full ink, becomes
    // (255 - ink)(255 - black) / 255, rounded as Pillow does.
    void pixels_to_rgb(PixelFormat format, const Background& background, const uint8_t* from,
                       int64_t pixels, uint8_t* to);

    // Every one of `count` <= kRowBlock rows of pixels to taps.outputs pixels.
    void resample_rows(const Taps& taps, const uint8_t* const* rows, int64_t count,
                       uint8_t* const* to);

    // Row `y` of the result from the rows of an image, `bytes` of each, `stride` apart. Reads and
    // writes nothing beyond them.
    void resample_columns(const Taps& taps, int64_t y, const uint8_t* rows, int64_t stride,
                          int64_t bytes, uint8_t* to);

    // A row of pixels to a row of each plane, by a table (3, 256).
    void pixels_to_planes(const float* table, const uint8_t* from, int64_t width, float* red,
                          float* green, float* blue);

    // The same with the colours interleaved, as patches have them.
    void pixels_to_floats(const float* table, const uint8_t* from, int64_t pixels, float* to);)

// The compiled form of all of these for one instruction set.
struct ResampleKernels {
  decltype(&cpu_generic::pixels_to_rgb) pixels_to_rgb;
  decltype(&cpu_generic::resample_rows) resample_rows;
  decltype(&cpu_generic::resample_columns) resample_columns;
  decltype(&cpu_generic::pixels_to_planes) pixels_to_planes;
  decltype(&cpu_generic::pixels_to_floats) pixels_to_floats;
};

}  // namespace siglip
