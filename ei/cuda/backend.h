#pragma once

#include <memory>

#include "ei/ops/backend.h"

namespace ei {

// Whether this build has the CUDA backend and the machine a GPU it can use (compute capability
// 9.0).
bool cuda_available();

// The first usable GPU, activations in bf16. Throws Error saying why when there is none.
std::unique_ptr<Backend> make_cuda_backend();

}  // namespace ei
