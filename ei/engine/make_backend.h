#pragma once

#include <memory>

#include "ei/engine/engine.h"
#include "ei/ops/backend.h"

namespace ei {

// Whether that is a GPU: asked for, or there.
bool on_gpu(Device device);

// The hardware the engine runs on; `threads` CPU threads (0: all cores) if that is the CPU. Throws
// Error when CUDA is asked for and there is no GPU that can be used, or it has no caches of
// kv_type.
std::unique_ptr<Backend> make_backend(Device device, int threads, DType kv_type = DType::kBF16);

}  // namespace ei
