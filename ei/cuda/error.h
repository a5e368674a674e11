#pragma once

#include <cuda_runtime_api.h>

namespace ei::cuda {

// Throws Error naming what was attempted, unless the code says success.
void check_cuda(cudaError_t code, const char* what);

}  // namespace ei::cuda

#define EI_CUDA(expr) ::ei::cuda::check_cuda((expr), #expr)
