// Matrix products of the GPU, the workhorse of linear and matmul: cuBLASLt where it is there and has a
// kernel, else our own kernels, which take any extents and any alignment. Ours add the products of an
// element in an order that the shape and the number of multiprocessors alone decide.
#pragma once

#include "runtime/matrix_product.h"
#include "runtime/stream.h"

namespace siglip::cuda {

// Bytes of scratch for gemm() on a device of so many multiprocessors; of the product, only the shape
// counts.
size_t gemm_scratch(int multiprocessors, const MatrixProduct& product);

// The same by the library, with whatever it alone takes; false, and nothing queued, where it is not there or
// has no kernel.
bool library_gemm(Stream& stream, const MatrixProduct& product);

// `product` with all its operands. None of its outputs may overlap an input.
void gemm(Stream& stream, MatrixProduct product, Scratch scratch);

}  // namespace siglip::cuda
