// Functions of the special units.
#pragma once

namespace siglip::cuda {

// 1 / x, with a relative error of 2^-23.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace siglip::cuda
