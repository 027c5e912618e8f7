// What a kernel in namespace cuda gets besides its operands. Its rules: it queues work on `stream` and
// returns; it neither allocates nor waits nor copies to the host, so that a program can be captured
// into a graph; no result depends on the order in which blocks run (no atomic sums).
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/stream.h"

namespace siglip {

class CublasLt;  // runtime/cublaslt.h

struct CudaContext {
  cudaStream_t stream = nullptr;
  int device = 0;
  int multiprocessors = 0;
  int architecture = 0;      // 10 · major + minor of the compute capability: 80, 90
  int shared_bytes = 0;      // the most dynamic shared memory a block may opt in to
  CublasLt* blas = nullptr;  // null where the library is not there
  // Where the job under way has queued its last work, if not on `stream`.
  cudaStream_t side = nullptr;
};

// Unless the status is success, throws ERR_CUDA, or ERR_OUT_OF_MEMORY, saying what failed and why.
void check_cuda(cudaError_t status, const char* what);

// To be called after every launch. Throws ERR_CUDA when it was refused.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

}  // namespace siglip
