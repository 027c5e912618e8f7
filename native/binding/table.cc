#include "binding/table.h"

#include "cpu/peak.h"
#include "cpu/resample.h"
#include "ops/adam/adam.h"
#include "ops/attention/attention.h"
#include "ops/attention_pool/attention_pool.h"
#include "ops/elementwise/elementwise.h"
#include "ops/embedding/embedding.h"
#include "ops/gelu/gelu.h"
#include "ops/group_matmul/group_matmul.h"
#include "ops/l2_normalize/l2_normalize.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/learnability/learnability.h"
#include "ops/linear/linear.h"
#include "ops/linear_bfloat16/linear_bfloat16.h"
#include "ops/linear_float32/linear_float32.h"
#include "ops/linear_int8/linear_int8.h"
#include "ops/mask_tokens/mask_tokens.h"
#include "ops/matmul/matmul.h"
#include "ops/normalize_pixels/normalize_pixels.h"
#include "ops/patchify/patchify.h"
#include "ops/position_resize/position_resize.h"
#include "ops/prototype_loss/prototype_loss.h"
#include "ops/reduce/reduce.h"
#include "ops/sigmoid_loss/sigmoid_loss.h"
#include "ops/token/token.h"
#include "ops/vocabulary_loss/vocabulary_loss.h"

