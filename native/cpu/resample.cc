#include "cpu/resample.h"

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace siglip::SIGLIP_CPU {
namespace {

constexpr int64_t kColors = 3;
constexpr int64_t kLevels = 256;

// Of a sum that is kept without a sign, so that it may wrap.
inline uint8_t sample_of(uint32_t sum, int shift) {
  const int32_t value = static_cast<int32_t>(sum) >> shift;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

inline int32_t half_of(const Taps& taps) { return int32_t{1} << (taps.shift - 1); }

// ---- Any processor -----------------------------------------------------------------------------

void resample_row(const Taps& taps, const uint8_t* row, uint8_t* to) {
  const auto half = static_cast<uint32_t>(half_of(taps));
  for (int64_t x = 0; x < taps.outputs; ++x, to += kColors) {
    const int32_t* weights = taps.weights + taps.offset[x];
    const uint8_t* from = row + kColors * taps.first[x];
    uint32_t red = half;
    uint32_t green = half;
    uint32_t blue = half;
    for (int32_t k = 0; k < taps.count[x]; ++k, from += kColors) {
      const auto weight = static_cast<uint32_t>(weights[k]);
      red += weight * from[0];
      green += weight * from[1];
      blue += weight * from[2];
    }
    to[0] = sample_of(red, taps.shift);
    to[1] = sample_of(green, taps.shift);
    to[2] = sample_of(blue, taps.shift);
  }
}

// Columns [begin, end) of one row of the result. Stretches of a fixed length keep the sums in
// registers, or at least in the innermost cache.
void resample_column_range(const Taps& taps, int64_t y, const uint8_t* rows, int64_t stride,
                           int64_t begin, int64_t end, uint8_t* to) {
  constexpr int64_t kStretch = 64;
  const int32_t* weights = taps.weights + taps.offset[y];
  const uint8_t* first = rows + taps.first[y] * stride;
  const auto half = static_cast<uint32_t>(half_of(taps));
  uint32_t sums[kStretch];
  for (; begin < end; begin += kStretch) {
    const int64_t n = end - begin < kStretch ? end - begin : kStretch;
    for (int64_t x = 0; x < n; ++x) sums[x] = half;
    for (int32_t k = 0; k < taps.count[y]; ++k) {
      const uint8_t* row = first + k * stride + begin;
      const auto weight = static_cast<uint32_t>(weights[k]);
      if (n == kStretch) {
        for (int64_t x = 0; x < kStretch; ++x) sums[x] += weight * row[x];
      } else {
        for (int64_t x = 0; x < n; ++x) sums[x] += weight * row[x];
      }
    }
    for (int64_t x = 0; x < n; ++x) to[begin + x] = sample_of(sums[x], taps.shift);
  }
}

// ---- AVX2 --------------------------------------------------------------------------------------

#if defined(__AVX2__)

template <bool kNarrow>
inline __m256i joined(__m256i low, __m256i high) {
  if constexpr (kNarrow) return low;
  return _mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low);
}

// The sums of both halves of a, and behind them those of b.
inline __m256i halves_added(__m256i a, __m256i b) {
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                          _mm256_permute2x128_si256(a, b, 0x31));
}

// kRowBlock rows side by side: a group is 4 pixels of each, in 16 bits as
// r0 r1 g0 g1 b0 b1 . . | r2 r3 g2 g3 b2 b3 . .
template <bool kNarrow>
void resample_block(const Taps& taps, const uint8_t* const* rows, uint8_t* const* to) {
  constexpr char kNone = -1;
  const __m256i spread = _mm256_setr_epi8(
      0, kNone, 3, kNone, 1, kNone, 4, kNone, 2, kNone, 5, kNone, kNone, kNone, kNone, kNone,  //
      6, kNone, 9, kNone, 7, kNone, 10, kNone, 8, kNone, 11, kNone, kNone, kNone, kNone, kNone);
  const __m256i low_pairs = _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2);
  const __m256i high_pairs = _mm256_setr_epi32(1, 1, 1, 1, 3, 3, 3, 3);
  // In one of the two halves of a register, which are added in the end.
  const __m256i half =
      _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_set1_epi32(half_of(taps)), 0);
  const __m128i shift = _mm_cvtsi32_si128(taps.shift);
  for (int64_t x = 0; x < taps.outputs; ++x) {
    const int32_t* pairs = taps.pairs + taps.offset[x];
    const int64_t first = kColors * taps.first[x];
    const int64_t count = taps.count[x];
    // Two rows at a time, whose sums and constants fit into the registers.
    const auto sums_of = [&](const uint8_t* row, const uint8_t* next) {
      __m256i low[2] = {half, half};
      __m256i high[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
      const auto add = [&](const uint8_t* from, __m256i low_weights, __m256i high_weights, int r) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        const __m256i pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), spread);
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(pixels, low_weights));
        if constexpr (!kNarrow) {
          high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(pixels, high_weights));
        }
      };
      // A count is at least 1, and saying so spares the compiler a second path.
      int64_t k = 0;
      do {
        const __m256i parts =
            _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs + k)));
        const __m256i low_weights = _mm256_permutevar8x32_epi32(parts, low_pairs);
        const __m256i high_weights = _mm256_permutevar8x32_epi32(parts, high_pairs);
        add(row + first + kColors * k, low_weights, high_weights, 0);
        add(next + first + kColors * k, low_weights, high_weights, 1);
        k += kTapGroup;
      } while (k < count);
      const __m256i sums =
          halves_added(joined<kNarrow>(low[0], high[0]), joined<kNarrow>(low[1], high[1]));
      return _mm256_sra_epi32(sums, shift);
    };
    // Rows 0 | 1 and 2 | 3, then in bytes 0 2 | 1 3.
    const __m256i sums_01 = sums_of(rows[0], rows[1]);
    const __m256i sums_23 = sums_of(rows[2], rows[3]);
    const __m256i words = _mm256_packs_epi32(sums_01, sums_23);
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m128i even = _mm256_castsi256_si128(bytes);
    const __m128i odd = _mm256_extracti128_si256(bytes, 1);
    // One byte too many each, which the next pixel overwrites.
    const int32_t pixels[kRowBlock] = {_mm_cvtsi128_si32(even), _mm_cvtsi128_si32(odd),
                                       _mm_extract_epi32(even, 1), _mm_extract_epi32(odd, 1)};
    for (int64_t r = 0; r < kRowBlock; ++r) {
      std::memcpy(to[r] + kColors * x, &pixels[r], sizeof(int32_t));
    }
  }
}

