// Embedding lookup: y[m] = table[ids[m]]. The backward scatters: dtable[v] = Σ_{m: ids[m]=v} dy[m],
// zero elsewhere, summed in order of m. An id outside [0, V) is an ERR_ARGUMENT that names it.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // table (V, D), ids (…) int32 -> y (…, D).
    void embedding_forward(Stream&, In table, In ids, Out y);
    // dy (…, D), ids (…) -> dtable (V, D), fully overwritten.
    void embedding_backward(Stream&, In dy, In ids, Out dtable);)

}  // namespace siglip
