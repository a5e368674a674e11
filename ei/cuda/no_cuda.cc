#include "ei/base/fail.h"
#include "ei/cuda/backend.h"

namespace ei {

bool cuda_available() { return false; }

std::unique_ptr<Backend> make_cuda_backend(Math) {
  fail("this build has no CUDA backend: configure it with -DEI_CUDA=ON, or use the CPU");
}

}  // namespace ei
