// The resize of many pictures on a GPU, as the steps of one thread of a block. Plain C++, so that a
// processor can go through them thread by thread. The sums are those of cpu/resample.h in every bit.
//
// A tile is the work of a block: kTileRows rows by up to kResampleThreads outputs of a pass along rows;
// or kResampleThreads bytes of a row by kTileRows outputs of a pass along columns. A row is gathered from
// chunks that the block holds in shared memory as words of red, green and blue.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SIGLIP_ON_DEVICE __device__
#define SIGLIP_UNROLL _Pragma("unroll")
#define SIGLIP_UNROLL_4 _Pragma("unroll 4")
#else
#define SIGLIP_ON_DEVICE
#define SIGLIP_UNROLL
#define SIGLIP_UNROLL_4
#endif

namespace siglip::device {

inline constexpr int kResampleThreads = 256;
inline constexpr int kTileRows = 4;
inline constexpr int kChunk = 2048;  // pixels of one row
// One word in 33 is left out, so that outputs a power of two apart do not meet in one bank.
inline constexpr int kChunkPitch = kChunk + kChunk / 32;
inline constexpr int kChunkWords = kTileRows * kChunkPitch;
// Bytes behind pixels that a pass along rows may read, whatever they are.
inline constexpr int64_t kResampleMargin = 32;

struct PixelLayout {
  int32_t channels;
  bool ink;   // CMYK
  bool over;  // transparent parts show the background
  uint8_t background[3];
};

// One axis of one picture.
struct ResamplePass {
  const uint8_t* from;
  uint8_t* to;  // red, green, blue
  int64_t from_stride;
  int64_t to_stride;
  const int32_t* first;    // (outputs)
  const int32_t* count;    // (outputs)
  const int32_t* weights;  // (the most inputs of an output, outputs)
  int32_t outputs;
  int32_t lines;         // along rows: rows; along columns: bytes of a row of the result
  int32_t tile_outputs;  // along rows
  int32_t shift;
  PixelLayout layout;  // of `from`
};

struct ResampleTile {
  int32_t pass;
  int32_t line;
  int32_t output;
};

// Along rows, along columns, and along rows again, each step on what the ones before have made.
inline constexpr int kResampleSteps = 3;
struct ResampleWork {
  const ResamplePass* passes;
  const ResampleTile* tiles[kResampleSteps];
  int64_t counts[kResampleSteps];
};

// ---- Pixels ------------------------------------------------------------------------------------

// Red, green and blue from the lowest byte up, of the channels of a pixel in the same order.
SIGLIP_ON_DEVICE inline uint32_t rgb_of(const PixelLayout& layout, uint32_t pixel) {
  const bool grey = layout.channels < 3;
  if (layout.ink) {
    const uint32_t light = 255 - (pixel >> 24);
    uint32_t rgb = 0;
    for (int c = 0; c < 3; ++c) {
      const uint32_t product = (pixel >> 8 * c & 255) * light + 128;
      rgb |= (light - (((product >> 8) + product) >> 8)) << 8 * c;
    }
    return rgb;
  }
  if (!layout.over) return grey ? (pixel & 255) * 0x010101U : pixel & 0xffffffU;
  const uint32_t alpha = pixel >> 8 * (layout.channels - 1) & 255;
  uint32_t rgb = 0;
  for (int c = 0; c < 3; ++c) {
    const uint32_t value = grey ? pixel & 255 : pixel >> 8 * c & 255;
    rgb |= (value * alpha + layout.background[c] * (255 - alpha) + 127) / 255 << 8 * c;
  }
  return rgb;
}

SIGLIP_ON_DEVICE inline uint8_t sample_of(uint32_t sum, int shift) {
  const int32_t value = static_cast<int32_t>(sum) >> shift;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// ---- Along rows --------------------------------------------------------------------------------

struct InputSpan {
  int32_t begin;
  int32_t end;
};

// What the outputs of a tile are gathered from. Neither first nor last inputs ever go back.
SIGLIP_ON_DEVICE inline InputSpan inputs_of(const ResamplePass& pass, const ResampleTile& tile) {
  const int32_t beyond = tile.output + pass.tile_outputs;
  const int32_t last = (beyond < pass.outputs ? beyond : pass.outputs) - 1;
  return {pass.first[tile.output], pass.first[last] + pass.count[last]};
}

SIGLIP_ON_DEVICE inline int place_in_chunk(int pixel) { return pixel + (pixel >> 5); }

// The pixels [0, count) behind `from`, four at a time by whole words of memory.
template <int kChannels>
SIGLIP_ON_DEVICE inline void load_pixels(const PixelLayout& layout, const uint8_t* from, int count,
                                         int begin, int step, uint32_t* row) {
  for (int pixel = begin; pixel < count; pixel += step) {
    const uint8_t* first = from + static_cast<ptrdiff_t>(kChannels) * pixel;
    const auto odd = static_cast<int>(reinterpret_cast<uintptr_t>(first) & 3);
    const auto* words = reinterpret_cast<const uint32_t*>(first - odd);
    const int skipped = odd * 8;
    uint32_t channels[kChannels + 1];
    uint32_t low = words[0];
    SIGLIP_UNROLL
    for (int i = 0; i < kChannels; ++i) {
      const uint32_t high = words[i + 1];
      channels[i] = static_cast<uint32_t>((uint64_t{high} << 32 | low) >> skipped);
      low = high;
    }
    channels[kChannels] = 0;
    SIGLIP_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int bit = 8 * kChannels * i;
      const uint64_t both = uint64_t{channels[bit / 32 + 1]} << 32 | channels[bit / 32];
      const auto raw = static_cast<uint32_t>(both >> bit % 32);
      const uint32_t mask = kChannels == 4 ? 0xffffffffU : (1U << 8 * kChannels % 32) - 1;
      row[place_in_chunk(pixel + i)] = rgb_of(layout, raw & mask);
    }
  }
}

// Fills `held`, kChunkWords, with the pixels [begin, begin + count) of the rows of a tile.
SIGLIP_ON_DEVICE inline void load_chunk(const ResamplePass& pass, const ResampleTile& tile,
                                        int32_t begin, int count, int thread, uint32_t* held) {
  constexpr int kWarp = 32;
  constexpr int kStep = 4 * kResampleThreads / kTileRows;
  const int warp = thread / kWarp;
  const int row = warp % kTileRows;
  if (tile.line + row >= pass.lines) return;
  const PixelLayout& layout = pass.layout;
  const uint8_t* from = pass.from + (tile.line + row) * pass.from_stride +
                        static_cast<int64_t>(begin) * layout.channels;
  const int first = 4 * (warp / kTileRows * kWarp + thread % kWarp);
  uint32_t* to = held + row * kChunkPitch;
  switch (layout.channels) {
    case 1:
      return load_pixels<1>(layout, from, count, first, kStep, to);
    case 2:
      return load_pixels<2>(layout, from, count, first, kStep, to);
    case 3:
      return load_pixels<3>(layout, from, count, first, kStep, to);
    default:
      return load_pixels<4>(layout, from, count, first, kStep, to);
  }
}

// The sums of the output of a thread, without a sign, so that they may wrap.
struct RowSums {
  uint32_t of[kTileRows][3];
};

SIGLIP_ON_DEVICE inline void begin_sums(const ResamplePass& pass, RowSums& sums) {
  SIGLIP_UNROLL
  for (auto& row : sums.of) {
    SIGLIP_UNROLL
    for (uint32_t& sum : row) sum = 1U << (pass.shift - 1);
  }
}

// Adds what the chunk holds for the output of a thread.
SIGLIP_ON_DEVICE inline void add_chunk(const ResamplePass& pass, const ResampleTile& tile,
                                       int32_t begin, int count, int thread, const uint32_t* held,
                                       RowSums& sums) {
  const int32_t x = tile.output + thread;
  if (thread >= pass.tile_outputs || x >= pass.outputs) return;
  const int32_t first = pass.first[x];
  const int32_t end = first + pass.count[x];
  const int32_t low = first > begin ? first : begin;
  const int32_t high = end < begin + count ? end : begin + count;
  const int32_t* weights = pass.weights + static_cast<int64_t>(low - first) * pass.outputs + x;
  for (int32_t k = low; k < high; ++k, weights += pass.outputs) {
    const auto weight = static_cast<uint32_t>(*weights);
    const uint32_t* pixel = held + place_in_chunk(k - begin);
    SIGLIP_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const uint32_t rgb = pixel[r * kChunkPitch];
      sums.of[r][0] += weight * (rgb & 255);
      sums.of[r][1] += weight * (rgb >> 8 & 255);
      sums.of[r][2] += weight * (rgb >> 16);
    }
  }
}

