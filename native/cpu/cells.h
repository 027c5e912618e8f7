// The arithmetic of products with narrow weights. Operands lie in cells of 32 bits, as wide as a lane
// of the sum they add to, each holding kGroup consecutive steps of k of one row or column:
//
//   PairCells      two int16        sum += a0 b0 + a1 b1, exact in int32
//   ByteCells      four bytes       the same of four products, uint8 (row) by int8 (column)
//   FloatCells     one float32      sum = a b + sum
//   Bfloat16Cells  two bfloat16     sum += a0 b0 + a1 b1 in float32
//
// Stored weights are int8 or bfloat16, cell beside cell of neighbouring columns. Where the arithmetic
// wants them wider, `widen` turns stored cells into several times as many. Those with kTiles are
// multiplied tile by tile (cpu/matrix_tiles.h).
#pragma once

#include "cpu/simd.h"
#include "runtime/dispatch.h"

namespace siglip::SIGLIP_CPU {

typedef int32_t Cell __attribute__((may_alias));

namespace unaligned {
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int16_t ShortVec __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));
typedef int16_t HalfShortVec __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
typedef uint16_t HalfUshortVec __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
typedef int8_t ByteVec __attribute__((vector_size(kLanes * 2), aligned(1), may_alias));
typedef uint8_t QuarterByteVec __attribute__((vector_size(kLanes), aligned(1), may_alias));
}  // namespace unaligned

typedef int16_t ShortVec __attribute__((vector_size(kLanes * 4)));
typedef int16_t HalfShortVec __attribute__((vector_size(kLanes * 2)));
typedef uint16_t HalfUshortVec __attribute__((vector_size(kLanes * 2)));
typedef uint8_t QuarterByteVec __attribute__((vector_size(kLanes)));

static inline IntVec load_cells(const void* p) { return *static_cast<const unaligned::IntVec*>(p); }
static inline void store_cells(void* p, IntVec v) { *static_cast<unaligned::IntVec*>(p) = v; }
static inline IntVec splat_cell(Cell x) { return x - IntVec{}; }

// To the nearest integer, ties to even; |x| < 2^31.
static inline IntVec round_to_int(Vec x) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  return reinterpret_cast<IntVec>(_mm512_maskz_cvtps_epi32(kAllLanes, reinterpret_cast<__m512>(x)));
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
  return reinterpret_cast<IntVec>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x)));
#elif defined(__ARM_NEON)
  return reinterpret_cast<IntVec>(vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(x)));
#elif defined(__SSE2__) && !defined(SIGLIP_ISA_AVX512) && !defined(SIGLIP_ISA_AVX2)
  return reinterpret_cast<IntVec>(_mm_cvtps_epi32(reinterpret_cast<__m128>(x)));
#else
  IntVec rounded;
  for (int i = 0; i < kLanes; ++i) rounded[i] = static_cast<int32_t>(__builtin_rintf(x[i]));
  return rounded;
#endif
}

// The lower 16 or 8 bits of each lane; for int32 that fit, the same numbers. By instructions where
// compilers take the lanes one by one.
static inline HalfShortVec narrow_to_shorts(IntVec v) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  return reinterpret_cast<HalfShortVec>(
      _mm512_maskz_cvtepi32_epi16(kAllLanes, reinterpret_cast<__m512i>(v)));
#else
  return __builtin_convertvector(v, HalfShortVec);
#endif
}
static inline QuarterByteVec narrow_to_bytes(IntVec v) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  return reinterpret_cast<QuarterByteVec>(
      _mm512_maskz_cvtepi32_epi8(kAllLanes, reinterpret_cast<__m512i>(v)));
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
  const __m256i wide = reinterpret_cast<__m256i>(v & 255);
  const __m128i shorts =
      _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  return reinterpret_cast<QuarterByteVec>(_mm_cvtsi128_si64(_mm_packus_epi16(shorts, shorts)));
#else
  return __builtin_convertvector(v, QuarterByteVec);
#endif
}

