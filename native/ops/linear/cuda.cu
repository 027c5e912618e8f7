#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/activation.h"
#include "cpu/check.h"
#include "cuda/gemm.h"
#include "cuda/map.cuh"
#include "device/gelu.cuh"
#include "ops/linear/linear.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

namespace siglip::cuda {
namespace {

// x (…, K) · Wᵀ, W (N, K).
MatrixProduct forward_product(const In& x, const In& weight) {
  MatrixProduct product;
  product.m = x.rows();
  product.n = weight.extent(0);
  product.k = weight.extent(1);
  product.transpose_b = true;
  product.input = product.output = x.dtype();
  product.a = {x.bytes(), product.k};
  product.b = {weight.bytes(), product.k};
  return product;
}

// dy (…, N) · W.
MatrixProduct backward_input_product(const In& dy, const In& weight) {
  MatrixProduct product;
  product.m = dy.rows();
  product.n = weight.extent(1);
  product.k = weight.extent(0);
  product.input = product.output = dy.dtype();
  product.a = {dy.bytes(), product.k};
  product.b = {weight.bytes(), product.n};
  return product;
}

// dyᵀ · x, summed over all rows.
MatrixProduct backward_weight_product(const In& dy, const In& x) {
  MatrixProduct product;
  product.m = dy.extent(-1);
  product.n = x.extent(-1);
  product.k = x.rows();
  product.transpose_a = true;
  product.input = dy.dtype();
  product.output = DType::kFloat32;
  product.a = {dy.bytes(), product.m};
  product.b = {x.bytes(), product.n};
  return product;
}

// sum ∘ gelu'(pre) + residual, in place of the sums.
template <typename T>
struct BehindGelu {
  device::Elements<T> sum;
  device::Elements<T> pre;
  device::Elements<T> residual;
  template <int N>
  __device__ device::Floats<N> at(int64_t i) const {
    device::Floats<N> out = sum.template at<N>(i);
    const device::Floats<N> before = pre.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] *= device::gelu_gradient(before[j]);
    if (residual.data == nullptr) return out;
    const device::Floats<N> added = residual.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] += added[j];
    return out;
  }
};

}  // namespace

size_t linear_forward_scratch(int multiprocessors, In x, In weight) {
  return gemm_scratch(multiprocessors, forward_product(x, weight));
}

void linear_forward(Stream& stream, In x, In weight, MaybeIn bias, MaybeIn residual,
                    int64_t activation, MaybeOut pre, Out y, Scratch scratch) {
  constexpr char kWho[] = "linear_forward";
  check_not_scalar(kWho, "x", x);
  check_rank(kWho, "weight", weight, 2);
  check_float(kWho, "x", x);
  check_dtype(kWho, "weight", weight, x.dtype());
  check_dtype(kWho, "y", y, x.dtype());
  MatrixProduct product = forward_product(x, weight);
  check_extent(kWho, "x", x, -1, product.k);
  check_elements(kWho, "y", y, product.m * product.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.cuda().multiprocessors, product));
  product.c = y.bytes();
  product.c_stride = product.n;
  product.gelu = activation == kActivationGeluTanh;
  if (bias.present()) {
    check_elements(kWho, "bias", bias, product.n);
    if (bias.dtype() != x.dtype()) check_dtype(kWho, "bias", bias, DType::kFloat32);
    product.bias = bias.bytes();
    product.bias_dtype = bias.dtype();
  }
  if (residual.present()) {
    check_elements(kWho, "residual", residual, product.m * product.n);
    check_dtype(kWho, "residual", residual, x.dtype());
    product.residual = residual.bytes();
  }
  if (pre.present()) {
    check_elements(kWho, "pre", pre, product.m * product.n);
    check_dtype(kWho, "pre", pre, x.dtype());
    product.pre = pre.bytes();
  }
  gemm(stream, product, scratch);
}

size_t linear_backward_input_scratch(int multiprocessors, In dy, In weight) {
  return gemm_scratch(multiprocessors, backward_input_product(dy, weight));
}

void linear_backward_input(Stream& stream, In dy, In weight, MaybeIn residual, MaybeIn pre, Out dx,
                           Scratch scratch) {
  constexpr char kWho[] = "linear_backward_input";
  check_not_scalar(kWho, "dy", dy);
  check_rank(kWho, "weight", weight, 2);
  check_float(kWho, "dy", dy);
  check_dtype(kWho, "weight", weight, dy.dtype());
  check_dtype(kWho, "dx", dx, dy.dtype());
  MatrixProduct product = backward_input_product(dy, weight);
  check_extent(kWho, "dy", dy, -1, product.k);
  check_elements(kWho, "dx", dx, product.m * product.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.cuda().multiprocessors, product));
  product.c = dx.bytes();
  product.c_stride = product.n;
  if (residual.present()) {
    check_elements(kWho, "residual", residual, product.m * product.n);
    check_dtype(kWho, "residual", residual, dy.dtype());
    product.residual = residual.bytes();
  }
  if (!pre.present()) return gemm(stream, product, scratch);
  check_elements(kWho, "pre", pre, product.m * product.n);
  check_dtype(kWho, "pre", pre, dy.dtype());
  product.gelu_of = pre.bytes();
  if (!residual.present() && library_gemm(stream, product)) return;
  product.gelu_of = nullptr;
  product.residual = nullptr;
  gemm(stream, product, scratch);
  with_type(kWho, "dx", dx, [&](auto type) {
    using T = decltype(type);
    const T* added = residual.present() ? elements_of<T>(residual) : nullptr;
    T* dx_data = elements_of<T>(dx);
    const T* pre_data = elements_of<T>(pre);
    map<device::kElements16<T>>(stream, kWho, BehindGelu<T>{{dx_data}, {pre_data}, {added}},
                                dx.elements(), dx_data,
                                device::aligned16(dx_data, pre_data, added));
  });
}

size_t linear_backward_weight_scratch(int multiprocessors, In dy, In x) {
  return gemm_scratch(multiprocessors, backward_weight_product(dy, x));
}

void linear_backward_weight(Stream& stream, In dy, In x, Out dweight, MaybeOut dbias,
                            Scratch scratch) {
  constexpr char kWho[] = "linear_backward_weight";
  check_not_scalar(kWho, "dy", dy);
  check_not_scalar(kWho, "x", x);
  check_float(kWho, "dy", dy);
  check_dtype(kWho, "x", x, dy.dtype());
  check_dtype(kWho, "dweight", dweight, DType::kFloat32);
  MatrixProduct product = backward_weight_product(dy, x);
  check_elements(kWho, "dy", dy, product.k * product.m);
  check_elements(kWho, "dweight", dweight, product.m * product.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.cuda().multiprocessors, product));
  product.c = dweight.bytes();
  product.c_stride = product.n;
  if (dbias.present()) {
    check_elements(kWho, "dbias", dbias, product.m);
    product.row_sums = dbias.data();
  }
  gemm(stream, product, scratch);
}

}  // namespace siglip::cuda
