// The memory-bound glue between the fused operations.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // y = a + b, same shape.
    void add_forward(Stream&, In a, In b, Out y);
    // x (B, …), row (…) -> y[i] = x[i] + row: a term shared by the whole batch, e.g. positions.
    void add_row_forward(Stream&, In x, In row, Out y);
    // row (…) -> y (B, …): the row repeated B times.
    void repeat_row_forward(Stream&, In row, Out y);
    // y = factor · x with factor (1) a device scalar.
    void scale_forward(Stream&, In x, In factor, Out y);
    // y = factor · x with a constant factor.
    void scale_by_forward(Stream&, In x, double factor, Out y);
    // accumulator += x.
    void accumulate(Stream&, In x, InOut accumulator);
    // average = momentum · average + (1 − momentum) · x.
    void moving_average(Stream&, In x, double momentum, InOut average);
    // y = value.
    void fill(Stream&, double value, Out y);
    // y = x.
    void copy_forward(Stream&, In x, Out y);
    // y = x in y's dtype, both float32 or bfloat16: to the nearest, ties to even; NaN stays NaN.
    void cast_forward(Stream&, In x, Out y);
    // y = the parts one after the other, each in y's dtype as by cast_forward.
    void join_rows_forward(Stream&, InList parts, Out y);)

}  // namespace siglip