#if defined(SIGLIP_ISA_AVX512)
// Of four vectors, one after the other, each in [-128, 127].
static inline IntVec narrow_to_bytes(IntVec a, IntVec b, IntVec c, IntVec d) {
#if defined(__AVX512BW__) && !defined(SIGLIP_EMULATED)
  const auto wide = [](IntVec v) { return reinterpret_cast<__m512i>(v); };
  const __m512i shorts[2] = {_mm512_packs_epi32(wide(a), wide(b)),
                             _mm512_packs_epi32(wide(c), wide(d))};
  // Packing goes by quarters of a register: in each lie four bytes of a, of b, of c and of d.
  const __m512i quarters = _mm512_packs_epi16(shorts[0], shorts[1]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return reinterpret_cast<IntVec>(_mm512_maskz_permutexvar_epi32(kAllLanes, order, quarters));
#else
  const QuarterByteVec bytes[4] = {narrow_to_bytes(a), narrow_to_bytes(b), narrow_to_bytes(c),
                                   narrow_to_bytes(d)};
  return load_cells(bytes);
#endif
}
#endif

// The bits of the nearest bfloat16, ties to even, in the upper half of each lane; the lower is zero.
// A NaN stays one, quiet.
static inline UintVec round_to_bfloat16(Vec x) {
  const UintVec bits = reinterpret_cast<UintVec>(x);
  const UintVec rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
  const IntVec is_nan = x != x;
  return (is_nan ? bits | 0x00400000U : rounded) & 0xffff0000U;
}

static inline HalfUshortVec upper_halves(UintVec v) {
  return __builtin_convertvector(v >> 16, HalfUshortVec);
}

struct PairCells {
  using Sum = IntVec;
  static constexpr bool kIntegers = true;
  static constexpr int kGroup = 2;
  static constexpr int kStoredGroup = 2;
  static constexpr int kWeightBytes = 1;
  static constexpr bool kInPlace = false;
  static constexpr bool kTiles = false;

  // `to` gets as many cells as there are columns.
  static void widen(const uint8_t* stored, int64_t columns, Cell* to) {
    for (int64_t j = 0; j < columns; j += kLanes) {
      const unaligned::ByteVec bytes =
          *reinterpret_cast<const unaligned::ByteVec*>(stored + j * kStoredGroup);
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512BW__)
      const ShortVec shorts = reinterpret_cast<ShortVec>(
          _mm512_maskz_cvtepi8_epi16(0xffffffffU, reinterpret_cast<__m256i>(bytes)));
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
      const ShortVec shorts =
          reinterpret_cast<ShortVec>(_mm256_cvtepi8_epi16(reinterpret_cast<__m128i>(bytes)));
#else
      const ShortVec shorts = __builtin_convertvector(bytes, ShortVec);
#endif
      store_cells(to + j, reinterpret_cast<IntVec>(shorts));
    }
  }

  static IntVec add_product(IntVec sum, IntVec row, IntVec columns) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512BW__)
    return sum + reinterpret_cast<IntVec>(_mm512_madd_epi16(reinterpret_cast<__m512i>(row),
                                                            reinterpret_cast<__m512i>(columns)));
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
    return sum + reinterpret_cast<IntVec>(_mm256_madd_epi16(reinterpret_cast<__m256i>(row),
                                                            reinterpret_cast<__m256i>(columns)));
#elif defined(__SSE2__) && !defined(SIGLIP_ISA_AVX512) && !defined(SIGLIP_ISA_AVX2)
    return sum + reinterpret_cast<IntVec>(_mm_madd_epi16(reinterpret_cast<__m128i>(row),
                                                         reinterpret_cast<__m128i>(columns)));
#else
    // Halves by shifts: the upper keeps its sign, the lower gets it from its top bit.
    return sum + (row >> 16) * (columns >> 16) + ((row << 16) >> 16) * ((columns << 16) >> 16);
#endif
  }
};

#if defined(SIGLIP_ISA_AVX512) || defined(SIGLIP_ISA_AVX2)
// Only where Features::vnni says so: written as the instruction, which needs no flag of the compiler
// and keeps its sum in the register (GCC 12 spills those of the intrinsic).
struct ByteCells {
  using Sum = IntVec;
  static constexpr bool kIntegers = true;
  static constexpr int kGroup = 4;
  static constexpr int kStoredGroup = 4;
  static constexpr int kWeightBytes = 1;
  static constexpr bool kInPlace = true;
  static constexpr bool kTiles = false;

  static void widen(const uint8_t*, int64_t, Cell*) {}

