#pragma once

#include <memory>

#include "ei/ops/backend.h"

namespace ei {

// The backend that everybody has. Activations are float; SIMD instructions are chosen at run time.
// Results do not depend on n_threads (0: one per core).
std::unique_ptr<Backend> make_cpu_backend(int n_threads = 0);

}  // namespace ei