SIGLIP_ON_DEVICE inline void store_sums(const ResamplePass& pass, const ResampleTile& tile,
                                        int thread, const RowSums& sums) {
  const int32_t x = tile.output + thread;
  if (thread >= pass.tile_outputs || x >= pass.outputs) return;
  SIGLIP_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    if (tile.line + r >= pass.lines) return;
    uint8_t* to = pass.to + (tile.line + r) * pass.to_stride + int64_t{3} * x;
    SIGLIP_UNROLL
    for (int c = 0; c < 3; ++c) to[c] = sample_of(sums.of[r][c], pass.shift);
  }
}

// ---- Along columns -----------------------------------------------------------------------------

// One byte of kTileRows rows of the result.
SIGLIP_ON_DEVICE inline void resample_column(const ResamplePass& pass, const ResampleTile& tile,
                                             int thread) {
  const int32_t byte = tile.line + thread;
  if (byte >= pass.lines) return;
  const int32_t channels = pass.layout.channels;
  const bool rgb = channels == 3;
  const int32_t color = byte % 3;
  const uint8_t* column = pass.from + (rgb ? byte : static_cast<int64_t>(byte / 3) * channels);
  for (int r = 0; r < kTileRows; ++r) {
    const int32_t y = tile.output + r;
    if (y >= pass.outputs) return;
    const uint8_t* from = column + pass.first[y] * pass.from_stride;
    const int32_t* weights = pass.weights + y;
    const int32_t count = pass.count[y];
    uint32_t sum = 1U << (pass.shift - 1);
    if (rgb) {
      SIGLIP_UNROLL_4
      for (int32_t k = 0; k < count; ++k) {
        sum += static_cast<uint32_t>(weights[static_cast<int64_t>(k) * pass.outputs]) *
               from[k * pass.from_stride];
      }
    } else {
      for (int32_t k = 0; k < count; ++k, from += pass.from_stride) {
        uint32_t pixel = 0;
        for (int c = 0; c < channels; ++c) pixel |= uint32_t{from[c]} << 8 * c;
        const uint32_t value = rgb_of(pass.layout, pixel) >> 8 * color & 255;
        sum += static_cast<uint32_t>(weights[static_cast<int64_t>(k) * pass.outputs]) * value;
      }
    }
    pass.to[y * pass.to_stride + byte] = sample_of(sum, pass.shift);
  }
}

}  // namespace siglip::device
