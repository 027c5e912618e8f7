// Embedding lookup: y[m] = table[ids[m]]. The backward scatters: dtable[v] = Σ_{m: ids[m]=v} dy[m],
// zero elsewhere, summed in a fixed order of m. An id outside [0, V) is an ERR_ARGUMENT that names it;
// on a GPU, whose kernels cannot refuse what they read, its row of y is NaN and adds to no row of dtable.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // table (V, D), ids (…) int32 -> y (…, D).
    void embedding_forward(Stream&, In table, In ids, Out y);
    // dy (…, D), ids (…) -> dtable (V, D), fully overwritten.
    void embedding_backward(Stream&, In dy, In ids, Out dtable, Scratch);
    size_t embedding_backward_scratch(int threads, In dy, In ids, In dtable);)

}  // namespace siglip
