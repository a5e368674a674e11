#pragma once

#include <memory>

#include "ei/ops/backend.h"

namespace ei {

// The hardware the engine runs on, with `threads` CPU threads (0: all cores).
std::unique_ptr<Backend> make_backend(int threads);

}  // namespace ei
