// Elements of float32 or bfloat16 in memory, as float32 in registers: N at a time, 16 bytes an access
// where N elements fill them.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace siglip::device {

// Elements that one access of 16 bytes moves.
template <typename T>
inline constexpr int kElements16 = 16 / static_cast<int>(sizeof(T));

// Whether every one of the addresses is a multiple of 16 bytes.
template <typename... Pointers>
__host__ __device__ inline bool aligned16(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ... | uintptr_t{0}) & 15) == 0;
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounds to nearest even; NaN stays NaN.
template <typename T>
__device__ inline T from_float(float value) {
  if constexpr (sizeof(T) == 2) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

template <int N>
struct Floats {
  float v[N];
  __device__ float& operator[](int i) { return v[i]; }
  __device__ const float& operator[](int i) const { return v[i]; }
};

template <int N>
__device__ inline Floats<N> splat(float value) {
  Floats<N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = value;
  return out;
}

// The two halves of a word of bfloat16, the lower address first.
__device__ inline float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000U); }

__device__ inline uint32_t pack_halves(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// What the accesses of a thread move: 1, 2 or 4 words.
template <int kWords>
struct alignas(4 * kWords) Words {
  uint32_t w[kWords];
};

// N elements as they lie in memory, in half the registers where T is bfloat16. They fill whole words,
// and lie as load below asks.
template <typename T, int N>
struct Packed {
  static constexpr int kWords = static_cast<int>(N * sizeof(T) / 4);
  uint32_t w[kWords];
};

template <int N, typename T>
__device__ inline Packed<T, N> load_packed(const T* p) {
  constexpr int kWords = Packed<T, N>::kWords;
  constexpr int kAccess = kWords < 4 ? kWords : 4;
  static_assert(N * sizeof(T) % 4 == 0 && kWords % kAccess == 0);
  Packed<T, N> out;
#pragma unroll
  for (int i = 0; i < kWords; i += kAccess) {
    const auto words = reinterpret_cast<const Words<kAccess>*>(p)[i / kAccess];
#pragma unroll
    for (int j = 0; j < kAccess; ++j) out.w[i + j] = words.w[j];
  }
  return out;
}

template <typename T, int N>
__device__ inline Floats<N> unpack(const Packed<T, N>& packed) {
  Floats<N> out;
#pragma unroll
  for (int i = 0; i < Packed<T, N>::kWords; ++i) {
    if constexpr (sizeof(T) == 2) {
      out[2 * i] = low_half(packed.w[i]);
      out[2 * i + 1] = high_half(packed.w[i]);
    } else {
      out[i] = __uint_as_float(packed.w[i]);
    }
  }
  return out;
}

// N elements from p on. N is 1 or even (of bfloat16); p is aligned to the smaller of 16 bytes and
// N elements.
template <int N, typename T>
__device__ inline Floats<N> load(const T* p) {
  if constexpr (N * sizeof(T) < 4) {
    static_assert(N == 1);
    return {to_float(*p)};
  } else {
    return unpack(load_packed<N>(p));
  }
}

// Rounds the N elements to T; p as in load.
template <int N, typename T>
__device__ inline void store(T* p, const Floats<N>& value) {
  if constexpr (N * sizeof(T) < 4) {
    static_assert(N == 1);
    *p = from_float<T>(value[0]);
  } else {
    constexpr int kWords = static_cast<int>(N * sizeof(T) / 4);
    constexpr int kAccess = kWords < 4 ? kWords : 4;
    static_assert(N * sizeof(T) % 4 == 0 && kWords % kAccess == 0);
#pragma unroll
    for (int i = 0; i < kWords; i += kAccess) {
      Words<kAccess> words;
#pragma unroll
      for (int j = 0; j < kAccess; ++j) {
        if constexpr (sizeof(T) == 2) {
          words.w[j] = pack_halves(value[2 * (i + j)], value[2 * (i + j) + 1]);
        } else {
          words.w[j] = __float_as_uint(value[i + j]);
        }
      }
      reinterpret_cast<Words<kAccess>*>(p)[i / kAccess] = words;
    }
  }
}

// Keeps the compiler from holding what it unpacked before this point for use after it.
template <typename T, int N>
__device__ inline void keep_packed(Packed<T, N>* packed) {
#pragma unroll
  for (int i = 0; i < Packed<T, N>::kWords; ++i) asm volatile("" : "+r"(packed->w[i]));
}

// The first `count` elements, one by one and at any alignment; `rest` in the places beyond them.
template <int N, typename T>
__device__ inline Floats<N> load_partial(const T* p, int64_t count, float rest = 0.0F) {
  Floats<N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = i < count ? to_float(p[i]) : rest;
  return out;
}

template <int N, typename T>
__device__ inline void store_partial(T* p, const Floats<N>& value, int64_t count) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < count) p[i] = from_float<T>(value[i]);
  }
}

}  // namespace siglip::device
