// Products of bfloat16 with float32 sums by warpgroups (wgmma m64nNk16, sm_90a). B, and A unless it is
// in registers, lie in shared memory and are named by descriptors. With warp w of the warpgroup and
// lane = 4 · g + t a thread holds
//   A (64 × 16): as in device/mma.cuh, of rows 16w .. 16w + 15
//   D (64 × N):  d[4i], d[4i + 1] = (16w + g, 8i + 2t), (…, 8i + 2t + 1); d[4i + 2], d[4i + 3] = the
//                same columns of row 16w + g + 8
// Between the first touch of D (or of A's registers) and wgmma() comes wgmma_fence(), and between
// wgmma() and the next touch wgmma_commit() and wgmma_wait().
#pragma once

#include "device/address.cuh"

namespace siglip::cuda {

// How an operand lies in shared memory: rows of 128, 64 or 32 bytes, their 16-byte pieces exchanged
// as the copy engine does it (runtime/tensor_map.h); patterns begin at multiples of 1024, 512, 256.
enum class OperandLayout : uint64_t { k128 = 1, k64 = 2, k32 = 3 };

template <int kRowBytes>
struct LayoutOfRow;
template <>
struct LayoutOfRow<128> {
  static constexpr OperandLayout value = OperandLayout::k128;
};
template <>
struct LayoutOfRow<64> {
  static constexpr OperandLayout value = OperandLayout::k64;
};
template <>
struct LayoutOfRow<32> {
  static constexpr OperandLayout value = OperandLayout::k32;
};

// Address and the two distances in bytes, of which only bits 4 .. 17 count.
constexpr __host__ __device__ uint64_t operand_descriptor(uint32_t address, uint32_t leading,
                                                          uint32_t stride, OperandLayout layout) {
  return static_cast<uint64_t>((address & 0x3ffffU) >> 4) |
         static_cast<uint64_t>((leading & 0x3ffffU) >> 4) << 16 |
         static_cast<uint64_t>((stride & 0x3ffffU) >> 4) << 32 |
         static_cast<uint64_t>(layout) << 62;
}

// An operand whose rows in shared memory run over k (A row by row; B column by column: "K-major").
// `address` is that of row 0 of the 16 elements of k: the tile's own plus 32 bytes a step.
template <int kRowBytes>
__host__ __device__ __forceinline__ constexpr uint64_t operand_along_k(uint32_t address) {
  return operand_descriptor(address, 16, 8 * kRowBytes, LayoutOfRow<kRowBytes>::value);
}

// An operand whose rows in shared memory run over its other axis (kTransposed: "MN-major"), 16 rows
// of k to a step: the tile's address plus 16 · kRowBytes a step. `next` bytes lead from one
// kRowBytes-wide column of rows to the next, where the other axis is longer than a row.
template <int kRowBytes>
__host__ __device__ __forceinline__ constexpr uint64_t operand_across_k(uint32_t address,
                                                                        uint32_t next) {
  return operand_descriptor(address, next, 8 * kRowBytes, LayoutOfRow<kRowBytes>::value);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until all but the last kGroups groups are complete.
template <int kGroups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Keeps the compiler from moving reads and writes of registers across an asynchronous product.
template <int kCount>
__device__ __forceinline__ void keep_in_place(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// wgmma<N>(d, a, b, add): d = a · b (+ d where add is not 0). a is a descriptor or a fragment.
template <int kColumns, bool kTransposedA = false, bool kTransposedB = false>
struct Wgmma;

// clang-format off
#define SIGLIP_WGMMA_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SIGLIP_WGMMA_NAMES_1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define SIGLIP_WGMMA_NAMES_2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define SIGLIP_WGMMA_NAMES_3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define SIGLIP_WGMMA_NAMES_4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define SIGLIP_WGMMA_NAMES_5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define SIGLIP_WGMMA_NAMES_6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define SIGLIP_WGMMA_NAMES_7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define SIGLIP_WGMMA_NAMES_8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define SIGLIP_WGMMA_NAMES_9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define SIGLIP_WGMMA_NAMES_10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define SIGLIP_WGMMA_NAMES_11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define SIGLIP_WGMMA_NAMES_12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define SIGLIP_WGMMA_NAMES_13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define SIGLIP_WGMMA_NAMES_14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define SIGLIP_WGMMA_NAMES_15 "%120, %121, %122, %123, %124, %125, %126, %127"

#define SIGLIP_WGMMA_SUMS_0 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define SIGLIP_WGMMA_SUMS_1 "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define SIGLIP_WGMMA_SUMS_2 "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define SIGLIP_WGMMA_SUMS_3 "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define SIGLIP_WGMMA_SUMS_4 "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define SIGLIP_WGMMA_SUMS_5 "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define SIGLIP_WGMMA_SUMS_6 "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define SIGLIP_WGMMA_SUMS_7 "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define SIGLIP_WGMMA_SUMS_8 "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define SIGLIP_WGMMA_SUMS_9 "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define SIGLIP_WGMMA_SUMS_10 "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define SIGLIP_WGMMA_SUMS_11 "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define SIGLIP_WGMMA_SUMS_12 "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define SIGLIP_WGMMA_SUMS_13 "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define SIGLIP_WGMMA_SUMS_14 "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define SIGLIP_WGMMA_SUMS_15 "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

#define SIGLIP_WGMMA_NAMES_TO_0 SIGLIP_WGMMA_NAMES_0
#define SIGLIP_WGMMA_SUMS_TO_0 SIGLIP_WGMMA_SUMS_0
#define SIGLIP_WGMMA_NAMES_TO_1 SIGLIP_WGMMA_NAMES_TO_0 ", " SIGLIP_WGMMA_NAMES_1
#define SIGLIP_WGMMA_SUMS_TO_1 SIGLIP_WGMMA_SUMS_TO_0, SIGLIP_WGMMA_SUMS_1
#define SIGLIP_WGMMA_NAMES_TO_2 SIGLIP_WGMMA_NAMES_TO_1 ", " SIGLIP_WGMMA_NAMES_2
#define SIGLIP_WGMMA_SUMS_TO_2 SIGLIP_WGMMA_SUMS_TO_1, SIGLIP_WGMMA_SUMS_2
#define SIGLIP_WGMMA_NAMES_TO_3 SIGLIP_WGMMA_NAMES_TO_2 ", " SIGLIP_WGMMA_NAMES_3
#define SIGLIP_WGMMA_SUMS_TO_3 SIGLIP_WGMMA_SUMS_TO_2, SIGLIP_WGMMA_SUMS_3
#define SIGLIP_WGMMA_NAMES_TO_4 SIGLIP_WGMMA_NAMES_TO_3 ", " SIGLIP_WGMMA_NAMES_4
#define SIGLIP_WGMMA_SUMS_TO_4 SIGLIP_WGMMA_SUMS_TO_3, SIGLIP_WGMMA_SUMS_4
#define SIGLIP_WGMMA_NAMES_TO_5 SIGLIP_WGMMA_NAMES_TO_4 ", " SIGLIP_WGMMA_NAMES_5
#define SIGLIP_WGMMA_SUMS_TO_5 SIGLIP_WGMMA_SUMS_TO_4, SIGLIP_WGMMA_SUMS_5
#define SIGLIP_WGMMA_NAMES_TO_6 SIGLIP_WGMMA_NAMES_TO_5 ", " SIGLIP_WGMMA_NAMES_6
#define SIGLIP_WGMMA_SUMS_TO_6 SIGLIP_WGMMA_SUMS_TO_5, SIGLIP_WGMMA_SUMS_6
#define SIGLIP_WGMMA_NAMES_TO_7 SIGLIP_WGMMA_NAMES_TO_6 ", " SIGLIP_WGMMA_NAMES_7
#define SIGLIP_WGMMA_SUMS_TO_7 SIGLIP_WGMMA_SUMS_TO_6, SIGLIP_WGMMA_SUMS_7
#define SIGLIP_WGMMA_NAMES_TO_8 SIGLIP_WGMMA_NAMES_TO_7 ", " SIGLIP_WGMMA_NAMES_8
#define SIGLIP_WGMMA_SUMS_TO_8 SIGLIP_WGMMA_SUMS_TO_7, SIGLIP_WGMMA_SUMS_8
#define SIGLIP_WGMMA_NAMES_TO_9 SIGLIP_WGMMA_NAMES_TO_8 ", " SIGLIP_WGMMA_NAMES_9
#define SIGLIP_WGMMA_SUMS_TO_9 SIGLIP_WGMMA_SUMS_TO_8, SIGLIP_WGMMA_SUMS_9
#define SIGLIP_WGMMA_NAMES_TO_10 SIGLIP_WGMMA_NAMES_TO_9 ", " SIGLIP_WGMMA_NAMES_10
#define SIGLIP_WGMMA_SUMS_TO_10 SIGLIP_WGMMA_SUMS_TO_9, SIGLIP_WGMMA_SUMS_10
#define SIGLIP_WGMMA_NAMES_TO_11 SIGLIP_WGMMA_NAMES_TO_10 ", " SIGLIP_WGMMA_NAMES_11
#define SIGLIP_WGMMA_SUMS_TO_11 SIGLIP_WGMMA_SUMS_TO_10, SIGLIP_WGMMA_SUMS_11
#define SIGLIP_WGMMA_NAMES_TO_12 SIGLIP_WGMMA_NAMES_TO_11 ", " SIGLIP_WGMMA_NAMES_12
#define SIGLIP_WGMMA_SUMS_TO_12 SIGLIP_WGMMA_SUMS_TO_11, SIGLIP_WGMMA_SUMS_12
#define SIGLIP_WGMMA_NAMES_TO_13 SIGLIP_WGMMA_NAMES_TO_12 ", " SIGLIP_WGMMA_NAMES_13
#define SIGLIP_WGMMA_SUMS_TO_13 SIGLIP_WGMMA_SUMS_TO_12, SIGLIP_WGMMA_SUMS_13
#define SIGLIP_WGMMA_NAMES_TO_14 SIGLIP_WGMMA_NAMES_TO_13 ", " SIGLIP_WGMMA_NAMES_14
#define SIGLIP_WGMMA_SUMS_TO_14 SIGLIP_WGMMA_SUMS_TO_13, SIGLIP_WGMMA_SUMS_14
#define SIGLIP_WGMMA_NAMES_TO_15 SIGLIP_WGMMA_NAMES_TO_14 ", " SIGLIP_WGMMA_NAMES_15
#define SIGLIP_WGMMA_SUMS_TO_15 SIGLIP_WGMMA_SUMS_TO_14, SIGLIP_WGMMA_SUMS_15


// n columns, `last` = n / 16 - 1; i0 .. i6 the numbers of the operands behind the n / 2 sums.
#define SIGLIP_WGMMA(n, last, i0, i1, i2, i3, i4, i5, i6)                                             \
  template <bool kTransposedA, bool kTransposedB>                                                 \
  struct Wgmma<n, kTransposedA, kTransposedB> {                                                   \
    __device__ __forceinline__ static void run(float (&d)[n / 2], uint64_t a, uint64_t b,         \
                                               int add) {                                         \
      asm volatile(                                                                               \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                                       \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "                             \
          "{" SIGLIP_WGMMA_NAMES_TO_##last "}, %" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 ";\n}\n" \
          : SIGLIP_WGMMA_SUMS_TO_##last                                                           \
          : "l"(a), "l"(b), "r"(add), "n"(kTransposedA ? 1 : 0), "n"(kTransposedB ? 1 : 0));      \
    }                                                                                             \
    __device__ __forceinline__ static void run(float (&d)[n / 2], const uint32_t (&a)[4],         \
                                               uint64_t b, int add) {                             \
      asm volatile(                                                                               \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\n"                                       \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "                             \
          "{" SIGLIP_WGMMA_NAMES_TO_##last "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4   \
          ", p, 1, 1, %" #i6 ";\n}\n"                                                            \
          : SIGLIP_WGMMA_SUMS_TO_##last                                                           \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),                         \
            "n"(kTransposedB ? 1 : 0));                                                           \
    }                                                                                             \
  };
SIGLIP_WGMMA(16, 0, 8, 9, 10, 11, 12, 13, 14)
SIGLIP_WGMMA(32, 1, 16, 17, 18, 19, 20, 21, 22)
SIGLIP_WGMMA(48, 2, 24, 25, 26, 27, 28, 29, 30)
SIGLIP_WGMMA(64, 3, 32, 33, 34, 35, 36, 37, 38)
SIGLIP_WGMMA(80, 4, 40, 41, 42, 43, 44, 45, 46)
SIGLIP_WGMMA(96, 5, 48, 49, 50, 51, 52, 53, 54)
SIGLIP_WGMMA(112, 6, 56, 57, 58, 59, 60, 61, 62)
SIGLIP_WGMMA(128, 7, 64, 65, 66, 67, 68, 69, 70)
SIGLIP_WGMMA(144, 8, 72, 73, 74, 75, 76, 77, 78)
SIGLIP_WGMMA(160, 9, 80, 81, 82, 83, 84, 85, 86)
SIGLIP_WGMMA(176, 10, 88, 89, 90, 91, 92, 93, 94)
SIGLIP_WGMMA(192, 11, 96, 97, 98, 99, 100, 101, 102)
SIGLIP_WGMMA(208, 12, 104, 105, 106, 107, 108, 109, 110)
SIGLIP_WGMMA(224, 13, 112, 113, 114, 115, 116, 117, 118)
SIGLIP_WGMMA(240, 14, 120, 121, 122, 123, 124, 125, 126)
SIGLIP_WGMMA(256, 15, 128, 129, 130, 131, 132, 133, 134)
#undef SIGLIP_WGMMA
#undef SIGLIP_WGMMA_NAMES_0
#undef SIGLIP_WGMMA_SUMS_0
#undef SIGLIP_WGMMA_NAMES_TO_0
#undef SIGLIP_WGMMA_SUMS_TO_0
#undef SIGLIP_WGMMA_NAMES_1
#undef SIGLIP_WGMMA_SUMS_1
#undef SIGLIP_WGMMA_NAMES_TO_1
#undef SIGLIP_WGMMA_SUMS_TO_1
#undef SIGLIP_WGMMA_NAMES_2
#undef SIGLIP_WGMMA_SUMS_2
#undef SIGLIP_WGMMA_NAMES_TO_2
#undef SIGLIP_WGMMA_SUMS_TO_2
#undef SIGLIP_WGMMA_NAMES_3
#undef SIGLIP_WGMMA_SUMS_3
#undef SIGLIP_WGMMA_NAMES_TO_3
#undef SIGLIP_WGMMA_SUMS_TO_3
#undef SIGLIP_WGMMA_NAMES_4
#undef SIGLIP_WGMMA_SUMS_4
#undef SIGLIP_WGMMA_NAMES_TO_4
#undef SIGLIP_WGMMA_SUMS_TO_4
#undef SIGLIP_WGMMA_NAMES_5
#undef SIGLIP_WGMMA_SUMS_5
#undef SIGLIP_WGMMA_NAMES_TO_5
#undef SIGLIP_WGMMA_SUMS_TO_5
#undef SIGLIP_WGMMA_NAMES_6
#undef SIGLIP_WGMMA_SUMS_6
#undef SIGLIP_WGMMA_NAMES_TO_6
#undef SIGLIP_WGMMA_SUMS_TO_6
#undef SIGLIP_WGMMA_NAMES_7
#undef SIGLIP_WGMMA_SUMS_7
#undef SIGLIP_WGMMA_NAMES_TO_7
#undef SIGLIP_WGMMA_SUMS_TO_7
#undef SIGLIP_WGMMA_NAMES_8
#undef SIGLIP_WGMMA_SUMS_8
#undef SIGLIP_WGMMA_NAMES_TO_8
#undef SIGLIP_WGMMA_SUMS_TO_8
#undef SIGLIP_WGMMA_NAMES_9
#undef SIGLIP_WGMMA_SUMS_9
#undef SIGLIP_WGMMA_NAMES_TO_9
#undef SIGLIP_WGMMA_SUMS_TO_9
#undef SIGLIP_WGMMA_NAMES_10
#undef SIGLIP_WGMMA_SUMS_10
#undef SIGLIP_WGMMA_NAMES_TO_10
#undef SIGLIP_WGMMA_SUMS_TO_10
#undef SIGLIP_WGMMA_NAMES_11
#undef SIGLIP_WGMMA_SUMS_11
#undef SIGLIP_WGMMA_NAMES_TO_11
#undef SIGLIP_WGMMA_SUMS_TO_11
#undef SIGLIP_WGMMA_NAMES_12
#undef SIGLIP_WGMMA_SUMS_12
#undef SIGLIP_WGMMA_NAMES_TO_12
#undef SIGLIP_WGMMA_SUMS_TO_12
#undef SIGLIP_WGMMA_NAMES_13
#undef SIGLIP_WGMMA_SUMS_13
#undef SIGLIP_WGMMA_NAMES_TO_13
#undef SIGLIP_WGMMA_SUMS_TO_13
#undef SIGLIP_WGMMA_NAMES_14
#undef SIGLIP_WGMMA_SUMS_14
#undef SIGLIP_WGMMA_NAMES_TO_14
#undef SIGLIP_WGMMA_SUMS_TO_14
#undef SIGLIP_WGMMA_NAMES_15
#undef SIGLIP_WGMMA_SUMS_15
#undef SIGLIP_WGMMA_NAMES_TO_15
#undef SIGLIP_WGMMA_SUMS_TO_15
// clang-format on

template <int kColumns, bool kTransposedB = false>
__device__ __forceinline__ void wgmma(float (&d)[kColumns / 2], uint64_t a, uint64_t b, int add) {
  Wgmma<kColumns, false, kTransposedB>::run(d, a, b, add);
}
template <int kColumns, bool kTransposedB = false>
__device__ __forceinline__ void wgmma(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b,
                                      int add) {
  Wgmma<kColumns, false, kTransposedB>::run(d, a, b, add);
}

#endif  // sm_90a

}  // namespace siglip::cuda
