#include "ei/ops/collectives.h"

#include "ei/base/fail.h"
#include "ei/cuda/cuda_backend.h"

namespace ei::cuda {

// A GPU is its model's only rank: there is nothing to add, and logits are whole.
void CudaBackend::run(const AllReduce&) {}

void CudaBackend::run(const AllGather&) { fail("AllGather: on GPUs a model has one rank"); }

}  // namespace ei::cuda