constexpr int64_t kColumnBlock = 32;

// Adds the rows a and b, weighted by the 16-bit pairs in low_weights and high_weights.
template <bool kNarrow>
inline void add_row_pair(const uint8_t* a, const uint8_t* b, __m256i low_weights,
                         __m256i high_weights, __m256i (&low)[4], __m256i (&high)[4]) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i bytes_a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i bytes_b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  const __m256i first = _mm256_unpacklo_epi8(bytes_a, bytes_b);
  const __m256i second = _mm256_unpackhi_epi8(bytes_a, bytes_b);
  const __m256i pairs[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                            _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
  for (int i = 0; i < 4; ++i) {
    low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pairs[i], low_weights));
    if constexpr (!kNarrow) {
      high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pairs[i], high_weights));
    }
  }
}

// kColumnBlock columns of one row of the result.
template <bool kNarrow>
[[gnu::always_inline]] inline void resample_column_block(const Taps& taps, int64_t y,
                                                         const uint8_t* rows, int64_t stride,
                                                         uint8_t* to) {
  const int32_t* pairs = taps.pairs + taps.offset[y];
  const int32_t count = taps.count[y];
  __m256i low[4];
  __m256i high[4];
  for (int i = 0; i < 4; ++i) {
    low[i] = _mm256_set1_epi32(half_of(taps));
    high[i] = _mm256_setzero_si256();
  }
  // A pair without its second row takes the first again, with a weight of zero.
  int32_t k = 0;
  do {
    const uint8_t* row = rows + k * stride;
    const uint8_t* next = k + 1 < count ? row + stride : row;
    add_row_pair<kNarrow>(row, next, _mm256_set1_epi32(pairs[k]), _mm256_set1_epi32(pairs[k + 1]),
                          low, high);
    k += 2;
  } while (k < count);
  const __m128i shift = _mm_cvtsi32_si128(taps.shift);
  for (int i = 0; i < 4; ++i) low[i] = _mm256_sra_epi32(joined<kNarrow>(low[i], high[i]), shift);
  const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(low[0], low[1]),  //
                                            _mm256_packs_epi32(low[2], low[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
}

// The last block may overlap the one before it.
template <bool kNarrow>
void resample_column_blocks(const Taps& taps, int64_t y, const uint8_t* rows, int64_t stride,
                            int64_t bytes, uint8_t* to) {
  const uint8_t* first = rows + taps.first[y] * stride;
  for (int64_t x = 0; x < bytes; x += kColumnBlock) {
    const int64_t at = x + kColumnBlock <= bytes ? x : bytes - kColumnBlock;
    resample_column_block<kNarrow>(taps, y, first + at, stride, to + at);
  }
}

#endif

}  // namespace

void pixels_to_rgb(PixelFormat format, const Background& background, const uint8_t* from,
                   int64_t pixels, uint8_t* to) {
  if (format == PixelFormat::kRgb) {
    std::memcpy(to, from, static_cast<size_t>(kColors * pixels));
    return;
  }
  if (format == PixelFormat::kCmyk) {
    for (int64_t i = 0; i < pixels; ++i, from += 4, to += kColors) {
      const int32_t light = 255 - from[3];
      for (int64_t c = 0; c < kColors; ++c) {
        const int32_t product = from[c] * light + 128;
        to[c] = static_cast<uint8_t>(light - (((product >> 8) + product) >> 8));
      }
    }
    return;
  }
  const int64_t channels = channels_of(format);
  const bool grey = channels < kColors;
  if (!background.present || channels % 2 == 1) {
    for (int64_t i = 0; i < pixels; ++i, from += channels, to += kColors) {
      to[0] = from[0];
      to[1] = from[grey ? 0 : 1];
      to[2] = from[grey ? 0 : 2];
    }
    return;
  }
  for (int64_t i = 0; i < pixels; ++i, from += channels, to += kColors) {
    const int32_t alpha = from[channels - 1];
    for (int64_t c = 0; c < kColors; ++c) {
      const int32_t mixed = from[grey ? 0 : c] * alpha + background.color[c] * (255 - alpha);
      to[c] = static_cast<uint8_t>((mixed + 127) / 255);
    }
  }
}

void resample_rows(const Taps& taps, const uint8_t* const* rows, int64_t count,
                   uint8_t* const* to) {
#if defined(__AVX2__)
  if (count == kRowBlock) {
    if (taps.narrow) {
      resample_block<true>(taps, rows, to);
    } else {
      resample_block<false>(taps, rows, to);
    }
    return;
  }
#endif
  for (int64_t r = 0; r < count; ++r) resample_row(taps, rows[r], to[r]);
}

void resample_columns(const Taps& taps, int64_t y, const uint8_t* rows, int64_t stride,
                      int64_t bytes, uint8_t* to) {
#if defined(__AVX2__)
  if (bytes >= kColumnBlock) {
    if (taps.narrow) {
      resample_column_blocks<true>(taps, y, rows, stride, bytes, to);
    } else {
      resample_column_blocks<false>(taps, y, rows, stride, bytes, to);
    }
    return;
  }
#endif
  resample_column_range(taps, y, rows, stride, 0, bytes, to);
}

void pixels_to_planes(const float* table, const uint8_t* from, int64_t width, float* red,
                      float* green, float* blue) {
  for (int64_t x = 0; x < width; ++x, from += kColors) {
    const float r = table[from[0]];
    const float g = table[kLevels + from[1]];
    const float b = table[2 * kLevels + from[2]];
    red[x] = r;
    green[x] = g;
    blue[x] = b;
  }
}

void pixels_to_floats(const float* table, const uint8_t* from, int64_t pixels, float* to) {
  for (int64_t i = 0; i < pixels; ++i, from += kColors, to += kColors) {
    const float r = table[from[0]];
    const float g = table[kLevels + from[1]];
    const float b = table[2 * kLevels + from[2]];
    to[0] = r;
    to[1] = g;
    to[2] = b;
  }
}

}  // namespace siglip::SIGLIP_CPU
