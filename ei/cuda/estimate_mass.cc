#include "ei/base/error.h"
#include "ei/cuda/cuda_backend.h"

namespace ei::cuda {

// There are no kernels for estimates other than bounds yet.
void CudaBackend::run(const EstimateMass&) {
  throw Error(
      "CUDA: blocks can be chosen by key bounds alone; read with the policies paper, reference, "
      "criti or dense, or on the CPU (--device cpu)");
}
void CudaBackend::run(const SelectMass&) {
  throw Error("CUDA: there is no selection by shares of attention; read on the CPU (--device cpu)");
}

}  // namespace ei::cuda
