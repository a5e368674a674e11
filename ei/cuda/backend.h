#pragma once

#include <memory>

#include "ei/base/math.h"
#include "ei/ops/backend.h"

namespace ei {

// Whether this build has the CUDA backend and the machine a GPU it can use (compute capability
// 9.0).
bool cuda_available();

// The first usable GPU, activations in bf16. With Math::kFP8 place_factor() rounds weights to e4m3
// with a scale a row, and what is multiplied by them as well. Throws Error saying why when there is
// none.
std::unique_ptr<Backend> make_cuda_backend(Math math = Math::kBF16);

}  // namespace ei
