// cuBLASLt, opened when a device is: the addon neither links it nor brings it along. Where the build had
// no header of it, it is never there.
#pragma once

#include <memory>

#include "runtime/matrix_product.h"

namespace siglip {

struct CudaContext;  // runtime/cuda_context.h

class CublasLt {
 public:
  virtual ~CublasLt() = default;

  // Queues the product on the context's stream, or returns false where the library has no kernel for
  // it. Of the kernels it has for a shape, the first call times some and keeps the fastest for good,
  // unless the stream is being captured: then it takes what the library would. So the first run of a
  // program should be an eager one.
  //
  // One stream, a workspace of our own and no sums of partial results in memory order: a product
  // repeats bit for bit.
  virtual bool multiply(const MatrixProduct& product) = 0;
};

// For the context's device, which must be the current one; it outlives what it gets. Null where
// SIGLIP2_CUDA_GEMM is "own", or where it is not set and the library is not found. SIGLIP2_CUBLASLT is
// the library's path; else the dynamic loader searches for libcublasLt.so.13, then .so.12. Throws
// ERR_ARGUMENT where SIGLIP2_CUDA_GEMM is "cublaslt" or a path is given, and the library cannot be
// opened.
std::unique_ptr<CublasLt> open_cublaslt(CudaContext& context);

}  // namespace siglip
