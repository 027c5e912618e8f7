// GELU, tanh approximation, with u = √(2/π) (x + 0.044715 x³): since ½ (1 + tanh u) = sigmoid(2u),
//   gelu(x) = x s,   gelu'(x) = s + x s (1 − s) 2u',   s = 1 / (1 + e), e = exp(−2u), 1 − s = e s.
// Bounds are written as comparisons, so that a NaN stays one.
#pragma once

namespace siglip::device {

// Bounded, so that e, and 1 / (1 + e) as well, stays finite and normal.
__device__ inline float gelu_exponential(float x) {
  float exponent = x * fmaf(x * x, -0.10294324F, -2.3022082F);  // times log2 e
  exponent = exponent > 125.0F ? 125.0F : exponent;
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(exponent));
  return e;
}

__device__ inline float gelu(float x) { return __fdividef(x, 1.0F + gelu_exponential(x)); }

__device__ inline float gelu_gradient(float x) {
  x = x > 10.0F ? 10.0F : x < -10.0F ? -10.0F : x;  // outside, the gradient is 0 or 1 in float32
  const float e = gelu_exponential(x);
  const float s = __fdividef(1.0F, 1.0F + e);
  const float slope = fmaf(x * x, 0.21406445F, 1.5957691F);  // 2u'
  return fmaf((x * s) * (e * s), slope, s);
}

}  // namespace siglip::device