namespace siglip {
namespace {

// A name of the table that this build does not compile becomes null.
#if defined(__x86_64__)
#define SIGLIP_ON_X86(function) &function
#else
#define SIGLIP_ON_X86(function) nullptr
#endif
#if defined(SIGLIP_CUDA)
#define SIGLIP_ON_CUDA(function) &function
#else
#define SIGLIP_ON_CUDA(function) nullptr
#endif

// The forms of a function: those of the CPU, or also that of a GPU.
#define SIGLIP_CPU_FORMS(function)                                                                 \
  Variants<decltype(cpu_generic::function)> {                                                      \
    &cpu_generic::function, SIGLIP_ON_X86(cpu_avx2::function), SIGLIP_ON_X86(cpu_avx512::function) \
  }
#define SIGLIP_ALL_FORMS(function)                                          \
  Variants<decltype(cpu_generic::function)> {                               \
    &cpu_generic::function, SIGLIP_ON_X86(cpu_avx2::function),              \
        SIGLIP_ON_X86(cpu_avx512::function), SIGLIP_ON_CUDA(cuda::function) \
  }

// A row: the forms, and the names of the kernel's arguments in order; their kinds come from its
// signature.
#define SIGLIP_ROW(forms, function, ...)                                                       \
  KernelRow<decltype(cpu_generic::function)>::make(#function, forms(function).pick(kind, isa), \
                                                   {__VA_ARGS__})
// Likewise for a kernel that takes scratch, which is not named; `sized_by`, in parentheses, names
// the arguments that its scratch function takes.
#define SIGLIP_UNWRAP(...) __VA_ARGS__
#define SIGLIP_ROW_SCRATCH(forms, function, sized_by, ...)       \
  KernelRow<decltype(cpu_generic::function)>::make(              \
      #function, forms(function).pick(kind, isa), {__VA_ARGS__}, \
      forms(function##_scratch).pick(kind, isa), {SIGLIP_UNWRAP sized_by})

// For every device, or with CPU in the name for the CPU alone.
#define SIGLIP_KERNEL(...) SIGLIP_ROW(SIGLIP_ALL_FORMS, __VA_ARGS__)
#define SIGLIP_KERNEL_SCRATCH(...) SIGLIP_ROW_SCRATCH(SIGLIP_ALL_FORMS, __VA_ARGS__)
#define SIGLIP_CPU_KERNEL(...) SIGLIP_ROW(SIGLIP_CPU_FORMS, __VA_ARGS__)
#define SIGLIP_CPU_KERNEL_SCRATCH(...) SIGLIP_ROW_SCRATCH(SIGLIP_CPU_FORMS, __VA_ARGS__)

std::vector<Kernel> rows(DeviceKind kind, Isa isa) {
  return {
      SIGLIP_KERNEL_SCRATCH(linear_forward, ("x", "weight"),  //
                            "x", "weight", "bias", "residual", "activation", "pre", "y"),
      SIGLIP_KERNEL_SCRATCH(linear_backward_input, ("dy", "weight"),  //
                            "dy", "weight", "residual", "pre", "dx"),
      SIGLIP_KERNEL_SCRATCH(linear_backward_weight, ("dy", "x"),  //
                            "dy", "x", "dweight", "dbias"),
      SIGLIP_CPU_KERNEL(linear_float32_pack, "weight", "packed"),
      SIGLIP_CPU_KERNEL_SCRATCH(linear_float32_forward, ("x", "y"),  //
                                "x", "packed", "bias", "residual", "activation", "pre", "y"),
      SIGLIP_CPU_KERNEL(linear_int8_pack, "weight", "packed"),
      SIGLIP_CPU_KERNEL_SCRATCH(linear_int8_forward, ("x", "y"),  //
                                "x", "packed", "bias", "residual", "activation", "pre", "y"),
      SIGLIP_CPU_KERNEL(linear_bfloat16_pack, "weight", "packed"),
      SIGLIP_CPU_KERNEL_SCRATCH(linear_bfloat16_forward, ("x", "y"),  //
                                "x", "packed", "bias", "residual", "activation", "pre", "y"),
      SIGLIP_KERNEL_SCRATCH(matmul_forward, ("a", "b", "transpose_a", "transpose_b"),  //
                            "a", "b", "transpose_a", "transpose_b", "y"),
      SIGLIP_KERNEL_SCRATCH(group_matmul_forward, ("a", "b", "transpose_b"),  //
                            "a", "b", "transpose_b", "y"),
      SIGLIP_KERNEL_SCRATCH(group_matmul_outer, ("x", "y"),  //
                            "x", "y", "products"),
      SIGLIP_KERNEL_SCRATCH(attention_forward, ("q", "k", "segments", "key_segments", "narrow"),  //
                            "q", "k", "v", "key_mask", "segments", "key_segments", "causal",
                            "scale", "narrow", "o", "lse"),
      SIGLIP_KERNEL_SCRATCH(attention_backward, ("q", "k", "segments", "key_segments"),  //
                            "dout", "q", "k", "v", "key_mask", "segments", "key_segments", "causal",
                            "o", "lse", "scale", "dq", "dk", "dv"),
      SIGLIP_KERNEL_SCRATCH(attention_pool_forward, ("x", "u", "segments"),  //
                            "x", "u", "key_mask", "segments", "y", "lse"),
      SIGLIP_KERNEL_SCRATCH(attention_pool_backward, ("x", "u", "segments"),  //
                            "dy", "x", "u", "key_mask", "segments", "y", "lse", "dx", "du"),
      SIGLIP_KERNEL(layer_norm_forward, "x", "weight", "bias", "eps", "y", "mean", "rstd"),
      SIGLIP_KERNEL_SCRATCH(layer_norm_backward, ("dy"),  //
                            "dy", "x", "weight", "mean", "rstd", "residual", "dx", "dweight",
                            "dbias"),
      SIGLIP_KERNEL(gelu_forward, "x", "form", "y"),
      SIGLIP_KERNEL(gelu_backward, "dy", "x", "form", "dx"),
      SIGLIP_KERNEL(embedding_forward, "table", "ids", "y"),
      SIGLIP_KERNEL_SCRATCH(embedding_backward, ("dy", "ids", "dtable"),  //
                            "dy", "ids", "dtable"),
      SIGLIP_KERNEL(patchify_forward, "images", "patch", "patches"),
      SIGLIP_KERNEL(patchify_backward, "dpatches", "patch", "dimages"),
      SIGLIP_KERNEL(normalize_pixels_forward, "pixels", "table", "images"),
      SIGLIP_KERNEL(position_resize_forward, "grid", "shapes", "segments", "positions"),
      SIGLIP_KERNEL_SCRATCH(position_resize_backward, ("dpositions", "shapes"),  //
                            "dpositions", "shapes", "segments", "dgrid"),
      SIGLIP_KERNEL(token_select_forward, "x", "index", "y"),
      SIGLIP_KERNEL(token_select_backward, "dy", "index", "dx"),
      SIGLIP_KERNEL(token_mean_forward, "x", "y"),
      SIGLIP_KERNEL(token_mean_backward, "dy", "dx"),
      SIGLIP_KERNEL(token_write, "token", "positions", "y"),
      SIGLIP_KERNEL(mask_tokens_forward, "x", "mask", "token", "y"),
      SIGLIP_KERNEL(mask_tokens_backward, "dy", "mask", "dx", "dtoken"),
      SIGLIP_KERNEL_SCRATCH(prototype_loss_forward,
                            ("student", "teacher", "teacher_prototypes"),  //
                            "student", "student_prototypes", "teacher", "teacher_prototypes",
                            "centre", "weights", "teacher_rows", "teacher_temperature",
                            "student_temperature", "loss", "student_lse", "teacher_lse"),
      SIGLIP_KERNEL_SCRATCH(
          prototype_loss_backward, ("student", "teacher", "teacher_prototypes"),  //
          "dloss", "student", "student_prototypes", "teacher", "teacher_prototypes", "centre",
          "weights", "teacher_rows", "teacher_temperature", "student_lse", "teacher_lse",
          "student_temperature", "dstudent", "dstudent_prototypes"),
      SIGLIP_KERNEL_SCRATCH(sinkhorn_centre, ("teacher", "prototypes"),  //
                            "teacher", "prototypes", "temperature", "iterations", "centre"),
      SIGLIP_KERNEL(l2_normalize_forward, "x", "eps", "y", "norm"),
      SIGLIP_KERNEL(l2_normalize_backward, "dy", "x", "norm", "eps", "dx"),
      SIGLIP_KERNEL_SCRATCH(sigmoid_loss_forward,
                            ("images", "texts", "dimages", "dtexts", "dlogit_scale",
                             "dlogit_bias"),  //
                            "images", "texts", "logit_scale", "logit_bias", "offset", "batch",
                            "loss", "dimages", "dtexts", "dlogit_scale", "dlogit_bias"),
      SIGLIP_KERNEL_SCRATCH(learnability_log_sums, ("learner_images", "reference_images"),  //
                            "learner_images", "learner_texts", "learner_scale", "learner_bias",
                            "reference_images", "reference_texts", "reference_scale",
                            "reference_bias", "learner_weight", "reference_weight", "log_sums"),
      SIGLIP_KERNEL_SCRATCH(learnability_forward, ("learner_images", "reference_images"),  //
                            "learner_images", "learner_texts", "learner_scale", "learner_bias",
                            "reference_images", "reference_texts", "reference_scale",
                            "reference_bias", "log_sums", "learner_weight", "reference_weight",
                            "diagonal", "rows", "columns"),
      SIGLIP_KERNEL_SCRATCH(
          learnability_condition, ("learner_images", "reference_images", "chosen"),  //
          "learner_images", "learner_texts", "learner_scale", "learner_bias", "reference_images",
          "reference_texts", "reference_scale", "reference_bias", "log_sums", "scores", "chosen",
          "learner_weight", "reference_weight", "y"),
      SIGLIP_KERNEL_SCRATCH(learnability_select, ("scores", "indices"),  //
                            "scores", "taken", "draw", "noise", "chunk", "gain", "indices",
                            "now_taken"),
      SIGLIP_KERNEL_SCRATCH(vocabulary_loss_forward, ("hidden", "weight"),  //
                            "hidden", "weight", "bias", "labels", "row_weights", "loss", "lse",
                            "row_losses"),
      SIGLIP_KERNEL_SCRATCH(vocabulary_loss_backward, ("hidden", "weight"),  //
                            "dloss", "hidden", "weight", "bias", "labels", "row_weights", "lse",
                            "dhidden", "dweight", "dbias"),
      SIGLIP_KERNEL(add_forward, "a", "b", "y"),
      SIGLIP_KERNEL(add_row_forward, "x", "row", "y"),
      SIGLIP_KERNEL(repeat_row_forward, "row", "y"),
      SIGLIP_KERNEL(scale_forward, "x", "factor", "y"),
      SIGLIP_KERNEL(scale_by_forward, "x", "factor", "y"),
      SIGLIP_KERNEL(accumulate, "x", "accumulator"),
      SIGLIP_KERNEL(moving_average, "x", "momentum", "average"),
      SIGLIP_KERNEL(fill, "value", "y"),
      SIGLIP_KERNEL(copy_forward, "x", "y"),
      SIGLIP_KERNEL(cast_forward, "x", "y"),
      SIGLIP_KERNEL(join_rows_forward, "parts", "y"),
      SIGLIP_KERNEL(sum_rows_forward, "x", "y"),
      SIGLIP_KERNEL(row_shares_forward, "x", "y"),
      SIGLIP_KERNEL_SCRATCH(dot_forward, ("a"),  //
                            "a", "b", "y"),
      SIGLIP_KERNEL_SCRATCH(global_norm_forward, ("tensors"),  //
                            "tensors", "y"),
      SIGLIP_KERNEL(root_sum_forward, "scalars", "y"),
      SIGLIP_KERNEL_SCRATCH(adam_update, ("param"),  //
                            "param", "m", "v", "grad", "grad_norm", "schedule", "learning_rate",
                            "beta1", "beta2", "eps", "weight_decay", "clip_norm", "update_squares",
                            "param_squares"),
  };
}

}  // namespace

Isa active_isa() {
  static const Isa isa = configured_isa();
  return isa;
}

const std::vector<Kernel>& kernels(DeviceKind kind) {
  static const auto* cpu = new std::vector<Kernel>(rows(DeviceKind::kCpu, active_isa()));
  static const auto* cuda = new std::vector<Kernel>(rows(DeviceKind::kCuda, active_isa()));
  return kind == DeviceKind::kCuda ? *cuda : *cpu;
}

const ResampleKernels& resample_kernels() {
  static const Isa isa = active_isa();
  static const ResampleKernels kernels = {
      SIGLIP_CPU_FORMS(pixels_to_rgb).pick(isa),    SIGLIP_CPU_FORMS(resample_rows).pick(isa),
      SIGLIP_CPU_FORMS(resample_columns).pick(isa), SIGLIP_CPU_FORMS(pixels_to_planes).pick(isa),
      SIGLIP_CPU_FORMS(pixels_to_floats).pick(isa),
  };
  return kernels;
}

double multiply_add(Stream& stream, Precision precision, int64_t rounds) {
  const Isa isa = active_isa();
  switch (precision) {
    case Precision::kInt8:
      return SIGLIP_CPU_FORMS(multiply_add_int8).pick(isa)(stream, rounds);
    case Precision::kBfloat16:
      return SIGLIP_CPU_FORMS(multiply_add_bfloat16).pick(isa)(stream, rounds);
    default:
      return SIGLIP_CPU_FORMS(multiply_add).pick(isa)(stream, rounds);
  }
}

}  // namespace siglip