  [[gnu::always_inline]] static IntVec add_product(IntVec sum, IntVec row, IntVec columns) {
#if defined(SIGLIP_EMULATED)
    return reinterpret_cast<IntVec>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                        reinterpret_cast<__m512i>(row),
                                                        reinterpret_cast<__m512i>(columns)));
#elif defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(columns));
    return sum;
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(row), "x"(columns));
    return sum;
#else
    for (int byte = 0; byte < 4; ++byte) {
      sum += reinterpret_cast<IntVec>(reinterpret_cast<UintVec>(row) >> (8 * byte) & 255U) *
             (columns << (24 - 8 * byte) >> 24);
    }
    return sum;
#endif
  }
};
#endif

struct FloatCells {
  using Sum = Vec;
  static constexpr bool kIntegers = false;
  static constexpr int kGroup = 1;
  static constexpr int kStoredGroup = 2;
  static constexpr int kWeightBytes = 2;
  static constexpr bool kInPlace = false;
  static constexpr bool kTiles = false;

  // `to` gets two rows of `columns` cells.
  static void widen(const uint8_t* stored, int64_t columns, Cell* to) {
    for (int64_t j = 0; j < columns; j += kLanes) {
      const UintVec pairs = *reinterpret_cast<const unaligned::UintVec*>(stored + j * 4);
      store_cells(to + j, reinterpret_cast<IntVec>(pairs << 16));
      store_cells(to + columns + j, reinterpret_cast<IntVec>(pairs & 0xffff0000U));
    }
  }

  static Vec add_product(Vec sum, IntVec row, IntVec columns) {
    return multiply_add(reinterpret_cast<Vec>(row), reinterpret_cast<Vec>(columns), sum);
  }
};

#if defined(SIGLIP_ISA_AVX512)
// Only where Features::bfloat16 says so.
struct Bfloat16Cells {
  using Sum = IntVec;  // bits of floats: of float vectors GCC 12 spills the sums
  static constexpr bool kIntegers = false;
  static constexpr int kGroup = 2;
  static constexpr int kStoredGroup = 2;
  static constexpr int kWeightBytes = 2;
  static constexpr bool kInPlace = true;
  static constexpr bool kTiles = false;

  static void widen(const uint8_t*, int64_t, Cell*) {}

  // The nearest bfloat16 of two vectors, those of the second after those of the first.
  [[gnu::always_inline]] static IntVec follow(Vec first, Vec second) {
#if defined(__AVX512F__) && !defined(SIGLIP_EMULATED)
    IntVec pairs;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(pairs) : "v"(first), "v"(second));
    return pairs;
#else
    HalfUshortVec halves[2] = {upper_halves(round_to_bfloat16(first)),
                               upper_halves(round_to_bfloat16(second))};
    return load_cells(halves);
#endif
  }

  // The same, lane by lane in pairs.
  [[gnu::always_inline]] static IntVec interleave(Vec lower, Vec upper) {
#if defined(__AVX512BW__) && !defined(SIGLIP_EMULATED)
    constexpr ShortVec kOrder = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return reinterpret_cast<IntVec>(
        _mm512_maskz_permutexvar_epi16(0xffffffffU, reinterpret_cast<__m512i>(kOrder),
                                       reinterpret_cast<__m512i>(follow(lower, upper))));
#else
    return reinterpret_cast<IntVec>(round_to_bfloat16(lower) >> 16 | round_to_bfloat16(upper));
#endif
  }

  [[gnu::always_inline]] static IntVec add_product(IntVec sum, IntVec row, IntVec columns) {
#if defined(__AVX512F__) && !defined(SIGLIP_EMULATED)
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(row), "v"(columns));
    return sum;
#else
    // The upper products first, as the instruction does.
    const UintVec a = reinterpret_cast<UintVec>(row);
    const UintVec b = reinterpret_cast<UintVec>(columns);
    const Vec upper =
        multiply_add(reinterpret_cast<Vec>(a & 0xffff0000U), reinterpret_cast<Vec>(b & 0xffff0000U),
                     reinterpret_cast<Vec>(sum));
    return reinterpret_cast<IntVec>(
        multiply_add(reinterpret_cast<Vec>(a << 16), reinterpret_cast<Vec>(b << 16), upper));
#endif
  }
};
#endif

}  // namespace siglip::SIGLIP_CPU
