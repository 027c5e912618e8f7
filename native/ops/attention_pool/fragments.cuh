// Operands of mma.sync straight from rows in memory, without shared memory: the order of the summed
// index and that of the columns are free as long as both sides agree, so every thread takes 16 bytes or
// more of a row at once. float32 goes in as a sum of bfloat16 terms. With lane = 4 · g + q:
//   octets   a row of A or B (row g) along the summed index: elements 8q .. 8q + 7 of 32
//   columns  B as 16 rows of 64 columns: rows 4q .. 4q + 3, columns 8g .. 8g + 7; product j of the
//            eight has the columns 8i + j, so that a row of C has columns 16q + j and 16q + 8 + j
#pragma once

#include "device/mma.cuh"
#include "device/vector.cuh"

namespace siglip::cuda {

// How many bfloat16 make up an element of x, and of the float32 operand it meets: as many as the
// result is worth.
template <typename T>
inline constexpr int kTermsOfX = sizeof(T) == 2 ? 1 : 3;
template <typename T>
inline constexpr int kTermsOfFloat = sizeof(T) == 2 ? 2 : 3;

// a and b as sums of terms; out[i] holds the i-th of both, that of a in the lower half.
template <int kTerms>
__device__ __forceinline__ void split(float a, float b, uint32_t (&out)[kTerms]) {
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    out[i] = pack_bfloat16(a, b);
    a -= low_of_bfloat16(out[i]);
    b -= high_of_bfloat16(out[i]);
  }
}

// c += a · b for operands in terms: products of higher order than the terms left out are dropped. Where
// float32 is wanted, sums start anew, small terms first, as the unit truncates what it adds up.
template <int kA, int kB>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[kA][4],
                                         const uint32_t (&b)[kB][2]) {
  constexpr int kOrders = kA > kB ? kA : kB;
  constexpr bool kFresh = kOrders > 2;
  float fresh[4] = {};
  float(&sum)[4] = kFresh ? fresh : c;
#pragma unroll
  for (int order = kOrders - 1; order >= 0; --order) {
#pragma unroll
    for (int i = 0; i <= order; ++i) {
      if (i < kA && order - i < kB) mma_bfloat16(sum, a[i], b[order - i][0], b[order - i][1]);
    }
  }
  if constexpr (kFresh) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] += fresh[i];
  }
}

// Elements [d, d + 8) of a row; zero beyond its width, and of a row that does not count.
template <bool kVectors, typename T>
__device__ __forceinline__ device::Floats<8> load_floats(const T* row, int64_t d, int64_t width,
                                                         bool counts) {
  if (!counts || d >= width) return device::splat<8>(0.0F);
  if constexpr (kVectors) {
    return device::load<8>(row + d);
  } else {
    return device::load_partial<8>(row + d, width - d);
  }
}

// The same as they lie in memory.
template <bool kVectors>
__device__ __forceinline__ device::Words<4> load_words(const __nv_bfloat16* row, int64_t d,
                                                       int64_t width, bool counts) {
  if constexpr (kVectors) {
    if (!counts || d >= width) return {};
    return *reinterpret_cast<const device::Words<4>*>(row + d);
  } else {
    const device::Floats<8> v = load_floats<false>(row, d, width, counts);
    device::Words<4> words;
#pragma unroll
    for (int i = 0; i < 4; ++i) words.w[i] = pack_bfloat16(v[2 * i], v[2 * i + 1]);
    return words;
  }
}

// Eight elements along the summed index: pairs 0 and 1 for one product, 2 and 3 for the next.
template <int kTerms>
struct Octet {
  uint32_t pairs[kTerms][4];
};

template <int kTerms, bool kVectors, typename T>
__device__ __forceinline__ Octet<kTerms> load_octet(const T* row, int64_t d, int64_t width,
                                                    bool counts) {
  Octet<kTerms> octet;
  if constexpr (kTerms == 1) {
    const device::Words<4> words = load_words<kVectors>(row, d, width, counts);
#pragma unroll
    for (int i = 0; i < 4; ++i) octet.pairs[0][i] = words.w[i];
  } else {
    const device::Floats<8> v = load_floats<kVectors>(row, d, width, counts);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t terms[kTerms];
      split(v[2 * i], v[2 * i + 1], terms);
#pragma unroll
      for (int term = 0; term < kTerms; ++term) octet.pairs[term][i] = terms[term];
    }
  }
  return octet;
}

// B of eight products.
template <int kTerms>
struct Columns {
  uint32_t b[8][kTerms][2];
};

// Columns [d, d + 8) of the four rows that row_at(i) gives, or null for one that does not count.
template <int kTerms, bool kVectors, typename Rows>
__device__ __forceinline__ Columns<kTerms> load_columns(int64_t d, int64_t width,
                                                        const Rows& row_at) {
  Columns<kTerms> columns;
  if constexpr (kTerms == 1) {
    device::Words<4> rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat16* row = row_at(i);
      rows[i] = load_words<kVectors>(row, d, width, row != nullptr);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t low = rows[2 * half].w[i];
        const uint32_t high = rows[2 * half + 1].w[i];
        columns.b[2 * i][0][half] = __byte_perm(low, high, 0x5410);
        columns.b[2 * i + 1][0][half] = __byte_perm(low, high, 0x7632);
      }
    }
  } else {
    device::Floats<8> rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto* row = row_at(i);
      rows[i] = load_floats<kVectors>(row, d, width, row != nullptr);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t terms[kTerms];
        split(rows[2 * half][j], rows[2 * half + 1][j], terms);
#pragma unroll
        for (int term = 0; term < kTerms; ++term) columns.b[j][term][half] = terms[term];
      }
    }
  }
  return columns;
}

// A from four neighbours along the summed index, of row g and of row g + 8.
template <int kTerms>
__device__ __forceinline__ void split_rows(const float (&upper)[4], const float (&lower)[4],
                                           uint32_t (&a)[kTerms][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t terms[kTerms];
    split(upper[2 * half], upper[2 * half + 1], terms);
#pragma unroll
    for (int term = 0; term < kTerms; ++term) a[term][2 * half] = terms[term];
    split(lower[2 * half], lower[2 * half + 1], terms);
#pragma unroll
    for (int term = 0; term < kTerms; ++term) a[term][2 * half + 1] = terms[term];
  }
}

}  // namespace siglip::cuda
